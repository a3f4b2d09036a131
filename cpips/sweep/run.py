"""Measure encoders at a ladder of settings on each image; a journal makes an interrupted run resume."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from .._utils.io import stamp
from .._utils.journal import Journal, journal_path
from ..base import FullReferenceMetric
from ..encoding import Encoder, Search
from ..encoding.formats import Setting
from ..errors import CpipsError, EncodingError

POINTS = 8  # settings of an encoder
_ENDS = 0.05, 0.95  # of the list of settings: beyond, nobody encodes


@dataclass(frozen=True)
class Point:
    """One image at one setting; ``quality`` is None for a metric without a fit to human ratings."""

    setting: Setting
    bytes: int
    bits_per_pixel: float
    distance: float
    quality: float | None
    psnr: float


@dataclass(frozen=True)
class Measured:
    """One image and one encoder: a point for each setting, or the reason why there are none."""

    image: str
    codec: str
    points: tuple[Point, ...] = ()
    error: str | None = None


def ladder(encoder: Encoder, points: int = POINTS) -> list[int]:
    """The places of about ``points`` settings, evenly over the encoder's list without its ends.

    Example:
        >>> encoder = cpips.encoding.open_encoder("jpeg")
        >>> [encoder.settings[place] for place in cpips.sweep.ladder(encoder, 4)]
        [6, 36, 65, 95]
    """
    count = len(encoder.settings)
    if count <= points:
        return list(range(count))
    return sorted({int(round(share * (count - 1))) for share in np.linspace(*_ENDS, points)})


def run_sweep(
    paths: Sequence[Path],
    encoders: Mapping[str, Encoder],
    metric: FullReferenceMetric,
    output: Path,
    *,
    points: int = POINTS,
    restart: bool = False,
    progress: Callable[[int, Measured], None] = lambda row, measured: None,
) -> list[Measured]:
    """Encode, decode and measure each image with each encoder at a ladder of settings.

    Results are appended to ``OUTPUT.journal.jsonl``, from which a run that was interrupted resumes. The journal stays until
    :func:`finish` removes it: what is made of the results comes later.

    Args:
        encoders: by the names that tables call them by.
        output: the file that is made of the results, which the journal lies beside.

    Raises:
        EncodingError: no images or encoders, or too few points for a curve.
        TableError: the journal of another run lies there.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> Image.radial_gradient("L").resize((64, 64)).save("a.png")
        >>> found = cpips.sweep.run_sweep([Path("a.png")], {"jpeg": cpips.encoding.open_encoder("jpeg")},
        ...                               cpips.CPIPS(), Path("sweep.json"), points=4)
        >>> [point.setting for point in found[0].points]
        [6, 36, 65, 95]
    """
    if not paths or not encoders:
        raise EncodingError(f"got {len(paths)} images and {len(encoders)} codecs: expected one of each at least")
    if points < 2:
        raise EncodingError(f"points is {points}: expected 2 or more settings of a codec (BD-rates need 4)")
    pairs = [(path, name) for path in paths for name in encoders]
    header = {"journal": 1, "signature": metric.signature, "points": points, "background": metric.background, "rows": len(pairs),
              "images": [os.fspath(path.absolute()) for path in paths],
              "codecs": {name: encoder.description for name, encoder in encoders.items()}}
    journal = Journal(journal_path(output), header, _measured, restart, lambda i: stamp(pairs[i][0]), output)
    embedding: tuple[Path, Any] | None = None
    with closing(journal):
        found = list(journal.rows)
        for i, one in enumerate(found):
            progress(i, one)
        for i in range(len(found), len(pairs)):
            path, name = pairs[i]
            mark = stamp(path)
            try:
                search = Search(path, encoders[name], metric)
                if embedding is not None and embedding[0] == path:
                    search.embedding = embedding[1]
                one = Measured(str(path), name, tuple(_point(search, place) for place in ladder(encoders[name], points)))
                embedding = path, search.embedding
            except CpipsError as error:
                one = Measured(str(path), name, error=str(error))
            journal.append(stamp=mark, measured=asdict(one))
            found.append(one)
            progress(i, one)
    return found


def finish(output: Path) -> None:
    """Remove the journal of a run whose results are written."""
    journal_path(output).unlink(missing_ok=True)


def _point(search: Search, place: int) -> Point:
    trial = search.trial(place)
    assert trial.distance is not None and trial.psnr is not None
    return Point(trial.setting, trial.bytes, 8 * trial.bytes / (search.width * search.height), trial.distance, trial.quality,
                 trial.psnr)


def _measured(entry: dict[str, Any]) -> Measured:
    stored = entry["measured"]
    points = tuple(Point(**{**point, "psnr": float(point["psnr"])}) for point in stored["points"])  # infinity is a string there
    return Measured(stored["image"], stored["codec"], points, stored["error"])
