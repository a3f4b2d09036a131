"""Videos frame by frame: distances of a video's frames to those of its reference, resumable, in constant memory.

Each frame is compared on its own. Nothing here models motion: flicker, judder, and how motion hides errors are not measured.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Generator, Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ._utils import notebook
from ._utils.io import OutputError, atomic, check_output, check_regular, stamp
from ._utils.journal import Journal, journal_path
from ._utils.optional import import_pandas, needing
from .base import FullReferenceMetric
from .batch.pairs import as_numbers, qualities
from .errors import ImageError, ModelError
from .printable import write_csv
from .viz import heatmap, maps

WORST = 3  # frames that are drawn
BATCH = 4  # frames of each video that are held at once


class VideoError(ImageError):
    """A video that cannot be read, or two that cannot be compared frame by frame; the message says how to fix it."""


@dataclass(frozen=True)
class Frame:
    """A frame's number and time (seconds from the begin of its file) in the image video, and its distance and quality."""

    number: int
    time: float | None
    distance: float
    quality: float | None


@dataclass(frozen=True)
class FramesResult:
    """All frames of a run, and what they were measured with.

    Attributes:
        frames: in the order of the videos.
        resumed: how many of them an earlier run had compared.
    """

    frames: tuple[Frame, ...]
    metric: str
    signature: str
    lower_is_better: bool
    resumed: int = 0

    def pooled(self) -> dict[str, dict[str, float]]:
        """Mean, median, and the values beyond which the worst 5 % and 1 % of the frames and the worst frame are.

        Of distances these are ``p50``, ``p95``, ``p99`` and ``max``; of quality, and of metrics for which higher is closer, ``p50``,
        ``p5``, ``p1`` and ``min``. Percentiles are those of a frame: nothing is interpolated.
        """
        found = {"distance": _pooled([frame.distance for frame in self.frames], self.lower_is_better)}
        rated = [frame.quality for frame in self.frames if frame.quality is not None]
        return {**found, **({"quality": _pooled(rated, False)} if rated else {})}

    def worst(self, count: int = WORST, apart: int = 1) -> list[Frame]:
        """The worst frames, worst first, no two of them fewer than ``apart`` frames from each other."""
        order = sorted(range(len(self.frames)), key=lambda i: self.frames[i].distance, reverse=self.lower_is_better)
        chosen: list[int] = []
        for i in order:
            if len(chosen) == count:
                break
            if all(abs(i - other) >= apart for other in chosen):
                chosen.append(i)
        return [self.frames[i] for i in chosen]

    def _repr_html_(self) -> str:
        pooled = [(what, ", ".join(f"{name} {value:.6g}" for name, value in values.items())) for what, values in self.pooled().items()]
        worst = [[frame.number, frame.time, frame.distance, frame.quality] for frame in self.worst()]
        return notebook.panel(f"{len(self.frames)} frames", pooled, body=notebook.table(["worst frames", "time", "distance", "quality"], worst),
                              notes=[self.signature, "no model of motion: each frame is compared on its own"])

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with the columns of the CSV.

        Raises:
            CpipsError: pandas is not installed.
        """
        return import_pandas().DataFrame({"frame": [frame.number for frame in self.frames], "time": [frame.time for frame in self.frames],
                                          "distance": [frame.distance for frame in self.frames],
                                          "quality": [frame.quality for frame in self.frames]})


def _pooled(values: list[float], lower_is_better: bool) -> dict[str, float]:
    ends = {"p50": 50, "p95": 95, "p99": 99, "max": 100} if lower_is_better else {"p50": 50, "p5": 5, "p1": 1, "min": 0}
    array = np.asarray(values, np.float64)
    return {"mean": float(array.mean()), **{name: float(np.percentile(array, share, method="nearest")) for name, share in ends.items()}}


# ---- reading --------------------------------------------------------------------------------------------------------


class Video:
    """A video file, of which frames are decoded one after the other.

    Args:
        path: any file that FFmpeg's libraries read.

    Raises:
        VideoError: it cannot be read, or has no video in it.
        CpipsError: PyAV is not installed (extra ``video``).
    """

    def __init__(self, path: Path):
        with needing("reading a video", "video"):
            import av
        self.path = path
        if not path.exists():
            raise VideoError(f"no such file: {path}")
        check_regular(path)
        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise VideoError(f"{path} has no video stream: give a video file")
                stream = container.streams.video[0]
                self.width, self.height = stream.width, stream.height
                self.rate: Fraction | None = stream.average_rate
                self.count = stream.frames  # 0 where the file does not say
        except av.FFmpegError as error:
            raise VideoError(f"{path} is not a video that FFmpeg's libraries can read ({error.strerror}): give another file") from None

    def frames(self) -> Generator[tuple[float | None, np.ndarray[Any, Any]], None, None]:
        """(time in seconds, pixels ``(H,W,3)`` RGB, uint8, or uint16 if the video has more than 8 bits).

        Raises:
            VideoError: a frame that cannot be decoded, or one of another size.
        """
        import av

        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for number, frame in enumerate(container.decode(stream)):
                    if (frame.width, frame.height) != (self.width, self.height):
                        raise VideoError(f"frame {number} of {self.path} has {frame.width}x{frame.height} px, and the video "
                                         f"{self.width}x{self.height}: videos that change their size are not compared")
                    deep = max(component.bits for component in frame.format.components) > 8
                    yield frame.time, frame.to_ndarray(format="rgb48le" if deep else "rgb24")
        except av.FFmpegError as error:
            raise VideoError(f"{self.path} is damaged or cut short ({error.strerror}): fetch or encode it again") from None


def check_pair(reference: Video, video: Video, *, any_rate: bool = False) -> None:
    """Refuse two videos whose frames do not belong together.

    Raises:
        VideoError: other sizes or other frame rates.
    """
    if (reference.width, reference.height) != (video.width, video.height):
        raise VideoError(f"{reference.path} has {reference.width}x{reference.height} px and {video.path} {video.width}x{video.height}: scale "
                         "one of them first (how is part of the measurement, so cpips does not choose)")
    if not any_rate and reference.rate != video.rate:
        raise VideoError(f"{reference.path} has {_rate(reference)} and {video.path} {_rate(video)}: their frames do not show the same "
                         "moments; convert one of them, or compare frame by frame all the same with --any-rate")


def _rate(video: Video) -> str:
    return "an unknown frame rate" if video.rate is None else f"{float(video.rate):.6g} frames a second"


# ---- comparing ------------------------------------------------------------------------------------------------------


def compare_frames(
    reference: Path,
    video: Path,
    metric: FullReferenceMetric,
    output: Path,
    *,
    every: int = 1,
    offset: int = 0,
    shortest: bool = False,
    any_rate: bool = False,
    batch_size: int = BATCH,
    force: bool = False,
    restart: bool = False,
    progress: Callable[[Frame, int], None] = lambda frame, total: None,
) -> FramesResult:
    """Write ``output``, a CSV with frame, time, distance, quality and signature of each frame.

    Results are appended to ``OUTPUT.journal.jsonl`` as they come; interrupted and called again, the run resumes, and the
    output appears only when complete. Memory does not grow with the length of the videos.

    Args:
        every: compare every n-th frame.
        offset: how many frames the video begins after its reference: so many of its first frames are left out; if it is
            negative, so many of the reference's.
        shortest: stop where the shorter video ends. By default, another number of frames is an error.
        any_rate: compare frame by frame, whatever the frame rates are.
        progress: called after each frame, with the number of frames that is expected (0: unknown).

    Raises:
        VideoError: videos that cannot be read, or that have other sizes, rates or numbers of frames.
        OutputError: the output exists or cannot be written.
        TableError: a journal of another run lies beside it.
    """
    if every < 1 or batch_size < 1:
        raise ModelError(f"every is {every} and batch_size is {batch_size}: expected 1 or more")
    if output.suffix.lower() != ".csv":
        raise OutputError(f"{output}: the table of frames is a CSV: name it .csv")
    check_output(output, [reference, video], force=force)
    x, y = Video(reference), Video(video)
    check_pair(x, y, any_rate=any_rate)
    expected = -(-max(0, min(x.count + min(offset, 0), y.count - max(offset, 0))) // every) if x.count and y.count else 0
    header = dict(journal="frames", signature=metric.signature, videos=[[str(path.absolute()), stamp(path)] for path in (reference, video)],
                  every=every, offset=offset, batch=batch_size, rows=1 << 40)
    with closing(Journal(journal_path(output), header, _frame, restart, output=output)) as journal:
        found = list(journal.rows)
        for frame in found:
            progress(frame, expected)
        known = len(found)
        pairs = _pairs(x, y, every, offset, shortest)
        begin = known - known % batch_size  # so that batches, and with them last bits, are those of a run without a break
        with closing(pairs):
            for _ in islice(pairs, begin):
                pass
            position = begin
            while batch := list(islice(pairs, batch_size)):
                for frame in _compare(batch, metric)[max(0, known - position):]:
                    journal.append(number=frame.number, time=frame.time, distance=frame.distance, quality=frame.quality)
                    found.append(frame)
                    progress(frame, expected)
                position += len(batch)
        if not found:
            raise VideoError(f"{reference} and {video} have no frames in common: give longer videos, or another --offset")
        result = FramesResult(tuple(found), metric.name, metric.signature, metric.lower_is_better, known)
        _write(output, result)
        journal.remove()
    return result


@dataclass
class _Pair:
    number: int
    time: float | None
    reference: np.ndarray[Any, Any]
    image: np.ndarray[Any, Any]


def _pairs(x: Video, y: Video, every: int, offset: int, shortest: bool) -> Generator[_Pair, None, None]:
    """The frames that belong together.

    Raises:
        VideoError: one video ends before the other.
    """
    with closing(x.frames()) as ours, closing(y.frames()) as theirs:
        left, right = islice(ours, max(0, -offset), None), islice(theirs, max(0, offset), None)
        count = 0
        while True:
            one, other = next(left, None), next(right, None)
            if one is None or other is None:
                break
            if count % every == 0:
                yield _Pair(count + max(0, offset), other[0], one[1], other[1])
            count += 1
        if (one is None) != (other is None) and not shortest:
            ended, longer = (x, y) if one is None else (y, x)
            raise VideoError(f"{ended.path} ends after {count} frames{' in common' if offset else ''}, before {longer.path}: give videos "
                             "of one length, shift them with --offset, or stop there with --shortest (what was compared is kept)")


def _compare(batch: list[_Pair], metric: FullReferenceMetric) -> list[Frame]:
    x, y = (torch.stack([tensor_of(pixels) for pixels in side]).to(metric.device)
            for side in ([pair.reference for pair in batch], [pair.image for pair in batch]))
    with torch.inference_mode():
        values = as_numbers(metric(x, y, reduction="none"))
    return [Frame(pair.number, pair.time, value, quality) for pair, value, quality in zip(batch, values, qualities(metric, values))]


def tensor_of(pixels: np.ndarray[Any, Any]) -> Tensor:
    """``(3,H,W)`` float32 in [0,1] of a frame's pixels."""
    return torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).permute(2, 0, 1).contiguous()


def _frame(entry: Mapping[str, Any]) -> Frame:
    return Frame(int(entry["number"]), entry["time"], float(entry["distance"]), entry["quality"])


def _write(path: Path, result: FramesResult) -> None:
    rows = [[frame.number, "" if frame.time is None else f"{frame.time:.6f}", frame.distance,
             "" if frame.quality is None else frame.quality, result.signature] for frame in result.frames]
    with atomic(path) as stream:
        write_csv(stream, [["frame", "time", "distance", "quality", "signature"], *rows])


# ---- the worst frames -----------------------------------------------------------------------------------------------


def figure_names(frames: list[Frame]) -> list[str]:
    """The files that :func:`draw_frames` writes."""
    return [f"frame-{frame.number:06d}.png" for frame in frames]


def draw_frames(frames: list[Frame], reference: Path, video: Path, metric: FullReferenceMetric, folder: Path, *, offset: int = 0) -> list[Path]:
    """Save frames as PNG: both images, and where they differ if the metric has a map; else both side by side.

    The videos are decoded again, up to the last of the frames.

    Args:
        offset: as of :func:`compare_frames`.

    Raises:
        VideoError: as :func:`compare_frames`.
        OSError: a file cannot be written.
    """
    wanted = {frame.number: (frame, name) for frame, name in zip(frames, figure_names(frames))}
    written: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    with closing(_pairs(Video(reference), Video(video), 1, offset, True)) as pairs:
        for pair in pairs:
            if pair.number not in wanted:
                continue
            frame, name = wanted[pair.number]
            with atomic(folder / name) as stream:
                _figure(pair, frame, reference, video, metric).save(stream, "PNG")
            written.append(folder / name)
            if len(written) == len(wanted):
                break
    return sorted(written)


def _figure(pair: _Pair, frame: Frame, reference: Path, video: Path, metric: FullReferenceMetric) -> Image.Image:
    x, y = (tensor_of(pixels)[None] for pixels in (pair.reference, pair.image))
    if hasattr(metric, "map"):
        moment = "" if frame.time is None else f", {frame.time:.3f} s"
        return heatmap.render(x, y, maps.measure(metric, x, y), distance=frame.distance, footer=metric.signature,
                              names=(reference.name, f"{video.name}, frame {frame.number}{moment}"))
    return heatmap.side_by_side(x[0], y[0])
