"""HTML of results in notebooks: text, tables and images inline, everything escaped, no colors of its own."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any, Iterable, Sequence

if TYPE_CHECKING:
    from PIL import Image

SHOWN = 10  # rows of a table


def panel(title: str, facts: Iterable[tuple[str, object]], *, pictures: Iterable[tuple[str, Image.Image]] = (),
          notes: Iterable[str] = (), body: str = "") -> str:
    """A title, facts as a list, images with captions, ``body`` (HTML from here), and notes in small print."""
    lines = "".join(f"<tr><th style='text-align:left'>{_text(key)}</th><td style='text-align:left'>{_text(value)}</td></tr>"
                    for key, value in facts)
    figures = "".join(f"<figure style='display:inline-block;margin:.3em .6em .3em 0'>{image(picture, caption)}"
                      f"<figcaption style='font-size:.85em;opacity:.75'>{_text(caption)}</figcaption></figure>" for caption, picture in pictures)
    small = "".join(f"<div style='font-size:.85em;opacity:.75'>{_text(note)}</div>" for note in notes)
    return (f"<div class='cpips-result'><div><strong>{_text(title)}</strong></div>"
            + (f"<table><tbody>{lines}</tbody></table>" if lines else "") + body + figures + small + "</div>")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of the first rows, and how many there are in all."""
    head = "".join(f"<th>{_text(name)}</th>" for name in columns)
    lines = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows[:SHOWN])
    more = f"<div style='font-size:.85em;opacity:.75'>{SHOWN} of {len(rows)} rows</div>" if len(rows) > SHOWN else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>{more}"


def image(picture: Image.Image, alt: str) -> str:
    """An image inline, as PNG."""
    return f"<img style='max-width:100%' alt='{html.escape(alt, quote=True)}' src='{data_uri(picture, 'PNG')}'>"


def data_uri(picture: Image.Image, kind: str = "WEBP", **settings: Any) -> str:
    """An image as a URI that holds it, with the ``settings`` of Pillow's encoder."""
    stream = io.BytesIO()
    picture.save(stream, kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value), quote=True)
