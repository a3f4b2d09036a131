"""Golden files: an image that a test made against one that was accepted before."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import create_metric, images
from .._utils.io import atomic, check_regular, read_bytes
from ..base import FullReferenceMetric
from ..errors import CpipsError, ImageError
from ..pretrained import DEFAULT_MODEL
from . import page
from .check import DIFFERENT, MISSING, Limits, Outcome, check_images

SUFFIX = ".png"  # golden files lose nothing of what a test made, but for bits beyond 8 a channel


class GoldenError(CpipsError, AssertionError):
    """An image that differs from its golden file, or a golden file that is missing; the message says what to do.

    Attributes:
        outcome: what was measured.
    """

    def __init__(self, message: str, outcome: Outcome):
        super().__init__(message)
        self.outcome = outcome


def assert_images_close(
    actual: images.ImageLike,
    golden: str | os.PathLike[str],
    *,
    min_quality: float | None = None,
    max_distance: float | None = None,
    metric: str | FullReferenceMetric | None = None,
    background: images.Background = None,
    update: bool = False,
    page_file: str | os.PathLike[str] | None = None,
) -> Outcome:
    """Fail if an image does not look like its golden file. In pytest, use the fixture of this name.

    Args:
        actual: one image, as :func:`cpips.images.as_batch` takes it, or a tensor ``(3,H,W)``.
        golden: the file of the accepted image.
        min_quality, max_distance: see :class:`Limits`; one of them, or both.
        metric: a metric, or its name for :func:`cpips.create_metric`; default: the default model.
        background: the color on which images with alpha are laid; default: they are refused. A metric that is given as an
            object has its own.
        update: write ``actual`` as the golden file where that is missing or differs. The file is replaced atomically.
        page_file: write a page of the difference there if the image differs. An existing file is replaced.

    Raises:
        GoldenError: the images differ, also in size, or there is no golden file; an ``AssertionError``.
        ImageError: an image that cannot be read or compared, or a golden file that is not named ``.png``.
        ModelError: no limit, or one that does not fit the metric.

    Example:
        >>> from cpips.regression import assert_images_close
        >>> image = torch.rand(3, 48, 48)
        >>> assert_images_close(image, "button.png", min_quality=4.5, update=True).status
        'missing'
        >>> assert_images_close(image, "button.png", min_quality=4.5).status
        'ok'
    """
    __tracebackhide__ = True  # of pytest: it shows the line of the test
    limits, measure = Limits(min_quality, max_distance), _measure(metric, background)
    limits.check_metric(measure)
    path = Path(golden)
    outcome = compare_with_golden(actual, path, limits, measure, reread=update)
    if outcome.reason and update:
        write_golden(actual, path, measure.background)
    elif outcome.reason:
        if page_file is not None:
            page.write_cards([card_of(outcome, actual, min_quality=min_quality, max_distance=max_distance, metric=measure)],
                             Path(page_file))
        raise GoldenError(message(outcome), outcome)
    return outcome


def compare_with_golden(actual: images.ImageLike, golden: Path, limits: Limits, metric: FullReferenceMetric, *,
                        reread: bool = False) -> Outcome:
    """What a check says of an image and its golden file.

    Args:
        reread: a golden file that cannot be read counts as different; it is about to be replaced.

    Raises:
        ImageError, ModelError: as :func:`assert_images_close`.
    """
    if golden.suffix.lower() != SUFFIX:
        raise ImageError(f"the golden file {golden} is not named {SUFFIX}: golden files are PNG, which loses nothing")
    if isinstance(actual, (str, os.PathLike)) and golden.exists() and os.path.exists(actual) and os.path.samefile(actual, golden):
        raise ImageError(f"the image is the golden file {golden} itself: compare what the test made")
    if not golden.exists():
        check_images(actual, actual, limits, metric, name=golden.name)  # an image that could never be a golden file
        return Outcome(golden.name, MISSING, f"there is no golden file {golden}", reference=golden)
    try:
        reference = images.load(golden, metric.background, metric.icc)
    except ImageError as error:
        if not reread:
            raise
        return Outcome(golden.name, DIFFERENT, str(error), reference=golden)
    outcome = check_images(reference, actual, limits, metric, name=golden.name)
    return Outcome(outcome.name, outcome.status, outcome.reason, outcome.distance, outcome.quality, outcome.worst, golden,
                   Path(actual) if isinstance(actual, (str, os.PathLike)) else None)


def card_of(outcome: Outcome, actual: images.ImageLike, *, min_quality: float | None = None, max_distance: float | None = None,
            metric: str | FullReferenceMetric | None = None, background: images.Background = None) -> dict[str, Any]:
    """The card of a page about an image and its golden file; the settings are those of :func:`assert_images_close`."""
    golden = None if outcome.status == MISSING else outcome.reference
    return page.card(outcome, Limits(min_quality, max_distance), _measure(metric, background), golden, actual)


def message(outcome: Outcome, page_file: Path | None = None) -> str:
    """What a failed test says: what differs, and how to accept or look at it."""
    if outcome.status == MISSING:
        return f"{outcome.reason}: run pytest with --update-golden to write it, look at it, and add it to version control"
    where = "" if outcome.worst is None else f", most in the box {outcome.worst.box} (x,y,w,h)"
    seen = f"; see {page_file}" if page_file is not None else ""
    return (f"the image differs from the golden file {outcome.reference}: {outcome.reason}{where}{seen}. If the new image is right, "
            "accept it with --update-golden")


def write_golden(actual: images.ImageLike, golden: Path, background: images.Background = None) -> None:
    """Write an image as a golden file, atomically; its folder is made where there is none. The bytes of a PNG file stay as they
    are, and anything else is stored at 8 bits a channel.

    Raises:
        ImageError: an image that cannot be read.
        OSError: the file cannot be written.
    """
    golden.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(actual, (str, os.PathLike)) and Path(actual).suffix.lower() == SUFFIX:
        check_regular(actual)
        content = read_bytes(actual)
        with atomic(golden) as stream:
            stream.write(content)
        return
    pixels = images.to_pil(images.single(actual, background)[0])
    with atomic(golden) as stream:
        pixels.save(stream, "PNG")


def _measure(metric: str | FullReferenceMetric | None, background: images.Background) -> FullReferenceMetric:
    if isinstance(metric, FullReferenceMetric):
        return metric
    return _made(metric or DEFAULT_MODEL, background if background is None or isinstance(background, str) else tuple(background))


@lru_cache(maxsize=4)
def _made(name: str, background: str | tuple[float, ...] | None) -> FullReferenceMetric:
    """Tests compare many images with one metric."""
    return create_metric(name, background=background)
