"""Encoders of one setting each: JPEG, WebP, AVIF, JPEG XL and JPEG 2000 by Pillow, ``.cpz`` by this package, any program.

An encoder turns an 8-bit RGB image into the bytes of a file at one of its ``settings``, which are in order from the smallest
files to the largest. ``FORMATS`` is the table of the codecs that `cpips encode`, `cpips sweep` and the benchmarks share: each at
a good setting of what is not its quality (JPEG optimized and progressive, AVIF slow and without subsampling of the colors).
"""

from __future__ import annotations

import importlib.util
import io
import os
import shlex
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Sequence, Union

from PIL import Image
from torch import Tensor

from .. import images
from ..errors import EncodingError
from ..pretrained import DEFAULT_QUALITY, VARIABLE_CODEC

if TYPE_CHECKING:
    from ..codec.model import Codec

Setting = Union[int, float, str]

EXTRA = "pip install 'cpips[encode]' -c constraints.txt"
TIMEOUT = 600.0  # seconds that a program may take for one image


class Encoder(ABC):
    """Turns images into files, at a setting of an ordered list.

    Facts: ``name``; ``suffix`` of its files; ``settings``, ordered from the smallest files to the largest; ``start``, the place
    in that list of a usual setting.

    Example:
        >>> encoder = cpips.encoding.open_encoder("jpeg")
        >>> encoder.name, encoder.suffix, encoder.settings[encoder.start]
        ('jpeg', '.jpg', 75)
    """

    name: str
    suffix: str
    settings: Sequence[Setting]
    start: int

    @abstractmethod
    def encode(self, image: Image.Image, setting: Setting) -> bytes:
        """The file of an 8-bit RGB image.

        Raises:
            EncodingError: the encoder failed.
        """

    def decode(self, data: bytes) -> Tensor:
        """The image ``(3,H,W)`` in [0,1] of such a file.

        Raises:
            ImageError: it cannot be read.
        """
        return images.decode(data, name=f"the {self.name} file")

    @property
    def description(self) -> str:
        """One line that says what encodes, for tables."""
        return self.name

    def place(self, setting: Setting | str) -> int:
        """The place of a setting in ``settings``, also of one that was typed.

        Raises:
            EncodingError: it is none of them.
        """
        for i, known in enumerate(self.settings):
            if known == setting or str(known) == str(setting):
                return i
        first, last = self.settings[0], self.settings[-1]
        raise EncodingError(f"{self.name} has no setting {setting}: expected one from {first} to {last}")


@dataclass(frozen=True)
class _Format:
    """A format that Pillow writes: its name there, the option that is its quality, and the others."""

    kind: str
    suffix: str
    settings: Sequence[Setting]
    usual: Setting
    options: Mapping[str, Any] = field(default_factory=dict)
    option: str = "quality"


_JPEG = {"optimize": True, "progressive": True}
_HALVES: list[Setting] = [i / 2 if i % 2 else i // 2 for i in range(201)]  # 0, 0.5, 1 ... 100: a whole step can be .05 of the scale
FORMATS: dict[str, _Format] = {
    "jpeg": _Format("JPEG", ".jpg", range(1, 101), 75, {**_JPEG, "subsampling": "4:2:0"}),
    "jpeg-444": _Format("JPEG", ".jpg", range(1, 101), 75, {**_JPEG, "subsampling": "4:4:4"}),
    "webp": _Format("WEBP", ".webp", _HALVES, 75, {"method": 6}),
    "avif": _Format("AVIF", ".avif", range(0, 101), 65, {"speed": 4, "subsampling": "4:4:4"}),
    "avif-420": _Format("AVIF", ".avif", range(0, 101), 65, {"speed": 4, "subsampling": "4:2:0"}),
    "jxl": _Format("JXL", ".jxl", _HALVES[2:-2], 75, {"effort": 7}),
    "jp2": _Format("JPEG2000", ".jp2", [20 + i / 4 for i in range(121)], 36.0,
                   {"irreversible": True, "mct": 1, "quality_mode": "dB"}, "quality_layers"),
}
CPZ = "cpz"
SUFFIXES = {".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".avif": "avif", ".jxl": "jxl", ".jp2": "jp2", ".cpz": CPZ}


def list_formats() -> list[str]:
    """Names that :func:`open_encoder` knows and that this installation can write.

    Example:
        >>> [name for name in cpips.encoding.list_formats() if name.startswith("jpeg")]
        ['jpeg', 'jpeg-444']
    """
    found = [name for name, row in FORMATS.items() if _writes(row.kind)]
    return [*found, CPZ] if importlib.util.find_spec("compressai") else found


def open_encoder(spec: str) -> Encoder:
    """The encoder that a name stands for, with other options of Pillow's writer after a colon.

    Args:
        spec: ``'jpeg'``, ``'jpeg-444'``, ``'webp'``, ``'avif'``, ``'avif-420'``, ``'jxl'`` (needs pillow-jxl-plugin), ``'jp2'``
            or ``'cpz'``; ``'avif:speed=6'`` changes an option, ``'cpz:hyperprior-q1,hyperprior-q3'`` names the codecs, and
            ``'cpz:FILE'`` a variable-rate codec's weights.

    Raises:
        EncodingError: an unknown name or option, or a format that this installation cannot write.

    Example:
        >>> cpips.encoding.open_encoder("webp:method=4").description
        'webp: method=4'
    """
    name, _, options = spec.partition(":")
    if name == CPZ:
        return CpzEncoder(options.split(",") if options else None)
    if name not in FORMATS:
        raise EncodingError(f"format {name!r} is unknown: choose from {', '.join([*FORMATS, CPZ])}, or pass --encoder for a "
                            "program of your own")
    return PillowEncoder(name, dict(_option(item, spec) for item in options.split(",")) if options else {})


def _option(item: str, spec: str) -> tuple[str, Any]:
    key, equals, value = item.partition("=")
    if not equals or not key.isidentifier():
        raise EncodingError(f"{spec!r}: expected options as in avif:speed=6,subsampling=4:2:0, got {item!r}")
    known = {"true": True, "false": False}
    return key, known[value.lower()] if value.lower() in known else int(value) if value.lstrip("-").isdigit() else value


def _writes(kind: str) -> bool:
    if kind == "JXL":
        images.register_plugins()
    Image.init()
    return kind in Image.SAVE


class PillowEncoder(Encoder):
    """A format of ``FORMATS``, written by Pillow or a plug-in of it, with changed ``options``."""

    def __init__(self, name: str, options: Mapping[str, Any] | None = None):
        row = FORMATS[name]
        if not _writes(row.kind):
            raise EncodingError(f"this installation cannot write {name}: {EXTRA}")
        if row.option in (options or {}):
            raise EncodingError(f"the option {row.option} of {name} is what the search sets: leave it out")
        self.name, self.suffix, self.settings = name, row.suffix, row.settings
        self.start = list(row.settings).index(row.usual)
        self._row, self._options = row, {**row.options, **(options or {})}

    def encode(self, image: Image.Image, setting: Setting) -> bytes:
        stream = io.BytesIO()
        chosen = {self._row.option: [setting] if self._row.option == "quality_layers" else setting}
        try:
            image.save(stream, self._row.kind, **self._options, **chosen)
        except Exception as error:  # writers raise almost anything
            raise EncodingError(f"{self.description} cannot write an image of {image.width}x{image.height} px ({error}): choose "
                                "another format or other options") from error
        return stream.getvalue()

    @property
    def description(self) -> str:
        return f"{self.name}: {' '.join(f'{key}={value}' for key, value in self._options.items())}"


class CpzEncoder(Encoder):
    """The learned codecs of this package. Settings are the qualities of a variable-rate codec, or the names of codecs:
    ``hyperprior-q1`` ... ``q5``, of which those are used whose weights are here.

    Args:
        codecs: a variable-rate codec, or names of codecs from the smallest files to the largest. Default:
            ``hyperprior-vbr`` where its weights are here, else the names.

    Raises:
        EncodingError: the extra ``codec`` is not installed, no codec is here, or several were given of which one has a variable rate.
    """

    name, suffix = CPZ, ".cpz"
    ladder = tuple(f"hyperprior-q{i}" for i in range(1, 6))
    qualities = tuple(i / 4 for i in range(401))

    def __init__(self, codecs: Sequence[str | os.PathLike[str]] | None = None):
        if importlib.util.find_spec("compressai") is None:
            raise EncodingError("the format cpz needs the codec: pip install 'cpips[codec]' -c constraints.txt")
        found = _opened(codecs, bool(codecs)) or _opened((VARIABLE_CODEC,)) or _opened(self.ladder) or _opened(("cpips-lite",), True)
        variable = [codec for codec in found if codec.variable is not None]
        if variable and len(found) > 1:
            raise EncodingError(f"{variable[0].name} has a variable rate, and is not a step of a list of {len(found)} codecs: give it alone")
        self._codec = found[0]
        self._codecs: dict[Setting, Codec] = {codec.name: codec for codec in found}
        self.settings: Sequence[Setting] = self.qualities if variable else list(self._codecs)
        self.start = self.settings.index(DEFAULT_QUALITY) if variable else len(self.settings) // 2

    def encode(self, image: Image.Image, setting: Setting) -> bytes:
        from ..codec import container

        codec = self._codec.at(float(setting)) if self.settings is self.qualities else self._codecs[setting]
        return container.pack(codec.encode(images.from_pil(image)), codec.name, codec.digest, codec.quality)

    def decode(self, data: bytes) -> Tensor:
        from ..codec import container
        from ..codec.files import codec_of

        compressed = container.unpack(data)
        return codec_of(compressed, self._codecs[compressed.codec]).decode(compressed.stream)

    @property
    def description(self) -> str:
        return f"{self.name}: {self._codec.name}" if self.settings is self.qualities else self.name


def _opened(names: Sequence[str | os.PathLike[str]] | None, required: bool = False) -> list[Codec]:
    """The codecs whose weights are here; all of them, or an error, if they are required."""
    from ..codec.files import open_codec
    from ..errors import CpipsError

    found = []
    for name in names or ():
        try:
            found.append(open_codec(name))
        except CpipsError:
            if required:
                raise
    return found


class CommandEncoder(Encoder):
    """A program that encodes, as a template of its command line; it is run without a shell.

    Args:
        template: with ``{in}`` (a PNG file), ``{out}`` and ``{q}`` (the setting), as in ``"cwebp -quiet -q {q} {in} -o {out}"``.
        decoder: such a template with ``{in}`` and ``{out}`` (a PNG file), for files that Pillow cannot read.
        low, high: the integer settings of the smallest and of the largest files; ``low`` may be above ``high``.
        suffix: of the files.

    Raises:
        EncodingError: a template that lacks a placeholder, or a program that is not here.

    Example:
        >>> encoder = cpips.encoding.CommandEncoder("python3 -c pass {q} {in} {out}", low=63, high=0, suffix=".bin")
        >>> encoder.settings[0], encoder.settings[-1]
        (63, 0)
    """

    def __init__(self, template: str, *, decoder: str | None = None, low: int = 0, high: int = 100, suffix: str = ".out",
                 timeout: float = TIMEOUT):
        self.template, self.timeout, self.suffix = template, timeout, suffix
        self._encode = _arguments(template, ("{q}", "{in}", "{out}"), "--encoder")
        self._decode = None if decoder is None else _arguments(decoder, ("{in}", "{out}"), "--decoder")
        self.decoder = decoder
        if low == high:
            raise EncodingError(f"the range {low}:{high} has one setting: expected two or more, as in 0:100, or 63:0 where less is "
                                "better")
        self.settings = range(low, high + 1) if low < high else range(low, high - 1, -1)
        self.start = len(self.settings) * 2 // 3
        self.name = Path(self._encode[0]).name

    @property
    def description(self) -> str:
        return self.template + (f" | {self.decoder}" if self.decoder else "")

    def encode(self, image: Image.Image, setting: Setting) -> bytes:
        with tempfile.TemporaryDirectory(prefix="cpips-") as folder:
            source, target = Path(folder, "in.png"), Path(folder, f"out{self.suffix}")
            image.save(source, compress_level=1)
            return self._run(self._encode, {"{q}": str(setting), "{in}": str(source), "{out}": str(target)}, target)

    def decode(self, data: bytes) -> Tensor:
        if self._decode is None:
            return super().decode(data)
        with tempfile.TemporaryDirectory(prefix="cpips-") as folder:
            source, target = Path(folder, f"in{self.suffix}"), Path(folder, "out.png")
            source.write_bytes(data)
            return images.decode(self._run(self._decode, {"{in}": str(source), "{out}": str(target)}, target),
                                 name="what the decoder wrote")

    def _run(self, arguments: Sequence[str], values: Mapping[str, str], target: Path) -> bytes:
        for placeholder, value in values.items():
            arguments = [argument.replace(placeholder, value) for argument in arguments]
        name = arguments[0]
        try:
            done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=self.timeout)
        except subprocess.TimeoutExpired:
            raise EncodingError(f"{name} took more than {self.timeout:g} s for one image, and was ended") from None
        except OSError as error:
            raise EncodingError(f"{name} cannot be run ({error.strerror})") from error
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[-300:] or "it printed no error"
            raise EncodingError(f"{name} failed with exit code {done.returncode}: {said}")
        if not target.is_file() or not target.stat().st_size:
            raise EncodingError(f"{name} succeeded and wrote nothing to {{out}}: check the template")
        return target.read_bytes()


def _arguments(template: str, needed: Sequence[str], option: str) -> list[str]:
    try:
        arguments = shlex.split(template)
    except ValueError as error:
        raise EncodingError(f"{option} {template!r} cannot be split into arguments ({error}): check its quotes") from None
    if missing := [name for name in needed if not any(name in argument for argument in arguments)]:
        raise EncodingError(f"{option} {template!r} lacks {' and '.join(missing)}: expected a command line such as "
                            "'cwebp -q {q} {in} -o {out}'")
    if shell := [argument for argument in arguments if argument in ("|", "||", "&&", ";", ">", ">>", "<", "&")]:
        raise EncodingError(f"{option} {template!r} has {shell[0]!r}, which only a shell knows, and none is used: put it into a "
                            "script and name that")
    if shutil.which(arguments[0]) is None:
        raise EncodingError(f"there is no program {arguments[0]!r}: install it, or give its path in {option}")
    return arguments
