"""Write and read ``.cpz`` files, and compute distances between them on their entropy-decoded latents.

    codec = open_codec("hyperprior-q4")      # or a variable-rate one, open_codec(VARIABLE, quality=60)
    compress("a.png", "a.cpz", codec); compress("b.png", "b.cpz", codec)
    metric = file_metric(codec)
    metric.distance(embed(metric, codec, "a.cpz"), embed(metric, codec, "b.png"))
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Sequence

from torch import Tensor

from .. import images, pretrained
from .._utils.io import atomic
from ..batch import Result
from ..errors import BitstreamError, CpipsError, ImageError, ModelError, WeightsError
from ..metric import CPIPS, Embedding
from ..registry import list_metrics
from . import container
from .classifier import LatentClassifier
from .container import Compressed
from .evaluate import load_codec
from .model import Codec
from .variable import VariableCodec

PICTURES = {".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}  # all written lossless


def open_codec(model: str | os.PathLike[str] = pretrained.DEFAULT_CODEC, quality: float | None = None) -> Codec:
    """The whole codec of a shipped model, or of a weights file that the trainer wrote.

    The codec of ``cpips-lite`` ships inside the package. The others are found in ``weights/codecs`` of the checkout that is
    imported or worked in, or as ``NAME.safetensors`` under ``codecs`` in the cache directory (``CPIPS_HOME``); else they are
    downloaded there from the address in ``CPIPS_CODECS_URL``, where the project's ``weights/codecs`` lie. All are checked by
    the digest on the model's card.

    Args:
        quality: of a variable-rate codec, from 0 (smallest file) to 100 (best image); default: 60. ``codec.at(...)`` is the same
            codec at another quality.

    Raises:
        ModelError: no such model, a metric without a codec, or a quality for a codec of one rate.
        WeightsError: the file is missing, damaged, not a codec, or not to be had offline.

    Example:
        >>> from cpips.codec.files import open_codec  # needs compressai (extra codec)
        >>> codec = open_codec("cpips-lite")
        >>> codec.decode(codec.encode(torch.rand(3, 30, 50))).shape
        torch.Size([3, 30, 50])
    """
    codec = _open_codec(model if isinstance(model, str) else Path(model))
    if isinstance(codec, VariableCodec):
        return codec.at(pretrained.DEFAULT_QUALITY if quality is None else quality)
    return codec if quality is None else codec.at(quality)  # which says why not


@lru_cache(maxsize=4)
def _open_codec(model: str | Path) -> Codec:
    if isinstance(model, Path) or model.endswith(".safetensors"):
        path = Path(model)
        codec = load_codec(path)
        codec.name = path.stem if path.stem != "codec" else "custom"
        return codec
    if model in set(list_metrics()) - set(pretrained.list_models()):
        raise ModelError(f"{model} is a metric without a codec: choose from {', '.join(pretrained.list_models())}")
    card = pretrained.model_card(model)
    codec = load_codec(_part(card, "codec"), sha256=card["codec_sha256"])
    codec.name, codec.lmbda = model, card.get("lambda")
    return codec


def default_codec(quality: float | None = None) -> str:
    """The model that compresses where none is named: ``hyperprior-vbr``, whose rate varies, where its codec is here or can be
    downloaded, or a ``quality`` is asked for; else ``cpips-lite``, whose codec is part of the package."""
    if quality is not None:
        return pretrained.VARIABLE_CODEC
    card = pretrained.model_card(pretrained.VARIABLE_CODEC)
    here = any(path.is_file() for path in _places(card, "codec")) or "CPIPS_CODECS_URL" in os.environ
    return pretrained.VARIABLE_CODEC if here else pretrained.WHEEL_CODEC


def load_classifier(model: str = "cpips") -> LatentClassifier:
    """The classifier of a shipped model that was trained with one (``cpips`` and ``hyperprior-tune``): 200 classes of Tiny
    ImageNet from the rounded latent. The card has its accuracy.

    Raises:
        ModelError: no such model, or one without a classifier.
        WeightsError: the file of the codec or of the classifier is missing, damaged, or not to be had offline.

    Example:
        >>> classifier = load_classifier("cpips")           # doctest: +SKIP
        >>> classifier(images).argmax(1)                    # doctest: +SKIP
    """
    card = pretrained.model_card(model)
    if "classifier_file" not in card:
        having = [name for name in pretrained.list_models() if "classifier_file" in pretrained.model_card(name)]
        raise ModelError(f"{model} has no classifier: choose from {', '.join(having)}")
    state = pretrained.read_weights(_part(card, "classifier"), card["classifier_sha256"])
    return LatentClassifier(open_codec(model), state)


def _part(card: dict[str, Any], part: str) -> Path:
    """The file of a model's codec or classifier, downloaded if need be."""
    file, sha256 = card[f"{part}_file"], card[f"{part}_sha256"]
    places = _places(card, part)
    found = next((path for path in places if path.is_file()), None)
    if found is None and (base := os.environ.get("CPIPS_CODECS_URL")):
        return pretrained.fetch(f"{base.rstrip('/')}/{Path(file).name}", sha256, path=places[1])
    if found is None:
        raise WeightsError(f"the {part} of {card['name']} is not here: put {Path(file).name} of the project's weights/codecs "
                           f"(SHA-256 {sha256[:12]}...) at {places[1]}, set CPIPS_CODECS_URL to the address of that folder, "
                           "or name the file")
    return found


def _places(card: dict[str, Any], part: str) -> list[Path]:
    """Where a model's codec or classifier may lie: beside the encoders, in the cache, in the checkout that is worked in."""
    return [root / card[f"{part}_file"] for root in (pretrained.weights_dir(), pretrained.cache_dir(), Path("weights"))]


def codec_of(compressed: Compressed, codec: Codec | None = None, name: str = "the file") -> Codec:
    """The codec that wrote a file: ``codec`` if given, at the file's quality, else the shipped model that the file names; checked.

    Raises:
        BitstreamError: another codec wrote it, or one that does not ship.
    """
    if codec is None:
        if compressed.codec not in pretrained.list_models():
            raise BitstreamError(f"{name} was compressed with {compressed.codec!r}, which does not ship with cpips: give "
                                 "its weights (--codec FILE)")
        codec = version_of(compressed.codec, compressed.codec_digest)
    check_codec(compressed, codec, name)
    return codec if compressed.quality in (None, codec.quality) else codec.at(compressed.quality)


def version_of(name: str, digest: str) -> Codec:
    """The shipped codec ``name``, or the earlier version ``name@...`` of it whose digest begins with ``digest``."""
    codec = open_codec(name)
    earlier = [model for model in pretrained.list_models() if model.startswith(f"{name}@")]
    for model in earlier if not codec.digest.startswith(digest) else []:
        if (other := open_codec(model)).digest.startswith(digest):
            return other
    return codec


def compress(image: str | os.PathLike[str] | Tensor, path: str | os.PathLike[str], codec: Codec,
             background: images.Background = None) -> int:
    """Write ``image``, a file or ``(3,H,W)`` in [0,1], as ``.cpz``; returns the bytes of the file."""
    tensor = image if isinstance(image, Tensor) else images.load(image, background)
    return write(codec.encode(tensor), path, codec)


def write(stream: container.Bitstream, path: str | os.PathLike[str], codec: Codec) -> int:
    """Keep what ``codec`` made as a ``.cpz`` file; returns its bytes."""
    data = container.pack(stream, codec.name, codec.digest, codec.quality)
    with atomic(Path(path)) as file:
        file.write(data)
    return len(data)


def decompress(path: str | os.PathLike[str], codec: Codec | None = None) -> Tensor:
    """The image in a ``.cpz`` file, ``(3,H,W)`` float in [0,1].

    Raises:
        FileNotFoundError, BitstreamError, WeightsError: the file or the codec it needs is missing or wrong.
    """
    compressed = container.read(path)
    return codec_of(compressed, codec, str(path)).decode(compressed.stream)


def picture_format(path: str | os.PathLike[str]) -> str:
    """The format that an image's suffix asks for.

    Raises:
        ImageError: it is none of ``PICTURES``.
    """
    kind = PICTURES.get(Path(path).suffix.lower())
    if kind is None:
        raise ImageError(f"{path}: choose a lossless format by the suffix, of {', '.join(PICTURES)}")
    return kind


def save_picture(image: Tensor, path: str | os.PathLike[str]) -> None:
    """Write ``(3,H,W)`` in [0,1] as a lossless 8-bit image (PNG, WebP, TIFF or BMP, by the suffix)."""
    kind = picture_format(path)
    with atomic(Path(path)) as file:
        images.to_pil(image).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))


def file_metric(codec: Codec, **settings: Any) -> CPIPS:
    """The metric that a codec's files are compared with: the latent form on the rounded latent.

    ``settings`` as :class:`~cpips.CPIPS` takes them, but for ``quantize``, which is what a file holds.
    """
    metric = CPIPS(codec.state_dict(), quantize=True, **settings)
    metric.name = codec.name
    return metric


def compare(reference: str, others: Sequence[str], codec: Codec | None = None,
            **settings: Any) -> tuple[CPIPS, list[Result]]:
    """Distances of files to a reference, where any of them is a ``.cpz``; images are encoded and rounded.

    Args:
        codec: default: the shipped codec that the first ``.cpz`` names.
        settings: of the metric, see :func:`file_metric`.

    Returns:
        The metric, and for each of ``others`` a result with its distance or its error.
    """
    codec = codec or _first_codec([path for path in (reference, *others) if container.is_compressed(path)])
    metric = file_metric(codec, **settings)
    original = embed(metric, codec, reference)
    results = []
    for path in others:
        try:
            results.append(Result(distance=metric.distance(original, embed(metric, codec, path)).item()))
        except (CpipsError, OSError) as error:
            results.append(Result(error=str(error)))
    return metric, results


def _first_codec(paths: Sequence[str]) -> Codec:
    """The codec of the first file that can be read; the first file's error where none can."""
    errors = []
    for path in paths:
        try:
            return codec_of(container.read(path), name=str(path))
        except (CpipsError, OSError) as error:
            errors.append(error)
    raise errors[0]


def embed(metric: CPIPS, codec: Codec, path: str | os.PathLike[str]) -> Embedding:
    """Embedding of a ``.cpz`` file (by entropy decoding alone) or of an image file, for ``metric.distance``.

    That of a ``.cpz`` equals that of the image it was made from, exactly, if the file has the codec's quality. The latent of a
    file of another quality is brought to the scale of this one.
    """
    if not container.is_compressed(path):
        return metric.embed(path)
    compressed = container.read(path)
    writer = codec_of(compressed, codec, str(path))
    latent = writer.decode_latent(compressed.stream)
    if writer.variable is not None and writer.quality is not None and codec.quality not in (None, writer.quality):
        latent = latent * (writer.variable.gain_at(codec.quality) / writer.variable.gain_at(writer.quality))
    return metric.embed_latent(latent, compressed.size)


def check_codec(compressed: Compressed, codec: Codec, name: str = "the file") -> None:
    """Raise :class:`BitstreamError` unless ``codec`` is the one that wrote it, at whatever quality."""
    if not codec.digest.startswith(compressed.codec_digest):
        raise BitstreamError(f"{name} was compressed with {compressed.codec!r} of digest {compressed.codec_digest}, and "
                             f"this codec has {codec.digest[:16]}: give the weights it was made with (--codec FILE)")
