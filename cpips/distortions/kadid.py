"""KADID-10k's distorted images, made again from the published parameters.

    >>> from cpips.distortions.kadid import KADID_NAMES, kadid, write_kadid
    >>> worse = kadid(image, 10, level=3)                     # KADID_NAMES[10] is "jpeg"
    >>> write_kadid(Path("references"), Path("images"))       # I01_01_01.png and so on

Source: H. Lin, V. Hosu, D. Saupe, "KADID-10k: A Large-scale Artificially Distorted IQA Database", QoMEX 2019. The database
has 25 types of distortion at five levels. 24 are here; type 15 (denoise) is white noise removed by a trained network
(DnCNN), which cannot be made again from parameters. As in the database, an image is stretched so that the minimum and
maximum over its channels become 0 and 255, before and after.

Compared with genuine images, types 1, 3 (at the genuine angle), 10 and 21 are equal, 2 is within one gray level, 9 and 22
come within 43 and 39 dB; random types have draws of their own. Levels are not always in order of strength: those of
mean_shift and contrast_change go from one direction to the other, and mean_shift changes nothing at level 3.

The output is a function of image, type, level and seed alone. On other versions of numpy and scipy single samples may be
off by one gray level, where the last bit decides how a value is rounded (most often in the types that round Lab down, 4
and 8); another Pillow brings another JPEG and JPEG 2000 codec.

Needs scipy (extra ``eval`` or ``calibrate``).
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .._utils.io import replace
from ..errors import ImageError, ModelError
from ..images import load
from ._kadid_kinds import BLOCK, KINDS, PATCH, stretch, to_uint8
from ._tools import check_image

__all__ = ["KADID_LEVELS", "KADID_NAMES", "kadid", "write_kadid"]

DENOISE = 15
"""The type that cannot be made."""

KADID_LEVELS: dict[int, tuple[float, ...]] = {number: KINDS[number].levels for number in sorted(KINDS)}
"""The published parameter of levels 1 to 5 of each type that can be made; its meaning is the type's own."""

KADID_NAMES: dict[int, str] = dict(sorted({DENOISE: "denoise", **{n: kind.name for n, kind in KINDS.items()}}.items()))
"""The published names of all 25 types, type 15 included, as labels have it."""

LEVELS = range(1, 6)
CONDITIONS = tuple((number, level) for number in KADID_LEVELS for level in LEVELS)  # all that can be made, in order
MIN_SIDE = max(3 * PATCH, BLOCK)  # px: what non_eccentricity_patch and color_block need
_REFERENCE = re.compile(r"I\d\d")


def kadid(image: NDArray[Any], type: int, level: int, seed: int = 0) -> NDArray[Any]:
    """The image, distorted as in KADID-10k; the input is not changed.

    Args:
        image: ``(H,W,3)`` uint8 RGB, both sides 48 px or more (the database's are 512x384).
        type: a key of :data:`KADID_LEVELS`: 1 to 25, but not 15.
        level: 1 to 5.
        seed: 0 or more; type and level enter what is drawn, so that one seed serves a whole image.

    Returns:
        ``(H,W,3)`` uint8, a new array.

    Raises:
        ImageError: not such an image.
        ModelError: an unknown type or level, a negative seed, or a codec that this Pillow lacks.

    Example:
        >>> import numpy as np
        >>> from cpips.distortions.kadid import kadid
        >>> image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        >>> kadid(image, 10, level=3).shape
        (64, 64, 3)
    """
    check_image(image, MIN_SIDE, "KADID-10k's distortions")
    _check_setting(type, level, seed)
    kind = KINDS[int(type)]
    pixels = stretch(image.astype(np.float64) / 255.0)
    parameter = kind.levels[int(level) - 1]
    if kind.random:
        distorted = kind.function(pixels, parameter, np.random.default_rng([int(seed), int(type), int(level)]))
    else:
        distorted = kind.function(pixels, parameter)
    return to_uint8(stretch(distorted))


def copy_name(reference: str, type: int, level: int) -> str:
    """The database's file name of a copy, ``I01_04_02.png`` for reference ``I01``, type 4 and level 2."""
    return f"{reference}_{type:02d}_{level:02d}.png"


def write_kadid(references: Path, out: Path, names: Iterable[str] | None = None,
                progress: Callable[[int, int], object] | None = None) -> int:
    """Write the distorted images of KADID-10k's references, and each reference, as PNG into one folder.

    The files have the database's names: ``I01.png``, and ``I01_04_02.png`` for type 4 at level 2, 120 of these a reference,
    as type 15 is left out. With ``dmos.csv`` beside ``out``, if that is called ``images``, ``bapps-eval`` opens the folder
    above as KADID-10k. The seed of a reference is its number. Files are written atomically, and those that are
    there and whole are skipped, so that the same call resumes an interrupted one. Some 10 s and 40 MB a reference.

    Args:
        references: folder with ``I01.*`` to ``I81.*`` in any format that Pillow reads; other names are passed over.
        out: folder to write to, made if it is not there; not ``references`` itself.
        names: which references, such as ``["I01", "I07"]``; ``None`` for all that are there.
        progress: called with the number of files that are finished, skipped ones included, and their total.

    Returns:
        How many files were written.

    Raises:
        ImageError: no references, one that is missing, unreadable or there twice, or an image in ``out`` that has another
            size than its reference.
        ModelError: ``out`` is the folder of the references, or a codec is missing in this Pillow.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from PIL import Image
        >>> from cpips.distortions.kadid import write_kadid
        >>> Path("references").mkdir()
        >>> pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        >>> Image.fromarray(pixels).save("references/I01.png")
        >>> write_kadid(Path("references"), Path("images"))
        121
    """
    references, out = Path(references), Path(out)
    chosen = _find_references(references, names)
    if out.resolve() == references.resolve():
        raise ModelError(f"{out} is the folder of the references: give another one to write to")
    out.mkdir(parents=True, exist_ok=True)
    total, done, written = len(chosen) * (1 + len(CONDITIONS)), 0, 0
    for name, path in chosen.items():
        image = np.rint(load(path).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        check_image(image, MIN_SIDE, "KADID-10k's distortions", str(path))
        makers: dict[str, Callable[[], NDArray[Any]]] = {f"{name}.png": image.copy}
        for number, level in CONDITIONS:
            makers[copy_name(name, number, level)] = partial(kadid, image, number, level, int(name[1:]))
        for file, make in makers.items():
            if not _is_whole(out / file, image.shape):
                _save(out / file, make())
                written += 1
            done += 1
            if progress is not None:
                progress(done, total)
    return written


def _find_references(folder: Path, names: Iterable[str] | None) -> dict[str, Path]:
    """The files of the references by name, in order."""
    if not folder.is_dir():
        raise ImageError(f"{folder} is no folder: give the one with KADID-10k's references, I01.png to I81.png")
    suffixes = Image.registered_extensions()
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if _REFERENCE.fullmatch(path.stem) and path.suffix.lower() in suffixes:
            if path.stem in found:
                raise ImageError(f"{folder} has {found[path.stem].name} and {path.name}: expected one file a reference, "
                                 "remove one")
            found[path.stem] = path
    if not found:
        raise ImageError(f"{folder} has no references: expected images named I01 to I81, such as I01.png")
    if names is None:
        return found
    wanted = sorted({names} if isinstance(names, str) else set(names))
    if not wanted:
        raise ImageError("names is empty: give at least one reference, such as I01, or None for all")
    if missing := [name for name in wanted if name not in found]:
        raise ImageError(f"{folder} has no {', '.join(missing)}: it has {', '.join(found)}")
    return {name: found[name] for name in wanted}


def _save(path: Path, pixels: NDArray[Any]) -> None:
    replace(path, lambda partial: Image.fromarray(pixels).save(partial, "PNG", compress_level=1))


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether the image is there and not damaged.

    Raises:
        ImageError: it is whole, but has another size.
    """
    if not path.exists():
        return False
    try:
        with Image.open(path) as image:
            size = image.size
            image.verify()
    except (OSError, SyntaxError):
        return False
    if size != (shape[1], shape[0]):
        raise ImageError(f"{path} is there already and has {size[0]}x{size[1]} px, but its reference has "
                         f"{shape[1]}x{shape[0]}: remove it, or write to another folder")
    return True


def _check_setting(type: int, level: int, seed: int) -> None:
    for name, value in (("type", type), ("level", level), ("seed", seed)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise ModelError(f"{name} is {value!r}: expected an integer")
    if type == DENOISE:
        raise ModelError("type 15 (denoise) is noise removed by a trained network (DnCNN), which cannot be made again: "
                         "leave it out")
    if type not in KINDS:
        raise ModelError(f"type is {type!r}: expected 1 to 25, but not 15")
    if level not in LEVELS:
        raise ModelError(f"level is {level!r}: expected 1 to 5")
    if seed < 0:
        raise ModelError(f"seed is {seed!r}: expected an integer of 0 or more")
