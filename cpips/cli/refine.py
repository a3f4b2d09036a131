"""``cpips refine``: a compressed file made as good as its codec can, or as small."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Callable, Iterator, Optional

import typer

from .._utils.console import BackgroundOption, ForceOption, JsonOption, console, fail, print_json, say, step_bar
from .codec import CodecOption, QualityOption, codec_files


def refine(
    image: Annotated[str, typer.Argument(metavar="IMG", show_default=False, help="The image to compress.")],
    output: Annotated[Optional[Path], typer.Option(
        "--output", "-o", metavar="FILE", show_default=False, help="Default: the image's name with .cpz.")] = None,
    codec: CodecOption = None,
    quality: QualityOption = None,
    target_bpp: Annotated[Optional[float], typer.Option(
        metavar="BPP", show_default=False,
        help="Bits per pixel that the whole file is to have, within 2 %; without --quality, a variable-rate codec starts at the nearest. "
        "Default: what rate and quality together ask for.")] = None,
    alpha: Annotated[Optional[float], typer.Option(
        metavar="A", show_default=False,
        help="Weight of the squared error, in bits per pixel per squared gray level. Default: that of the codec's training. With --error l1, "
        "per gray level; it has no default then.")] = None,
    error: Annotated[str, typer.Option(metavar="NAME", help="Of pixels: l2, squared, or l1, absolute.")] = "l2",
    beta: Annotated[float, typer.Option(metavar="B", help="The same of a unit of the perceptual loss, see --loss.")] = 0.0,
    loss: Annotated[str, typer.Option(
        metavar="NAME", help="What --beta weighs: cpips, the metric; texture (TextureLoss), which asks for contrast; or wasserstein "
        "(WassersteinDistortion).")] = "cpips",
    gamma: Annotated[float, typer.Option(metavar="G", help="The same of a unit of the style loss.")] = 0.0,
    roi: Annotated[Optional[Path], typer.Option(
        metavar="MASK", show_default=False,
        help="Region of interest: a mask of the image's size, only black and white pixels, white inside.")] = None,
    roi_box: Annotated[Optional[str], typer.Option(
        metavar="X,Y,W,H", show_default=False, help="The same as a box in pixels, from the top left.")] = None,
    fg_weight: Annotated[Optional[float], typer.Option(
        metavar="W", show_default=False, help="Weight of the error inside the region. Default: 1.")] = None,
    bg_weight: Annotated[Optional[float], typer.Option(
        metavar="W", show_default=False, help="Weight of the error outside. Default: 0.1.")] = None,
    steps: Annotated[int, typer.Option(
        min=1, metavar="N", help="More are better and slower; the literature takes 2000.")] = 500,
    seed: Annotated[int, typer.Option(min=0, metavar="SEED", help="Of the draws; the same one gives the same file.")] = 0,
    bfloat16: Annotated[bool, typer.Option(
        "--bfloat16", help="Take gradients through a decoder in bfloat16: faster on processors with instructions for it, nearly the same file.")] = False,
    checkpoint: Annotated[Optional[Path], typer.Option(
        metavar="CKPT", show_default=False,
        help="File to go on from when interrupted. Default: the output's name with .refining; it goes when that is "
        "written.")] = None,
    background: BackgroundOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compress an image with latents that are optimized for it; `cpips decompress` reads the file as usual.

    Minimizes rate + A squared error + B perceptual + G style by stochastic Gumbel annealing. After an interruption, the same
    command resumes and writes the same file. If the target rate cannot be reached, nothing is written, and the exit code
    is 1.
    """
    from .._utils.io import OutputError, check_output, stamp
    from ..errors import RateError
    from ..images import load

    if roi is not None and roi_box is not None:
        raise typer.BadParameter("--roi and --roi-box are two ways to say the same: give one")
    box = None if roi_box is None else _box(roi_box)
    path = output or Path(image).with_suffix(".cpz")
    kept = checkpoint or path.with_name(path.name + ".refining")
    check_output(path, [image, roi, codec], force=force)
    check_output(kept, [image, roi, codec, path], force=True)  # the checkpoint of another run is refused when it is read
    if kept.resolve() == path.resolve():
        raise OutputError(f"{kept} cannot be both the output and the checkpoint: choose another --checkpoint")
    before = stamp(kept)
    tensor = load(image, background)
    files = codec_files()
    from ..codec.container import at_quality
    from ..codec.refine import BG_WEIGHT, FG_WEIGHT, TERMS, near_rate, perceptual_term, refine as run

    if loss not in TERMS:
        raise typer.BadParameter(f"--loss {loss}: choose from {', '.join(TERMS)}")
    if loss != TERMS[0] and not beta:
        raise typer.BadParameter(f"--loss {loss} has no weight: give --beta, too")
    model = files.open_codec(codec or files.default_codec(quality), quality)
    if target_bpp is not None and quality is None and model.variable is not None:
        model = near_rate(tensor, model, target_bpp)
    with _progress(steps) as show:
        try:
            refined = run(
                tensor, model, target_bpp=target_bpp, alpha=alpha, beta=beta, gamma=gamma, roi=roi or box,
                fg_weight=FG_WEIGHT if fg_weight is None else fg_weight,
                bg_weight=BG_WEIGHT if bg_weight is None else bg_weight, error=error, steps=steps, seed=seed,
                perceptual=perceptual_term(loss), bfloat16=bfloat16, checkpoint=kept, progress=show)
        except RateError as error:
            if stamp(kept) != before:  # this run wrote it
                kept.unlink(missing_ok=True)
            fail(str(error))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            say(f"interrupted: {kept} has the last checkpoint, if there was one; the same command continues from there")
            raise
    size = files.write(refined.stream, path, model)
    kept.unlink(missing_ok=True)
    first, last = refined.history[0], next(row for row in reversed(refined.history) if row["step"] == refined.step)
    if as_json:
        print_json({"file": str(path), "codec": model.name, "setting": model.quality, "bytes": size, "bits_per_pixel": refined.bpp,
                    "target": target_bpp, "step": refined.step, "steps": steps, "unrefined": first, "refined": last})
    else:
        say(f"{path}: {size} bytes, {_told(last)}; unrefined {_told(first)}; {at_quality(model.name, model.quality)}")


def _told(row: dict[str, Any]) -> str:
    regions = [f"{row[key]:.2f} dB {where} the region" for key, where in (("psnr_fg", "inside"), ("psnr_bg", "outside"))
               if key in row]
    terms = [f"{name} {row[name]:.4g}" for name in ("perceptual", "style") if name in row]
    return ", ".join([f"{row['bpp']:.4f} bits per pixel", f"{row['psnr']:.2f} dB", *regions, *terms])


def _box(text: str) -> tuple[int, ...]:
    try:
        x, y, w, h = (int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--roi-box is {text!r}: expected four whole numbers, X,Y,W,H") from None
    return x, y, w, h


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Call it with the rows of the history: a bar if stderr is a terminal, else ten lines at most."""
    terminal = console(stderr=True)
    if terminal is None:
        told = -1

        def line(row: dict[str, Any]) -> None:
            nonlocal told
            if row["step"] * 10 // steps > told:
                told = row["step"] * 10 // steps
                say(f"step {row['step']}/{steps}  {_told(row)}")

        yield line
        return
    with step_bar(terminal, steps, 0, _told) as bar:
        yield bar
