"""``cpips encode``: encode images at the setting that just meets a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, Sequence

import typer

from .._utils.console import (
    BackgroundOption, DeviceOption, DtypeOption, ForceOption, IccOption, JsonOption, counting, fail, number, print_json, print_table,
    say)
from .metric import MetricOption, WeightsOption, make_metric, rated

if TYPE_CHECKING:
    from ..encoding import Encoded, Encoder, Goal
    from ..encoding.files import Row, Saved

FormatOption = Annotated[Optional[str], typer.Option(
    "--format", metavar="NAME", show_default=False,
    help="jpeg, jpeg-444, webp, avif, avif-420, jxl, jp2 or cpz; options of the writer after a colon, as in avif:speed=6. "
    "Default: what the suffix of OUT says.")]


def encode(
    source: Annotated[Path, typer.Argument(metavar="IMG|FOLDER", show_default=False, help="An image, or a folder of images.")],
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="OUT", show_default=False, help="The file to write; of a folder, the folder.")],
    target: Annotated[Optional[float], typer.Option(
        metavar="Q", show_default=False, help="The least quality: 5 imperceptible ... 1 very annoying; 4.5 is hardly visible.")] = None,
    target_distance: Annotated[Optional[float], typer.Option(
        metavar="D", show_default=False, help="The largest distance of the metric.")] = None,
    target_psnr: Annotated[Optional[float], typer.Option(metavar="DB", show_default=False, help="The least PSNR.")] = None,
    max_bytes: Annotated[Optional[int], typer.Option(
        metavar="N", show_default=False, help="The largest file; gives the best setting that fits.")] = None,
    format: FormatOption = None,
    encoder: Annotated[Optional[str], typer.Option(
        metavar="TEMPLATE", show_default=False,
        help="A program instead of --format, run without a shell: 'cwebp -quiet -q {q} {in} -o {out}'; {in} is a PNG file.")] = None,
    decoder: Annotated[Optional[str], typer.Option(
        metavar="TEMPLATE", show_default=False,
        help="With --encoder: a program that decodes {in} to the PNG file {out}. Default: Pillow.")] = None,
    settings: Annotated[str, typer.Option(
        "--range", metavar="LOW:HIGH", help="With --encoder: the integers {q} of the smallest and the largest files.")] = "0:100",
    suffix: Annotated[Optional[str], typer.Option(
        metavar=".EXT", show_default=False, help="With --encoder and a folder: the suffix of the files.")] = None,
    encodes: Annotated[int, typer.Option(min=1, metavar="N", help="Most encodes of an image.")] = 8,
    fixed: Annotated[str, typer.Option(
        metavar="SETTING", help="Of a folder: compare with one setting for all images; 'best' for the smallest that meets the target "
        "as often, 'none' for no comparison.")] = "best",
    table: Annotated[Optional[Path], typer.Option(
        metavar="CSV", show_default=False, help="Of a folder: settings, sizes and qualities. Default: encode.csv in OUT.")] = None,
    nearest: Annotated[bool, typer.Option(
        "--write-nearest", help="Write the nearest file where the target cannot be met.")] = False,
    metric: MetricOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    background: BackgroundOption = None,
    icc: IccOption = True,
    force: ForceOption = False,
    restart: Annotated[bool, typer.Option("--restart", help="Of a folder: discard the results of an interrupted run.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Encode an image, or a folder of images, at the setting that just meets a target.

    One of --target, --target-distance, --target-psnr and --max-bytes is needed. If no setting meets the target, nothing is
    written unless --write-nearest is given, the nearest is reported, and the exit code is 1. Outputs hold sRGB pixels without
    metadata. A folder is resumed after an interruption, and ends in a table.
    """
    from .._utils.io import check_output
    from ..encoding import Goal
    from ..encoding.target import KINDS
    from ..errors import EncodingError

    given = {kind: value for kind, value in zip(KINDS, (target, target_distance, target_psnr, max_bytes)) if value is not None}
    if len(given) != 1:
        raise typer.BadParameter(f"expected one of {', '.join(KINDS.values())}, got {len(given)} of them")
    [(kind, value)] = given.items()
    goal = Goal(kind, float(value))
    if not source.is_dir():
        if table is not None or restart or suffix:
            raise EncodingError("--table, --restart and --suffix belong to a folder, and the input is not one")
        check_output(output, [source, metric], force=force)
        chosen = _encoder(format, encoder, decoder, settings, output.suffix)
        _one(source, output, chosen, goal, make_metric(metric, device, dtype, background, weights, icc), encodes, nearest, as_json)
        return
    chosen = _encoder(format, encoder, decoder, settings, suffix or "", folder=True)
    paths, outputs = _files_of(source, output, chosen)
    if output.exists() and not output.is_dir():
        raise EncodingError(f"{output} is a file, and {source} a folder: name a folder")
    if table is not None:
        check_output(table, [source, metric], force=force)
    made = make_metric(metric, device, dtype, background, weights, icc)
    goal.check(made)
    output.mkdir(parents=True, exist_ok=True)
    _many(paths, outputs, chosen, goal, made, table or output / "encode.csv", as_json, encodes=encodes,
          fixed=None if fixed == "none" else fixed, nearest=nearest, force=force, restart=restart)


def _encoder(format: str | None, template: str | None, decoder: str | None, settings: str, suffix: str,
             folder: bool = False) -> Encoder:
    """The encoder that the options and the output's suffix ask for."""
    from ..encoding import CommandEncoder, open_encoder
    from ..encoding.formats import SUFFIXES
    from ..errors import EncodingError

    if template is not None:
        if format is not None:
            raise EncodingError("--format and --encoder are both given: leave one out")
        if not suffix.startswith(".") or len(suffix) < 2:
            raise EncodingError("--encoder needs the suffix of its files: " +
                                ("--suffix .webp, say" if folder else "give OUT one, as in photo.webp"))
        low, colon, high = settings.partition(":")
        try:
            return CommandEncoder(template, decoder=decoder, low=int(low), high=int(high), suffix=suffix)
        except ValueError as error:
            raise EncodingError(f"--range is {settings!r}: expected two integers, as in 0:100") from error
    if decoder is not None:
        raise EncodingError("--decoder belongs to --encoder")
    known = SUFFIXES.get(suffix.lower())
    if format is None and known is None:
        raise EncodingError("a folder needs --format: jpeg, webp, avif, say" if folder else
                            f"the suffix {suffix!r} says no format: choose from {', '.join(SUFFIXES)}, or pass --format")
    chosen = open_encoder(format or known or "")
    if not folder and known != SUFFIXES[chosen.suffix]:
        raise EncodingError(f"--format {format} writes {chosen.suffix} files, and OUT ends in {suffix!r}: change one of them")
    return chosen


def _files_of(source: Path, output: Path, encoder: Encoder) -> tuple[list[Path], list[Path]]:
    from .._utils.io import list_inputs
    from ..errors import EncodingError

    paths = list_inputs(source, output)
    if not paths:
        raise EncodingError(f"no images below {source}")
    return paths, [output / path.relative_to(source).with_suffix(encoder.suffix) for path in paths]


def _one(source: Path, output: Path, encoder: Encoder, goal: Goal, metric: Any, encodes: int, nearest: bool,
         as_json: bool) -> None:
    from ..encoding import Search

    found = Search(source, encoder, metric).run(goal, encodes)
    written = found.met or nearest
    if written:
        found.save(output)
    if as_json:
        print_json({"signature": metric.signature, "encoder": encoder.description, "target": {goal.kind: goal.value}, "image": str(source),
                    "output": str(output) if written else None, "setting": found.setting, "met": found.met, "bytes": found.bytes,
                    "bits_per_pixel": found.bits_per_pixel, "quality": found.quality, "visibility": found.visibility,
                    "distance": found.distance, "psnr": found.psnr, "encodes": found.encodes,
                    "trials": [vars(trial) for trial in found.trials]})
    else:
        say(f"{output if written else 'nothing written'}: {_summary(found, metric)}")
    if not found.met:
        say(f"no setting of {encoder.name} that was tried meets {goal}: the nearest is {encoder.name} {found.setting} with "
            f"{_reached(found, goal)}" + ("" if nearest else "; --write-nearest writes it"), "yellow")
        raise typer.Exit(1)


def _summary(found: Encoded, metric: Any) -> str:
    from .. import opinion

    facts = opinion.facts(metric, found.distance)
    grade = rated(facts) if facts else f"distance {number(found.distance)}"
    return (f"setting {found.setting}, {found.bytes} bytes, {found.bits_per_pixel:.3f} bits per pixel, {grade}, PSNR "
            f"{found.psnr:.2f} dB, {found.encodes} encodes")


def _reached(found: Encoded, goal: Goal) -> str:
    value = {"quality": found.quality, "distance": found.distance, "psnr": found.psnr, "bytes": float(found.bytes)}[goal.kind]
    return f"{goal.kind} {value:.6g}"


def _many(paths: Sequence[Path], outputs: Sequence[Path], encoder: Encoder, goal: Goal, metric: Any, table: Path, as_json: bool,
          **settings: Any) -> None:
    from ..encoding import encode_files

    with counting("encoding", lambda done: f"interrupted: {done} of {len(paths)} images are done; the same command continues "
                  "from there") as advance:

        def count(i: int, row: Row) -> None:
            advance(row.error if row.met else row.error or "not met", len(paths))

        rows, saved = encode_files(paths, outputs, encoder, goal, metric, table, progress=count, **settings)
    met, failed = [row for row in rows if row.met], [row for row in rows if row.error is not None]
    size = sum(row.bytes or 0 for row in met)
    if as_json:
        print_json({"signature": metric.signature, "encoder": encoder.description, "target": {goal.kind: goal.value}, "table": str(table),
                    "images": len(rows), "met": len(met), "failed": len(failed), "bytes": size,
                    "against_fixed": None if saved is None else {**vars(saved), "share": saved.share}})
    else:
        columns = ["image", "setting", "bytes", "bits per pixel", "quality" if metric.has_quality else "distance", "PSNR", "encodes"]
        print_table(columns, [_cells(row, metric) for row in rows], right=columns[1:], notes=[metric.signature],
                    marked=[i for i, row in enumerate(rows) if not row.met])
        say(f"{len(met)} of {len(rows)} images meet {goal}: {size} bytes, {table}")
        if saved is not None:
            say(_savings(saved, encoder))
    for row in failed[:5]:
        fail(str(row.error) if row.image in str(row.error) else f"{row.image}: {row.error}")
    missed = [row for row in rows if not row.met and row.error is None]
    if missed:
        say(f"{len(missed)} images cannot meet {goal} with {encoder.name}: "
            f"{'the nearest file was' if settings['nearest'] else 'nothing was'} written for them", "yellow")
    if len(met) < len(rows):
        raise typer.Exit(2 if len(failed) == len(rows) else 1)


def _cells(row: Row, metric: Any) -> list[str]:
    if row.bytes is None:
        return [row.image, "error", "", "", "", "", str(row.encodes)]
    shown = f"{row.quality:.2f}" if metric.has_quality else number(row.distance or 0.0)
    return [row.image, f"{row.setting}{'' if row.met else ' (not met)'}", str(row.bytes), f"{row.bits_per_pixel:.3f}", shown, f"{row.psnr:.2f}",
            str(row.encodes)]


def _savings(saved: Saved, encoder: Encoder) -> str:
    share = f"{abs(saved.share):.1%} {'fewer' if saved.share >= 0 else 'more'} bytes"
    return (f"{share} than {encoder.name} {saved.setting} for all {saved.images} images: {saved.ours} against {saved.bytes} bytes; there "
            f"{saved.met} images meet the target, here {saved.ours_met}")
