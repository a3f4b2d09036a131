"""Distances of a stream of pairs: decoded ahead in threads, batched by size, given back in order.

A distance depends on the other pairs of its batch in its last bits. So that a run that is resumed, or spread over
machines, gives the numbers of one that is not, no batch reaches over a multiple of :func:`block_rows`, and how pairs
are put together depends on nothing but the pairs of the block and ``batch_size``.
"""

from __future__ import annotations

import math
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generator, Hashable, Iterable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from .. import images, opinion
from .._utils.io import open_regular
from ..base import FullReferenceMetric
from ..cells import wide
from ..errors import CpipsError, ImageError
from .references import SharedReferences
from .urls import Access, fetch, is_url

MAX_PIXELS = 2_000_000  # of one side of a batch: an encoder's first features need about 500 bytes a pixel

@dataclass(frozen=True)
class Result:
    """The distance of a pair (and its map ``(H,W)``, if it was asked for), or the reason why there is none."""

    distance: float | None = None
    error: str | None = None
    map: Tensor | None = field(default=None, repr=False, compare=False)


def block_rows(batch_size: int) -> int:
    """Pairs after which batches begin anew: runs that begin at multiples of it give the same numbers bit for bit."""
    return 8 * batch_size


def score_pairs(
    pairs: Iterable[tuple[images.ImageLike, images.ImageLike] | str],
    metric: FullReferenceMetric,
    *,
    batch_size: int = 8,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    access: Access | None = None,
    maps: bool = False,
) -> Generator[Result, None, None]:
    """Distances of pairs of single images, in the order in which they come; ``pairs`` may be endless.

    A pair that cannot be compared gives a :class:`Result` with its error, and the others go on. Images of one size
    that come near each other share a batch. A reference that consecutive pairs share is decoded once, and encoded
    once by a metric that compares features.

    Args:
        pairs: (reference, image), each as :func:`cpips.images.as_batch` takes it or a URL that fsspec opens, one
            image each; or the reason why there is no pair, which becomes its error.
        batch_size: most pairs in a batch.
        workers: threads that decode.
        max_pixels: most pixels of a batch, in its references or its images; a larger pair goes alone.
        access: which URLs may be opened; default: all of :data:`cpips.batch.urls.SCHEMES` at public addresses.
        maps: give each result its map, too, of a metric that has one.

    Raises:
        ValueError: a batch size or a number of workers below 1.
    """
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size is {batch_size} and workers is {workers}: expected 1 or more")
    return _score(iter(pairs), metric, batch_size, workers, max_pixels, access, maps)


def as_numbers(distances: Tensor) -> list[float]:
    """Distances ``(N,)`` as numbers of the fewest digits, of float32 0.1 and not 0.10000000149011612: the same when read back."""
    return [float(str(value)) for value in wide(distances).cpu().numpy()]


def qualities(metric: FullReferenceMetric, distances: Sequence[float | None]) -> list[float | None]:
    """The expected opinion of people for each distance that a metric gave; None for None, and of a metric without a fit to opinions."""
    return [facts.get("quality") for facts in opinion.facts_of(metric, distances)]


# ---- the window -----------------------------------------------------------------------------------------------------


@dataclass
class _Item:
    """A pair on its way: being decoded, then decoded, then done."""

    block: int
    key: Hashable  # of the reference
    pixels: int
    futures: tuple[Future[Any], ...]
    decoded: tuple[Tensor, Tensor] | None = field(default=None)
    result: Result | None = field(default=None)

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """The pixels of one that is settled, and not done."""
        assert self.decoded is not None
        return self.decoded

    def settle(self) -> None:
        """Wait for the decoders."""
        if self.result is None and self.decoded is None:
            try:
                self.decoded = (self.futures[0].result(), self.futures[1].result())
                images.check_same_size(*self.decoded)
            except Exception as error:  # a decoder or file system may raise anything: it is this pair's, and no other's
                self.finish(Result(error=_reason(error)))

    def finish(self, result: Result) -> None:
        self.result, self.decoded, self.futures = result, None, ()  # the pixels are free again


def _score(pairs: Iterator[Any], metric: FullReferenceMetric, batch_size: int, workers: int,
           max_pixels: int, access: Access | None, maps: bool) -> Generator[Result, None, None]:
    window: deque[_Item] = deque()
    encoder = SharedReferences(metric)
    exhausted, count = False, 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="cpips-decode")
    last: tuple[Hashable, Future[Any]] | None = None  # the last reference, for the pair that repeats it
    try:
        while True:
            # twice a batch, so that two sizes that take turns still fill one; four batches of pixels at most
            while (not exhausted and len(window) < 2 * batch_size + workers
                   and (not window or sum(item.pixels for item in window if item.result is None) < 4 * max_pixels)):
                try:
                    pair = next(pairs)
                except StopIteration:
                    exhausted = True
                    break
                block, count = count // block_rows(batch_size), count + 1
                if isinstance(pair, str):
                    window.append(_Item(block, None, 0, (), result=Result(error=pair)))
                    continue
                reference, image = pair
                key = _key(reference)
                if last is None or last[0] != key:
                    last = (key, pool.submit(_decode, reference, metric, access))
                decoding = (last[1], pool.submit(_decode, image, metric, access))
                window.append(_Item(block, key, pixels_of(image), decoding))
            if not window:
                return
            if window[0].result is None:
                _compare_next(window, encoder, batch_size, max_pixels, maps)
            while window and (result := window[0].result) is not None:
                window.popleft()
                yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _compare_next(window: deque[_Item], encoder: SharedReferences, batch_size: int, max_pixels: int,
                  maps: bool) -> None:
    """Finish the head of the window, and with it others of its size."""
    head = window[0]
    head.settle()
    if head.decoded is None:
        return
    height, width = head.decoded[0].shape[2:]
    room = max(1, min(batch_size, max_pixels // (height * width)))
    batch: list[_Item] = []
    for item in islice(window, 2 * batch_size):  # what lies ahead of it depends on the number of threads
        if len(batch) == room or item.block != head.block:
            break
        item.settle()
        if item.decoded is not None and item.decoded[0].shape == head.decoded[0].shape:
            batch.append(item)
    for item, result in zip(batch, _distances(batch, encoder, maps)):
        item.finish(result)


# ---- one batch ------------------------------------------------------------------------------------------------------


def _distances(batch: list[_Item], encoder: SharedReferences, maps: bool) -> list[Result]:
    try:
        with torch.inference_mode():
            references, compared = (torch.cat([item.pair[side] for item in batch]).to(encoder.metric.device) for side in (0, 1))
            distances, drawn = encoder.compare([item.key for item in batch], references, compared, batch[0].block, maps)
            values = as_numbers(distances)
    except Exception as error:
        if len(batch) > 1:  # find the pair that is to blame, or live with less memory
            return [_distances([item], encoder, maps)[0] for item in batch]
        if isinstance(error, (CpipsError, MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
            return [Result(error=_reason(error))]
        raise
    return [Result(error="the distance is NaN") if math.isnan(value) else Result(value, map=None if drawn is None else drawn[i, 0])
            for i, value in enumerate(values)]


class _Object:
    """The key of an image that is no file: itself."""

    def __init__(self, image: Any):
        self.image = image

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Object) and self.image is other.image

    def __hash__(self) -> int:
        return id(self.image)


def _key(image: Any) -> Hashable:
    """Equal for two images if they are one and the same file or object."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else _Object(image)


def _decode(image: images.ImageLike, metric: FullReferenceMetric, access: Access | None) -> Tensor:
    if is_url(image):
        batch = fetch(image, metric.background, access, metric.icc)
    else:
        batch = images.as_batch(image, background=metric.background, icc=metric.icc)
    if len(batch) != 1:
        raise ImageError(f"a pair holds single images, got a batch of {len(batch)}")
    return batch


def pixels_of(image: images.ImageLike) -> int:
    """How large the image is, before it is decoded; 0 where that is not to be had."""
    try:
        if isinstance(image, (str, os.PathLike)):
            with open_regular(image) as stream, Image.open(stream) as header:
                return header.width * header.height
        return math.prod(sorted(image.shape)[-2:]) if hasattr(image, "shape") else 0
    except Exception:  # the decoder will tell what is wrong with it
        return 0


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"out of memory: {text}".rstrip(": ")
    known = isinstance(error, (CpipsError, OSError))
    return text if known and text else f"{type(error).__name__}: {text}".rstrip(": ")
