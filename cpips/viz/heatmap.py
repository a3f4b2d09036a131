"""Draw a distance: reference, image, and a heat map of their difference. Pillow and numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import ImageError

Font = Union[ImageFont.FreeTypeFont, ImageFont.ImageFont]

CELL = 16  # image pixels that a cell of the latent covers
FLOOR = 0.01  # least automatic maximum of the scale: differences below it are not made to look fierce

# matplotlib's inferno (CC0, Smith and van der Walt), every tenth of it: lightness rises evenly
_INFERNO = np.array([(0, 0, 4), (22, 11, 57), (66, 10, 104), (106, 23, 110), (147, 38, 103), (188, 55, 84),
                     (221, 81, 58), (243, 120, 25), (252, 165, 10), (246, 215, 70), (252, 255, 164)]) / 255
_PAPER, _INK, _FAINT = (18, 18, 22), (236, 236, 240), (150, 150, 160)
_PANEL, _GAP, _BAR = 448, 20, 16


@dataclass(frozen=True)
class Scale:
    """The value drawn in the brightest color, and where it comes from."""

    vmax: float
    note: str


def smooth(values: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[Any]:
    """A map ``(H,W)``, constant in cells of 16 px, interpolated between the cells' centres.

    Args:
        size: (height, width) to resample to; default: (H,W).
    """
    height, width = values.shape
    grid = Image.fromarray(cells(values))
    box = (0, 0, min(width / CELL, grid.width), min(height / CELL, grid.height))
    rows, columns = size or (height, width)
    return np.maximum(np.asarray(grid.resize((columns, rows), Image.Resampling.BICUBIC, box)), 0)


def cells(values: NDArray[Any]) -> NDArray[Any]:
    """``(ceil(H/16),ceil(W/16))`` float32: means of a map ``(H,W)`` over cells of 16 px, or what the image has of them."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(values, np.float32)).reduce(CELL))


def scale_of(values: NDArray[Any], vmax: float | None = None) -> Scale:
    """``vmax``, or the 99.5th percentile over the cells, but at least :data:`FLOOR`."""
    if vmax is not None:
        if not vmax > 0 or not np.isfinite(vmax):
            raise ImageError(f"vmax is {vmax}: expected a positive number, the distance drawn in the brightest color")
        return Scale(float(vmax), "fixed")
    peak = float(np.percentile(values[::CELL, ::CELL], 99.5))
    return Scale(peak, "99.5th percentile") if peak > FLOOR else Scale(FLOOR, "least scale")


def colours(t: NDArray[Any]) -> NDArray[Any]:
    """Colors ``(...,3)`` in [0,1] of heat in [0,1]."""
    position = np.clip(t, 0, 1)
    anchors = np.linspace(0, 1, len(_INFERNO))
    return np.stack([np.interp(position, anchors, channel) for channel in _INFERNO.T], -1)


def palette(heat: NDArray[Any]) -> NDArray[Any]:
    """Colors and cover ``(...,4)`` in [0,1] with which heat in [0,1] is laid over an image: little hides little."""
    cover = np.clip(0.15 + 1.6 * heat, 0, 0.88)[..., None]
    return np.concatenate([colours(0.08 + 0.92 * heat), cover], -1)


def overlay(image: NDArray[Any], heat: NDArray[Any]) -> NDArray[Any]:
    """Heat ``(H,W)`` in [0,1] over ``image`` ``(H,W,3)`` in [0,1], which shows through in dim gray."""
    grey = (image @ (0.299, 0.587, 0.114))[..., None]
    return _blend(grey, heat)


def _blend(grey: NDArray[Any], heat: NDArray[Any]) -> NDArray[Any]:
    paint = palette(heat)
    cover = paint[..., 3:]
    return np.clip((0.05 + 0.45 * grey) * (1 - cover) + paint[..., :3] * cover * (0.85 + 0.3 * grey), 0, 1)


def render(
    reference: Tensor,
    image: Tensor,
    values: NDArray[Any],
    *,
    distance: float,
    names: Sequence[str] = ("reference", "image"),
    footer: str = "",
    vmax: float | None = None,
) -> Image.Image:
    """Draw reference, image and heat map beside each other (below each other where they are very wide).

    Args:
        reference, image: ``(3,H,W)`` or ``(1,3,H,W)`` in [0,1].
        values: the metric's map ``(H,W)``.
        distance: the title.
        footer: a line in small print, the metric's signature say.
        vmax: end of the color scale; default: see :func:`scale_of`.

    Raises:
        ImageError: a ``vmax`` that is not positive.
    """
    height, width = values.shape
    scale = scale_of(values, vmax)
    size = _panel_size(height, width)
    panels = [_fit(picture, size) for picture in (reference, image)]
    heat = np.clip(smooth(values, size) / scale.vmax, 0, 1)
    panels.append(overlay(panels[1], heat))
    stacked = size[1] > 2.2 * size[0]

    title, text, small = (_font(points) for points in (30, 16, 12))
    slot_w, slot_h = max(size[1], 300), size[0] + 30  # a caption above each panel
    columns, rows = (1, 3) if stacked else (3, 1)
    left, top = 28, 84
    canvas_w = left * 2 + columns * slot_w + (columns - 1) * _GAP
    bottom = top + rows * slot_h + (rows - 1) * _GAP
    canvas = Image.new("RGB", (canvas_w, bottom + 84), _PAPER)
    draw = ImageDraw.Draw(canvas)

    number = f"{distance:.4g}"
    draw.text((left, 24), number, _INK, title)
    draw.text((left + draw.textlength(number, title) + 14, 39), "perceptual distance, 0 for equal images", _FAINT, text)
    captions = [names[0], names[1], "where they differ"]
    for i, (panel, caption) in enumerate(zip(panels, captions)):
        column, row = (0, i) if stacked else (i, 0)
        x, y = left + column * (slot_w + _GAP), top + row * (slot_h + _GAP)
        draw.text((x, y), _shorten(draw, caption, text, slot_w), _INK, text)
        canvas.paste(Image.fromarray((panel * 255 + 0.5).astype(np.uint8)), (x, y + 30))
        if i == 2:
            _color_bar(canvas, draw, (x, bottom + 12), slot_w if size[1] < 300 else size[1], scale, small)
    draw.text((left, bottom + 58), _shorten(draw, footer, small, canvas_w - 2 * left), _FAINT, small)
    return canvas


# ---- parts ----------------------------------------------------------------------------------------------------------


def side_by_side(reference: Tensor, image: Tensor) -> Image.Image:
    """Both images ``(3,H,W)`` in [0,1] in one row, for a metric without a map."""
    both = np.concatenate([each.clamp(0, 1).permute(1, 2, 0).cpu().numpy() for each in (reference, image)], 1)
    return Image.fromarray((both * 255 + 0.5).astype(np.uint8))


def _panel_size(height: int, width: int) -> tuple[int, int]:
    """Longest side :data:`_PANEL` px (wide images, which are stacked, may have twice that); nothing below 8 px."""
    longest = _PANEL * 2 if width > 2.2 * height else _PANEL
    factor = longest / max(height, width)
    return max(8, round(height * factor)), max(8, round(width * factor))


def _fit(picture: Tensor, size: tuple[int, int]) -> NDArray[Any]:
    """``(h,w,3)`` float in [0,1]; the pixels of small images stay visible as squares."""
    array = picture.detach().float().reshape(3, *picture.shape[-2:]).permute(1, 2, 0).clamp(0, 1).cpu().numpy()
    drawn = Image.fromarray((array * 255 + 0.5).astype(np.uint8))
    enlarged = size[0] * size[1] > 4 * drawn.width * drawn.height
    method = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return np.asarray(drawn.resize((size[1], size[0]), method, reducing_gap=3.0), np.float32) / 255


def _color_bar(canvas: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], width: int, scale: Scale,
                font: Font) -> None:
    x, y = at
    ramp = np.linspace(0, 1, width)[None].repeat(_BAR, 0)
    canvas.paste(Image.fromarray((_blend(np.full((_BAR, width, 1), 0.5), ramp) * 255 + 0.5).astype(np.uint8)), at)
    end = f"{scale.vmax:.3g}+  ({scale.note})"
    end_x = x + width - draw.textlength(end, font)
    draw.text((end_x, y + _BAR + 6), end, _FAINT, font)
    for tick in _ticks(scale.vmax):
        place, label = x + round(tick / scale.vmax * (width - 1)), f"{tick:g}"
        label_x = place - (draw.textlength(label, font) / 2 if tick else 0)
        if label_x + draw.textlength(label, font) + 8 < end_x:
            draw.line((place, y + _BAR, place, y + _BAR + 4), _FAINT)
            draw.text((label_x, y + _BAR + 6), label, _FAINT, font)


def _ticks(vmax: float) -> list[float]:
    """Round numbers from 0 up to ``vmax``, about four."""
    power = 10.0 ** np.floor(np.log10(vmax / 3))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if vmax / (m * power) <= 5)
    return [float(f"{i * step:.6g}") for i in range(int(vmax / step * 1.000001) + 1)]


def _font(points: int) -> Font:
    return ImageFont.load_default(points)  # the TrueType font that Pillow carries


def _shorten(draw: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    """``text`` with its middle left out so that it fits; the ends of file names tell them apart."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if draw.textlength(text, font) <= width:
        return text
    keep = len(text)
    while keep > 2 and draw.textlength(f"{text[: keep // 2]}...{text[len(text) - keep // 2:]}", font) > width:
        keep -= 1
    return f"{text[: keep // 2]}...{text[len(text) - keep // 2:]}"
