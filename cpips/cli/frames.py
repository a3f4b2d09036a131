"""``cpips frames``: a video against its reference, frame by frame."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .._utils.console import DeviceOption, DtypeOption, ForceOption, JsonOption, counting, number, print_json, print_table, say
from .metric import MetricOption, WeightsOption, make_metric

NOTE = "each frame is compared on its own: flicker, judder and other faults of motion are not measured"


def frames(
    reference: Annotated[Path, typer.Argument(metavar="REF", show_default=False, help="The video to compare with.")],
    video: Annotated[Path, typer.Argument(metavar="VIDEO", show_default=False, help="A video of the same size, frame rate and length.")],
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="OUT.csv", show_default=False, help="The table to write: frame, time, distance, quality.")],
    figures: Annotated[Optional[Path], typer.Option(
        "--figures", metavar="DIR", show_default=False, help="Also draw the worst frames into this folder.")] = None,
    worst: Annotated[int, typer.Option(min=1, metavar="N", help="How many of the worst frames, at least half a second apart.")] = 3,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Compare every N-th frame.")] = 1,
    offset: Annotated[int, typer.Option(
        metavar="N", help="Leave out the first N frames of VIDEO; if N is negative, those of REF.")] = 0,
    shortest: Annotated[bool, typer.Option("--shortest", help="Stop where the shorter video ends. Default: an error.")] = False,
    any_rate: Annotated[bool, typer.Option("--any-rate", help="Compare frame by frame, whatever the frame rates are.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Frames that are compared at once.")] = 4,
    metric: MetricOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    restart: Annotated[bool, typer.Option("--restart", help="Forget what an interrupted run has done.")] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare a video with its reference, frame by frame (extra `video`). Motion is not modeled: flicker and judder are not seen.

    Prints the mean, the median, and the values that 5 % and 1 % of the frames are worse than. After an interruption, the same
    command resumes.
    """
    from .._utils.io import OutputError, check_outputs
    from ..frames import Frame, Video, check_pair, compare_frames, draw_frames, figure_names

    check_outputs([output], [reference, video, metric], force=force)
    if figures is not None and figures.exists() and not figures.is_dir():
        raise OutputError(f"{figures} is a file: name a folder for the worst frames")
    videos = Video(reference), Video(video)
    check_pair(*videos, any_rate=any_rate)
    measure = make_metric(metric, device, dtype, None, weights)
    with counting("comparing") as advance:

        def count(frame: Frame, total: int) -> None:
            advance(None, total)

        found = compare_frames(reference, video, measure, output, every=every, offset=offset, shortest=shortest, any_rate=any_rate,
                               batch_size=batch_size, force=force, restart=restart, progress=count)
    rate = videos[0].rate
    chosen = found.worst(worst, max(1, round(float(rate) / 2 / every)) if rate else 1)
    drawn: list[Path] = []
    if figures is not None:
        check_outputs([figures / name for name in figure_names(chosen) if (figures / name).exists()], [reference, video], force=force)
        drawn = draw_frames(chosen, reference, video, measure, figures, offset=offset)
    pooled = found.pooled()
    if as_json:
        print_json({"signature": found.signature, "metric": found.metric, "reference": str(reference), "video": str(video),
                    "frames": len(found.frames), "resumed": found.resumed, **pooled, "worst": [_row(frame) for frame in chosen],
                    "output": str(output), "figures": [str(path) for path in drawn], "note": NOTE})
        return
    names = list(dict.fromkeys(name for values in pooled.values() for name in values))
    print_table(["", *names], [[what, *(number(values[name]) if name in values else "" for name in names)] for what, values in pooled.items()],
                notes=[found.signature, NOTE], right=names)
    resumed = f", {found.resumed} of them by an earlier run" if found.resumed else ""
    say(f"{len(found.frames)} frames compared{resumed}: {output}")
    for frame in chosen:
        moment = "" if frame.time is None else f" at {frame.time:.3f} s"
        say(f"worst: frame {frame.number}{moment}, {number(frame.distance)}")
    for path in drawn:
        say(f"drawn: {path}")


def _row(frame: Any) -> dict[str, Any]:
    return {"frame": frame.number, "time": frame.time, "distance": frame.distance, "quality": frame.quality}
