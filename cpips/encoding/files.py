"""Many images to a target: a journal makes a run that was interrupted resume, a table has the result of each image."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Callable, Sequence

from .._utils.io import OutputError, atomic, check_output, stamp
from .._utils.journal import Journal, journal_path
from ..base import FullReferenceMetric
from ..errors import CpipsError, EncodingError
from ..printable import write_csv
from .formats import Encoder, Setting
from .target import ENCODES, Encoded, Goal, Search


@dataclass(frozen=True)
class Row:
    """The result of one image. ``bytes`` and what was measured are those of the nearest file where the target is not met; then
    ``output`` is empty unless the nearest was asked for. ``fixed_bytes`` and ``fixed_met`` are those of the one fixed setting
    that the run is compared with."""

    image: str
    output: str
    setting: Setting | None = None
    met: bool = False
    bytes: int | None = None
    bits_per_pixel: float | None = None
    quality: float | None = None
    visibility: float | None = None
    distance: float | None = None
    psnr: float | None = None
    encodes: int = 0
    fixed_bytes: int | None = None
    fixed_met: bool | None = None
    error: str | None = None


@dataclass(frozen=True)
class Saved:
    """All images at one fixed setting, beside the same images at a setting of their own.

    ``images`` are those that could be encoded; ``met`` of them meet the target at the fixed setting, ``bytes`` is what they
    take there, and ``ours`` what they take at their own settings, of which ``ours_met`` meet it.
    """

    setting: Setting
    images: int
    met: int
    bytes: int
    ours: int
    ours_met: int

    @property
    def share(self) -> float:
        """The part of the bytes that is saved; negative where a fixed setting takes fewer."""
        return 1 - self.ours / self.bytes


def encode_files(
    paths: Sequence[Path],
    outputs: Sequence[Path],
    encoder: Encoder,
    goal: Goal,
    metric: FullReferenceMetric,
    table: Path,
    *,
    encodes: int = ENCODES,
    fixed: Setting | str | None = "best",
    nearest: bool = False,
    force: bool = False,
    restart: bool = False,
    progress: Callable[[int, Row], None] = lambda row, result: None,
) -> tuple[list[Row], Saved | None]:
    """Encode images to a target, each into its output, and write a table (CSV) of settings, sizes and qualities.

    Each file appears atomically when its image is done. Results are appended to ``TABLE.journal.jsonl``: a run that was
    interrupted resumes after the last image of it, or from the first image on that has changed since; the journal goes when the
    table is written. An image that cannot be encoded, or whose target cannot be met, is reported in its row and has no output.

    Args:
        fixed: a setting that all images are compared at; ``'best'`` for the smallest one that meets the target on as many images
            as settings of their own do; ``None`` for no comparison. It takes one more encode of an image, if need be.
        nearest: write the nearest file where the target is not met.
        force: replace existing outputs; an input never.
        restart: forget the journal of an earlier run.
        progress: called after each image, with its number from 0.

    Returns:
        The rows, and the comparison with the fixed setting, if there is one.

    Raises:
        OutputError: an output exists, is an input, or is that of another image, too.
        EncodingError: no image, or a setting that the encoder does not have.
        TableError: the journal of another run lies beside the table.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> Image.linear_gradient("L").resize((64, 64)).save("a.png")
        >>> rows, saved = cpips.encoding.encode_files(
        ...     [Path("a.png")], [Path("a.jpg")], cpips.encoding.open_encoder("jpeg"),
        ...     cpips.encoding.Goal("quality", 4.5), cpips.CPIPS(), Path("table.csv"))
        >>> rows[0].met, rows[0].bytes == Path("a.jpg").stat().st_size, saved.images
        (True, True, 1)
    """
    if not paths or len(paths) != len(outputs):
        raise EncodingError(f"got {len(paths)} images and {len(outputs)} outputs: expected one output for each image")
    goal.check(metric)
    if fixed not in (None, "best"):
        encoder.place(fixed)
    begun = journal_path(table).exists() and not restart
    _check(paths, outputs, table, force=force, begun=begun)
    header = {"journal": 1, "encode": encoder.description, "goal": str(goal), "signature": metric.signature, "encodes": encodes,
              "nearest": nearest, "background": metric.background, "rows": len(paths),
              "images": [os.fspath(path.absolute()) for path in paths], "outputs": [os.fspath(path.absolute()) for path in outputs]}
    journal = Journal(journal_path(table), header, _row, restart, lambda i: stamp(paths[i]), table)
    with closing(journal):
        rows = list(journal.rows)
        if begun and not force:  # the image that the interrupted run was at may have its output; no other is its own
            for path, output in list(zip(paths, outputs))[len(rows) + 1:]:
                check_output(output, paths)
        for i, row in enumerate(rows):
            if row.output and not Path(row.output).is_file():  # removed since
                _write(paths[i], Path(row.output), encoder, row, metric)
            progress(i, row)
        start = None
        for i in range(len(rows), len(paths)):
            mark = stamp(paths[i])
            row = _encode(paths[i], outputs[i], encoder, goal, metric, encodes, nearest, start)
            journal.append(stamp=mark, result=asdict(row))
            rows.append(row)
            if row.met and row.setting is not None:
                start = encoder.place(row.setting)  # neighbors in a folder are alike
            progress(i, row)
        rows, saved = _compared(rows, paths, encoder, goal, metric, fixed)
        _write_table(table, rows)
        journal.remove()
    return rows, saved


def _check(paths: Sequence[Path], outputs: Sequence[Path], table: Path, *, force: bool, begun: bool) -> None:
    check_output(table, paths, force=force)
    owners: dict[str, Path] = {os.path.realpath(table): table}
    for path, output in zip(paths, outputs):
        other = owners.setdefault(os.path.realpath(output), path)
        if other is not path:
            raise OutputError(f"{other} and {path} would both become {output}: rename one of them")
        if output.exists():
            check_output(output, paths, force=force or begun)


def _encode(path: Path, output: Path, encoder: Encoder, goal: Goal, metric: FullReferenceMetric, encodes: int, nearest: bool,
            start: int | None) -> Row:
    try:
        found = Search(path, encoder, metric).run(goal, encodes, start)
    except CpipsError as error:
        return Row(str(path), "", error=str(error))
    if found.met or nearest:
        output.parent.mkdir(parents=True, exist_ok=True)
        found.save(output)
    return _row_of(path, output if found.met or nearest else None, found)


def _row_of(path: Path, output: Path | None, found: Encoded) -> Row:
    return Row(str(path), "" if output is None else str(output), found.setting, found.met, found.bytes, _short(found.bits_per_pixel),
               _short(found.quality), _short(found.visibility), _short(found.distance), _short(found.psnr), found.encodes)


def _short(value: float | None) -> float | None:
    return value if value is None else float(f"{value:.6g}")


def _row(entry: dict[str, Any]) -> Row:
    """A row as the journal keeps it; infinities are strings there."""
    found: dict[str, Any] = {
        key: float(value) if value in ("Infinity", "-Infinity", "NaN") else value for key, value in entry["result"].items()}
    return Row(**found)


def _write(path: Path, output: Path, encoder: Encoder, row: Row, metric: FullReferenceMetric) -> None:
    """The file of a row once more."""
    assert row.setting is not None
    data = Search(path, encoder, metric).file(encoder.place(row.setting))
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic(output) as stream:
        stream.write(data)


def _compared(rows: list[Row], paths: Sequence[Path], encoder: Encoder, goal: Goal, metric: FullReferenceMetric,
              fixed: Setting | str | None) -> tuple[list[Row], Saved | None]:
    """The rows with what the fixed setting gives, and the sums."""
    places = [encoder.place(row.setting) for row in rows if row.met and row.setting is not None]
    if fixed is None or not places:
        return rows, None
    # a smaller one would miss the image that needs the largest, and a size is kept by the smallest
    best = min(places) if goal.kind == "bytes" else max(places)
    place = best if fixed == "best" else encoder.place(fixed)
    compared, met, size, ours = [], 0, 0, 0
    for path, row in zip(paths, rows):
        if row.setting is None or row.bytes is None:
            compared.append(row)
            continue
        if encoder.place(row.setting) == place:
            there, good = row.bytes, row.met
        else:
            search = Search(path, encoder, metric)
            there = len(search.file(place))
            good = there <= goal.value if goal.kind == "bytes" else search.excess(place, goal) >= 0
        met, size, ours = met + good, size + there, ours + row.bytes
        compared.append(replace(row, fixed_bytes=there, fixed_met=good))
    done = [row for row in compared if row.fixed_bytes is not None]
    return compared, Saved(encoder.settings[place], len(done), met, size, ours, sum(row.met for row in done))


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    names = [field.name for field in fields(Row)]
    with atomic(path) as stream:
        write_csv(stream, [names, *([getattr(row, name) for name in names] for row in rows)])
