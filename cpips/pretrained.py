"""Where encoders come from: the weights that ship, files of the user's, the CompressAI zoo. Model cards and digests.

A model is data: ``NAME.safetensors`` and the card ``NAME.json`` beside it (what it is, how it was trained, what was
measured, the SHA-256 of the file). Nothing is unpickled, except the zoo's official checkpoints and ``.pth`` files that
the user names, and those with ``weights_only=True``.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import pickle
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable, Mapping, Union

from ._utils.io import check_regular, open_regular
from .errors import ModelError, WeightsError

if TYPE_CHECKING:  # names and cards are read without torch
    import torch
    from torch import Tensor

    from .contrast import ContrastHead
    from .encoders import AnalysisTransform
    from .head import Head

DEFAULT_MODEL = "cpips-lite"
DEFAULT_CODEC = "hyperprior-q4"  # of one rate: where features or a codec are needed and none is named
WHEEL_CODEC = "cpips-lite"  # the one that is part of the package: for them where the other is not to be had
VARIABLE_CODEC = "hyperprior-vbr"  # for files and indexes; of which a quality can be asked, from 0 to 100
DEFAULT_QUALITY = 60.0

Source = Union[str, "os.PathLike[str]", "Mapping[str, Tensor]", "AnalysisTransform"]

ZOO_URL = "https://compressai.s3.amazonaws.com/models/v1/"
# first 8 hex digits of each file's SHA-256, as the official file names carry them
_ZOO_DIGESTS = {
    "mse": "7eb97409 93677231 6d87be32 de1b779c f8b614e1 1ab9c41e 3804dcbd a583f0cf".split(),
    "ms-ssim": "5cf249be 1ff60d1f 92dd7878 4377354e c34afc8d 3a6d8229 8747d3bc cc15b5f3".split(),
}
MAX_BYTES = 4 << 30  # of a download: no encoder or backbone has a quarter of it
MAX_SECONDS = 4 * 3600.0
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar")


# ---- names and cards --------------------------------------------------------------------------------------------------


def list_models() -> list[str]:
    """Names of the models whose weights ship with cpips.

    Beside them: ``'random'`` (an untrained control) and ``'compressai:bmshj2018-hyperprior/mse/1'`` to ``/8`` (and
    ``/ms-ssim/``), the official checkpoints, downloaded on request.

    Example:
        >>> "cpips-lite" in cpips.list_models()
        True
    """
    return sorted(path.stem for path in weights_dir().glob("*.json"))


def model_card(name: str) -> dict[str, Any]:
    """What is known of a shipped model: data, training, rate-distortion, agreement with people, license, digests.

    Raises:
        ModelError: no such model; the message has the nearest names.

    Example:
        >>> card = cpips.model_card("hyperprior-q4")
        >>> card["name"], card["arch"], card["licence"]
        ('hyperprior-q4', 'hyperprior', 'MIT')
    """
    if name not in list_models():
        raise unknown_model(name, list_models())
    try:
        card = json.loads((weights_dir() / f"{name}.json").read_text(encoding="utf-8"))
        return {**card, "file": str(card["file"]), "sha256": str(card["sha256"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"the card of {name} is damaged ({error!r}): reinstall cpips") from error


def weights_dir() -> Path:
    """Folder of the shipped weights (the package ``cpips.weights``).

    Raises:
        WeightsError: the installation lacks them.
    """
    spec = importlib.util.find_spec("cpips.weights")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    checkout = Path(__file__).resolve().parents[1] / "weights"  # python started in a checkout imports this very folder
    if (checkout / "__init__.py").is_file():
        return checkout
    raise WeightsError("the package cpips.weights is missing: install cpips with pip (pip install .)")


def unknown_model(name: str, known: Iterable[str], what: str = "model") -> ModelError:
    """The error for a name that is none of ``known``, with the nearest of them."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name).lower().replace("_", "-"), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
    return ModelError(f"unknown {what} {name!r}: {hint}")


# ---- loading ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """A model as it was stored: its encoder, what to call it, the digest of the encoder's tensors, and, if it has them, the
    calibrated head and the fit of people's opinions to its distance (middle and steepness)."""

    encoder: AnalysisTransform
    name: str
    digest: str
    head: Head | ContrastHead | None = None
    quality: tuple[float, float] | None = None


def load_model(model: Source, *, persistent: bool = True, offline: bool | None = None) -> Loaded:
    """A model; ``model`` as :class:`cpips.CPIPS` takes it.

    Raises:
        ModelError: an unknown name.
        WeightsError: weights missing, damaged, of another network, or not to be had offline.
    """
    from .encoders import AnalysisTransform
    from .head import Head, quality_fit

    if isinstance(model, AnalysisTransform):
        _check_sees(model, "this encoder")
        return Loaded(model, "custom", model.digest())
    if isinstance(model, Mapping):
        name, state = "custom", model
    elif isinstance(model, str) and model == "random":
        encoder = AnalysisTransform.random(persistent=persistent)
        return Loaded(encoder, "random", encoder.digest())
    elif isinstance(model, str) and model.startswith("compressai:"):
        name, state = model, read_weights(fetch_zoo(model, offline))
    elif isinstance(model, os.PathLike) or (isinstance(model, str) and is_path(model)):
        name, state = Path(model).name, read_weights(Path(model))
    elif isinstance(model, str):
        card = model_card(model)
        name, state = model, read_weights(weights_dir() / card["file"], sha256=card["sha256"])
    else:
        raise ModelError(f"model is a {type(model).__name__}: expected a name, a path, a state dict or an encoder")
    encoder = AnalysisTransform.from_state_dict(state, persistent)
    _check_sees(encoder, name)
    return Loaded(encoder, name, encoder.digest(), Head.from_state_dict(state, encoder.channels, persistent), quality_fit(state))


def _check_sees(encoder: AnalysisTransform, name: str) -> None:
    """Refuse an encoder that sees nothing, of which all distances would be 0, and one whose features overflow.

    Raises:
        WeightsError: one of a black image and of a ramp.
    """
    import torch

    ramp = torch.linspace(0, 1, 32, dtype=encoder.dtype, device=encoder.g_a[0].weight.device).expand(3, 32, 32)
    with torch.no_grad():
        features = encoder(torch.stack([torch.zeros_like(ramp), ramp]), tuple(encoder.taps))
    if not all(feature.isfinite().all() for feature in features):
        raise WeightsError(f"the features of {name} overflow: its weights are finite, but too large; train or fetch them again")
    if torch.equal(features[-1][0], features[-1][1]):
        raise WeightsError(f"{name} gives a black image and a ramp the same latent: its weights are zeros, or as good as; train "
                           "or fetch them again")


def read_weights(path: Path, sha256: str | None = None) -> Mapping[str, Tensor]:
    """State dict in a ``.safetensors`` file, or in a torch checkpoint (``weights_only=True``).

    Args:
        sha256: expected digest of the file, whole or its first digits.

    Raises:
        WeightsError: missing, damaged, tampered with, or not weights.
    """
    try:
        check_regular(path)
    except FileNotFoundError:
        raise WeightsError(f"no weights file at {path}: expected a .safetensors file or a torch checkpoint") from None
    except OSError as error:
        raise WeightsError(f"no weights file at {path} ({error.strerror}): expected a .safetensors file or a torch "
                           "checkpoint") from error
    if sha256 is not None:
        verify(path, sha256)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            import torch

            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path} holds more than plain tensors, or is damaged, and was not unpickled: "
                           "save the state dict alone, best as safetensors") from error
    except Exception as error:  # each format has its own errors for a damaged file
        raise WeightsError(f"{path} is damaged or truncated ({type(error).__name__}: {error}): fetch it again") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise WeightsError(f"{path} holds a {type(state).__name__}: expected a state dict")
    return state


def read_checkpoint(path: Path, device: torch.device, kind: str, keys: Iterable[str]) -> dict[str, Any]:
    """The state of a run that can be resumed, a ``torch.save`` of a dict, unpickled with ``weights_only=True``.

    Args:
        kind: of run, for messages: "a refinement".
        keys: what it must hold.

    Raises:
        OSError: it cannot be opened.
        WeightsError: damaged, or something else.
    """
    import torch

    check_regular(path)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        damaged = not isinstance(state, dict) or [key for key in keys if key not in state]
    except Exception as error:  # torch raises almost anything for files that are not its own
        raise WeightsError(f"{path} is no checkpoint of {kind}, or damaged ({type(error).__name__}): delete it, or name another "
                           "file") from error
    if damaged:
        raise WeightsError(f"{path} is no checkpoint of {kind}: delete it, or name another file")
    return state


def is_path(model: str) -> bool:
    """Whether ``model`` names a file of weights, and not one of the models that cpips knows."""
    return model.endswith(_FILE_SUFFIXES) or os.sep in model or (model not in list_models() and Path(model).is_file())


def verify(path: Path, sha256: str) -> None:
    """Refuse a file whose SHA-256 does not begin with ``sha256``.

    Raises:
        WeightsError: the message has both.
    """
    found = file_sha256(path)
    if not found.startswith(sha256):
        raise WeightsError(f"{path} is damaged or was tampered with: its SHA-256 is {found}, expected {_told(sha256)}; "
                           "delete it and install or download it again")


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while block := stream.read(1 << 20):  # VGG16's file has half a gigabyte
            digest.update(block)
    return digest.hexdigest()


def _told(sha256: str) -> str:
    return sha256 if len(sha256) == 64 else f"{sha256}..."


# ---- the zoo and the cache ------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Where downloads are kept: ``CPIPS_HOME``, or ``cpips`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if home := os.environ.get("CPIPS_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpips"


def is_offline(offline: bool | None = None) -> bool:
    """``offline``, or else what ``CPIPS_OFFLINE`` says."""
    if offline is not None:
        return offline
    return os.environ.get("CPIPS_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


def fetch_zoo(model: str, offline: bool | None) -> Path:
    known = [f"compressai:bmshj2018-hyperprior/{metric}/{quality}" for metric in _ZOO_DIGESTS for quality in range(1, 9)]
    if model not in known:
        raise unknown_model(model, known)
    metric, quality = re.fullmatch(r".*/(.+)/(\d)", model).groups()  # type: ignore[union-attr]
    digest = _ZOO_DIGESTS[metric][int(quality) - 1]
    infix = "" if metric == "mse" else "ms-ssim-"
    return fetch(f"{ZOO_URL}bmshj2018-hyperprior-{infix}{quality}-{digest}.pth.tar", digest, offline=offline)


def fetch(url: str, sha256: str, *, path: Path | None = None, offline: bool | None = None,
          timeout: float = 30.0, max_bytes: int = MAX_BYTES, max_seconds: float = MAX_SECONDS) -> Path:
    """Path of the cached copy of ``url``, downloaded if need be; it appears under its name only when whole and verified.

    Args:
        sha256: expected digest, whole or its first digits, where only a file name tells it: eight of them show an
            accident and no forgery.
        path: the copy's place; default: the URL's last part in :func:`cache_dir`.
        offline: ``True`` forbids the download (default: the environment variable ``CPIPS_OFFLINE``).
        timeout: seconds without an answer after which the download is given up.
        max_bytes, max_seconds: most bytes, and most time for all of them.

    Raises:
        WeightsError: offline, no connection, too much or too slow, a wrong digest, or a cache that cannot be written.
    """
    from . import web  # 30 ms that a shipped model does not cost

    path = path or cache_dir() / url.rsplit("/", 1)[1]
    if path.is_file():
        verify(path, sha256)
        return path
    if is_offline(offline):
        raise WeightsError(f"{path.name} is not in the cache and offline mode is on: download {url} (SHA-256 "
                           f"{_told(sha256)}) elsewhere and put it at {path}, or unset CPIPS_OFFLINE")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        stream = partial.open("xb")  # not mkstemp, whose files others who share the cache could not read
    except OSError as error:
        raise WeightsError(f"cannot write to the cache directory {path.parent} ({error.strerror or error}): set CPIPS_HOME to a "
                           "folder that can be written") from error
    try:
        with stream:
            for block in web.receive(url, limit=max_bytes, seconds=max_seconds, stall=timeout):
                stream.write(block)
        found = file_sha256(partial)
        if not found.startswith(sha256):
            raise WeightsError(f"{url} gave other bytes than expected, cut short perhaps (SHA-256 {found}, expected "
                               f"{_told(sha256)}): try again, or put the file at {path}")
        os.replace(partial, path)
    except OSError as error:  # timeouts among them
        raise WeightsError(f"could not download {url} ({str(error)!r}): check the connection, or put the file at "
                           f"{path} (SHA-256 {_told(sha256)})") from error
    finally:
        partial.unlink(missing_ok=True)
    return path
