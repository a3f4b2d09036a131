"""The one place where files are opened for reading, and where they are written.

- *Reading* takes regular files alone: a named pipe would be waited for forever, a device may have no end.
- *Writing* is atomic: a file takes its name when it is whole. Links are followed, an existing file keeps its mode, what
  is no regular file is never replaced, and the unfinished file has a name that nobody can foresee.
- *Replacing* has one rule for all commands, :func:`check_output`: an existing file only with ``--force``, an input never.
"""

from __future__ import annotations

import csv
import errno
import importlib.util
import io
import json
import os
import re
import shutil
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Callable, Iterator, Literal, Sequence, Union

from ..errors import CpipsError

PathLike = Union[str, "os.PathLike[str]"]

MAX_ROWS = 1 << 25  # of a Parquet table
IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".jxl", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_NOT_WAITING = getattr(os, "O_NONBLOCK", 0)  # opening a named pipe waits for its other end
_KINDS = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"),
          (stat.S_ISBLK, "device"))


class OutputError(CpipsError, ValueError):
    """An output that would replace a file that it must not replace, or that cannot be written; the message says why."""


class IrregularFileError(CpipsError, OSError):
    """A folder, named pipe, socket or device where a regular file is needed."""

    def __str__(self) -> str:
        return f"{self.filename} is {self.strerror}"


class TooLargeError(CpipsError, OSError):
    """A file that has more bytes than what is read of such a file."""


# ---- reading --------------------------------------------------------------------------------------------------------


def open_regular(path: PathLike) -> BinaryIO:
    """A regular file, open for reading; links and ``/dev/stdin`` are followed to where they lead.

    Raises:
        IrregularFileError: it is something else.
        OSError: it cannot be opened; a name with a NUL character, too.
    """
    _require_regular(_status(path), path)  # before it is opened: opening a device may already do something
    return _stream(os.open(path, os.O_RDONLY | _NOT_WAITING | _BINARY), path, "rb")


def check_regular(path: PathLike) -> None:
    """Errors as :func:`open_regular`, before a library opens ``path`` by its name."""
    open_regular(path).close()


def read_bytes(path: PathLike, limit: int | None = None) -> bytes:
    """The content of a regular file, of at most ``limit`` bytes.

    Raises:
        TooLargeError: it has more.
        OSError: as :func:`open_regular`.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if limit is not None and size > limit:
            raise TooLargeError(f"{path} has {size} bytes, and at most {limit} are read of such a file: give another file")
        return stream.read()


def read_text(path: PathLike, encoding: str = "utf-8", limit: int = 1 << 28) -> str:
    """The text in a regular file, its line ends as Python has them.

    Raises:
        OSError: as :func:`read_bytes`.
        UnicodeDecodeError: not text in this encoding.
    """
    return read_bytes(path, limit).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def open_to_append(path: PathLike) -> BinaryIO:
    """A regular file, made if need be, to which is appended and from which is read.

    Raises:
        OSError: as :func:`open_regular`.
    """
    if (status := _status(path, missing=True)) is not None:
        _require_regular(status, path)
    return _stream(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _NOT_WAITING | _BINARY, 0o666), path, "a+b")


def _stream(handle: int, path: PathLike, mode: Literal["rb", "a+b"]) -> BinaryIO:
    """What was opened, if it is a regular file; it is closed if it is not."""
    try:
        _require_regular(os.fstat(handle), path)
        return os.fdopen(handle, mode)
    except BaseException:
        os.close(handle)
        raise


def stamp(path: Any) -> tuple[int, int] | None:
    """Size and time of change (ns) of a file, by which its content is known again; None where there is no file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError, TypeError):
        return None
    return status.st_size, status.st_mtime_ns


def _status(path: PathLike, missing: bool = False) -> os.stat_result | None:
    """What a path leads to; None where it leads nowhere, if that may be."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        if missing:
            return None
        raise
    except ValueError:
        raise FileNotFoundError(errno.ENOENT, "a file's name cannot hold a NUL character",
                                str(path).replace("\0", "\\0")) from None


def _require_regular(status: os.stat_result | None, path: PathLike) -> None:
    if status is None or stat.S_ISREG(status.st_mode):
        return
    kind = next((name for test, name in _KINDS if test(status.st_mode)), "special file")
    raise IrregularFileError(errno.EINVAL, f"a {kind} and not a regular file: give a file, or save the content to one first",
                             str(path))


# ---- what may be replaced -------------------------------------------------------------------------------------------


def check_output(path: PathLike, inputs: Sequence[Any] = (), *, force: bool = False) -> None:
    """Refuse an output before the work begins: the rule of all commands.

    An existing file is replaced with ``force`` alone; an input never, nor an image in a folder of inputs, nor what is
    no regular file.

    Args:
        inputs: what the command reads: files and folders; what is no path is passed over.

    Raises:
        OutputError: the path must not be replaced, is a folder, or lies in a folder that does not exist.
        IrregularFileError: it is a device, a named pipe or a socket.
    """
    status = _status(path, missing=True)
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise OutputError(f"{path} is a folder: name a file")
    if not (folder := Path(os.path.realpath(path)).parent).is_dir():
        raise OutputError(f"no folder {folder if os.path.islink(path) else Path(path).parent}: create it")
    _require_regular(status, path)
    if status is None:
        return
    if any(_is_of(each, path, status) for each in inputs if isinstance(each, (str, os.PathLike))):
        raise OutputError(f"{path} is an input of this command, which is never overwritten: choose another output")
    if not force:
        raise OutputError(f"{path} exists: pass --force to overwrite it, or choose another name")


def check_outputs(paths: Sequence[PathLike | None], inputs: Sequence[Any] = (), *, force: bool = False) -> None:
    """:func:`check_output` of each path that is not None; all of them must be different files."""
    known: dict[str, PathLike] = {}
    for path in paths:
        if path is None:
            continue
        check_output(path, inputs, force=force)
        other = known.setdefault(os.path.realpath(path), path)
        if other is not path:
            raise OutputError(f"{path} and {other} are the same file: give each output its own name")


def check_run(folder: PathLike, outputs: Sequence[str], inputs: Sequence[Any] = (), *, begun: bool, force: bool = False) -> None:
    """:func:`check_output` of the files that a run will write into its folder, where they may be its own.

    Args:
        outputs: their names.
        begun: whether the folder holds the state of this run, which then may write its outputs again.
    """
    for name in outputs:
        path = Path(folder) / name
        if path.exists():
            check_output(path, inputs, force=force or begun)


def _is_of(source: Any, path: PathLike, status: os.stat_result) -> bool:
    """Whether the file at ``path`` is ``source``, or one of the images in that folder."""
    try:
        theirs = os.stat(source)
    except (OSError, ValueError):
        return False
    if not stat.S_ISDIR(theirs.st_mode):
        return os.path.samestat(theirs, status)
    file = Path(os.path.realpath(path))
    return (file.suffix.lower() in {*IMAGE_SUFFIXES, ".cpz"}
            and Path(os.path.realpath(source)) in file.parents)


# ---- writing --------------------------------------------------------------------------------------------------------


@contextmanager
def atomic(path: PathLike) -> Iterator[IO[bytes]]:
    """A binary file that takes the name ``path`` when it is whole, and leaves nothing behind when it fails.

    Raises:
        IrregularFileError: ``path`` is no regular file.
        OSError: it cannot be written; the error names ``path``.
    """
    with _partial(path) as (_, handle):
        with os.fdopen(handle, "wb") as stream:
            yield stream


def replace(path: PathLike, write: Callable[[Path], object]) -> None:
    """As :func:`atomic`, of a file that ``write`` fills by its name."""
    with _partial(path) as (partial, handle):
        os.close(handle)
        write(partial)


@contextmanager
def _partial(path: PathLike) -> Iterator[tuple[Path, int]]:
    """The unfinished file and its handle, which the caller closes; at the end it takes the place of ``path``."""
    status = _status(path, missing=True)
    _require_regular(status, path)
    target = Path(os.path.realpath(path))  # a link stays, and what it leads to is replaced
    partial = target.with_name(f".{_stem(target)}.{os.urandom(8).hex()}.partial")
    with _naming(path, partial):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | _BINARY
        handle = os.open(partial, flags, 0o666 if status is None else 0o600)
    try:
        with _naming(path, partial):
            mode = stat.S_IMODE((os.fstat(handle) if status is None else status).st_mode)
            yield partial, handle
            _finish(partial, mode, status)
            os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _finish(partial: Path, mode: int, old: os.stat_result | None) -> None:
    """On the disk, and with the mode and owner that the file at its place had; by name: libraries make files anew."""
    handle = os.open(partial, os.O_RDWR | _BINARY)
    try:
        os.fsync(handle)
        if hasattr(os, "fchown") and old is not None and (old.st_uid, old.st_gid) != (os.getuid(), os.getgid()):
            try:
                os.fchown(handle, old.st_uid, old.st_gid)
            except OSError:  # not ours to give away
                pass
    finally:
        os.close(handle)
    os.chmod(partial, mode)


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Errors of the operating system that name no file name ``path``: a full disk's, say."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None and not isinstance(error, CpipsError):
            error.filename = str(path)
        raise


@contextmanager
def _naming(path: PathLike, partial: Path) -> Iterator[None]:
    """Errors of writing name the file that was asked for: some name none, some the unfinished one."""
    try:
        yield
    except CpipsError:
        raise
    except OSError as error:
        if error.errno is None:  # pyarrow's, say
            raise OSError(errno.EIO, _without(str(error), path, partial), str(path)) from error
        if error.filename is None or Path(os.fsdecode(error.filename)).name == partial.name:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except Exception as error:  # of a library in its own words
        if _free(partial.parent) < 1 << 16:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if partial.name in str(error):
            raise OSError(errno.EIO, _without(str(error), path, partial), str(path)) from error
        raise


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 1 << 62


def _without(text: str, path: PathLike, partial: Path) -> str:
    return text.replace(str(partial), str(path)).replace(partial.name, Path(path).name)


def _stem(target: Path) -> str:
    """The name of a file, or a digest of one that has no room for more."""
    import hashlib

    raw = os.fsencode(target.name)
    return target.name if len(raw) <= 200 else hashlib.sha256(raw).hexdigest()[:32]


def remove_partials(path: PathLike) -> None:
    """Remove the unfinished files that killed runs have left of ``path``, or of all files in a folder.

    For a caller who holds the lock of ``path``: nobody else is writing it.
    """
    target = Path(os.path.realpath(path))
    folder, stem = (target, ".+") if target.is_dir() else (target.parent, re.escape(_stem(target)))
    pattern = re.compile(rf"\.{stem}\.[0-9a-f]{{16}}\.partial", re.DOTALL)
    for name in os.listdir(folder):
        if pattern.fullmatch(name):
            (folder / name).unlink(missing_ok=True)


@contextmanager
def exclusive(folder: PathLike) -> Iterator[None]:
    """Keep other runs of this machine out of an output folder; it is made where there is none.

    Raises:
        OutputError: another run is at work there.
    """
    os.makedirs(folder, exist_ok=True)
    if not _has_locks():
        yield
        return
    handle = os.open(folder, os.O_RDONLY | _BINARY)  # of the folder itself: no file is left behind
    try:
        locked = take_lock(handle)
        if locked is False:
            raise OutputError(f"{folder} is in use by another run: wait for it, or choose another output folder")
        if locked:
            remove_partials(folder)
        yield
    finally:
        os.close(handle)


def take_lock(file: IO[bytes] | int) -> bool | None:
    """Whether this process now has the lock of an open file or folder; it goes with the process, however that ends.

    Returns:
        False where another process has it, None where the system or the file system knows no locks.
    """
    if not _has_locks():
        return None
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _has_locks() -> bool:
    return importlib.util.find_spec("fcntl") is not None  # not on Windows


# ---- lists and JSON -------------------------------------------------------------------------------------------------


def list_images(folder: Path) -> list[Path]:
    """The image files below ``folder``, at any depth, sorted; none if there is no such folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def list_inputs(folder: Path, output: Path) -> list[Path]:
    """As :func:`list_images`, without what lies in a folder ``output`` below: an output does not become an input of the next run."""
    source, inside = folder.resolve(), output.resolve()
    return [path for path in list_images(folder) if inside == source or inside not in path.resolve().parents]


def read_csv(stream: BinaryIO, name: PathLike, error: type[CpipsError],
             delimiter: str = ",") -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows of a CSV table in UTF-8, which ``stream`` has; each row with the number of its line. Blank lines are left out.

    Raises:
        error: not such a table, or a row with more or fewer cells than the header.
    """
    rows: list[tuple[int, list[str]]] = []
    try:
        with io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            header = next(reader, [])
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise error(f"{name}, line {reader.line_num}: {len(row)} fields, but the header has {len(header)}")
                rows.append((reader.line_num, row))
    except (UnicodeDecodeError, csv.Error) as damage:
        raise error(f"{name} is not a CSV table in UTF-8: {damage}") from None
    return header, rows


def write_json(path: PathLike, value: Any, **form: Any) -> None:
    """Write ``value`` as a JSON file at once, over an older one; ``form`` is what :func:`json.dumps` takes."""
    text = json.dumps(value, **form) + "\n"
    replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def json_line(row: dict[str, Any]) -> str:
    text = json.dumps(finite(row), ensure_ascii=False, default=str, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()  # of a file's name that is no UTF-8: \\udcff, as JSON has it


def finite(value: Any) -> Any:
    """Infinities and NaN, which JSON lacks, as strings that float() of Python and Number() of JavaScript read."""
    if isinstance(value, float) and value - value != 0:
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def quiet_bombs() -> None:
    """Keep Pillow's warning of a huge image back: cpips refuses such an image, in its own words."""
    import warnings

    from PIL import Image

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
