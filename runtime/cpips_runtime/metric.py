"""The graphs of a model of cpips, as a metric of numpy arrays."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence, Union

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from . import arrays, opinion
from .arrays import Background
from .errors import ImageError, ModelError, WeightsError

ImageLike = Union["NDArray[Any]", Image.Image, str, "os.PathLike[str]", Sequence[Any]]
Floats = NDArray[np.float32]

GRAPHS = Path(__file__).with_name("graphs")
MANIFEST = "graphs.json"


@dataclass(frozen=True, eq=False)
class Embedding:
    """Features of a batch of images, reusable: made by :meth:`CPIPS.embed`, compared by :meth:`CPIPS.distance`.

    ``features`` holds one ``(N,C,h,w)`` float32 per map that is compared, ``size`` the images' (H,W), ``key`` what made it:
    embeddings of different models do not compare.
    """

    features: tuple[Floats, ...]
    size: tuple[int, int]
    key: str

    def __len__(self) -> int:
        return len(self.features[0])

    def __getitem__(self, index: int | slice) -> Embedding:
        """Some of the images; an integer keeps the batch axis."""
        if not isinstance(index, slice):
            start = range(len(self))[index]  # IndexError past the end
            index = slice(start, start + 1)
        return Embedding(tuple(feature[index] for feature in self.features), self.size, self.key)

    def expand(self, count: int) -> Embedding:
        """One image repeated ``count`` times."""
        return Embedding(tuple(np.repeat(feature, count, axis=0) for feature in self.features), self.size, self.key)


class CPIPS:
    """Perceptual distance between images, from a codec's encoder. Lower is closer; 0 for equal images.

    Numbers agree to 1e-5 with those of ``cpips.CPIPS`` for the same model, on a CPU in float32.

    Args:
        graphs: a folder that ``cpips export MODEL -o FOLDER`` wrote; default: the model ``cpips-lite``, which comes along.
        background: what to composite images with alpha on: a color name, or three floats in [0,1]; ``None`` refuses them.
        icc: whether color profiles of files and PIL images are applied.
        threads: of a computation; default: as many as there are cores.

    Raises:
        ModelError: a setting that cannot be.
        WeightsError: graphs missing, damaged, or that ONNX Runtime cannot load.

    Example:
        >>> metric = cpips_runtime.CPIPS()
        >>> image = np.zeros((40, 60, 3), np.uint8)
        >>> metric(image, image)
        array([0.], dtype=float32)
    """

    lower_is_better = True

    def __init__(self, graphs: str | os.PathLike[str] | None = None, *, background: Background = None, icc: bool = True,
                 threads: int | None = None):
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise ModelError(f"threads is {threads!r}: expected a number of 1 or more, or None for as many as there are cores")
        if background is not None:
            arrays.colour(background)
        self.background, self.icc, self.threads = background, bool(icc), threads
        self._folder = Path(GRAPHS if graphs is None else graphs)
        try:
            manifest = json.loads((self._folder / MANIFEST).read_text(encoding="utf-8"))
            self._sha256: dict[str, str] = dict(manifest["sha256"])
            self.name, self._signature, self._key = (str(manifest[key]) for key in ("model", "cpips.signature", "cpips.key"))
            fit = json.loads(manifest["cpips.quality"])
            self._quality_fit = None if fit is None else (float(fit[0]), float(fit[1]))
        except FileNotFoundError:
            raise WeightsError(f"no {MANIFEST} in {self._folder}: give a folder that `cpips export MODEL -o FOLDER` wrote") from None
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise WeightsError(f"{self._folder / MANIFEST} is damaged ({error!r}): {self._again}") from error
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def __call__(self, reference: ImageLike, image: ImageLike) -> Floats:
        """Distances ``(N,)`` of images to their references.

        Args:
            reference, image: an array ``(H,W,3)`` or ``(N,H,W,3)``, uint8 or float in [0,1], a PIL image, a path, or a list of
                single images of one size.

        Raises:
            ImageError: input that cannot be compared; the message says what it got and how to fix it.
        """
        x, y = self._prepare_pair(reference, image)
        return self._compare(self._encode(x), self._encode(y))

    def map(self, reference: ImageLike, image: ImageLike) -> Floats:
        """Where the images differ: ``(N,1,H,W)``, whose mean over H and W is the distance."""
        x, y = self._prepare_pair(reference, image)
        found: Floats = self._session("map").run(None, {"x": x, "y": y})[0]
        return found

    def embed(self, image: ImageLike) -> Embedding:
        """The features that :meth:`distance` compares; encode once, compare often."""
        return self._encode(self._prepare(image, "image"))

    def distance(self, a: Embedding, b: Embedding) -> Floats:
        """As calling the metric on the images of which ``a`` (the references) and ``b`` are the embeddings.

        Either may hold a single image, which is then compared with each of the other's.

        Raises:
            ImageError: embeddings of another model, or of other numbers or sizes of images.
        """
        return self._compare(*arrays.paired(self._own(a), self._own(b)))

    @property
    def has_quality(self) -> bool:
        """Whether :meth:`quality` has a fit to people's opinions."""
        return self._quality_fit is not None

    def quality(self, reference: ImageLike, image: ImageLike) -> NDArray[np.float64]:
        """The expected opinion of people on the images, ``(N,)``: 5 imperceptible ... 1 very annoying.

        Raises:
            ModelError: a model without a fit to human ratings.
            ImageError: as calling the metric.
        """
        return self.quality_of(self(reference, image))

    def quality_of(self, distance: Any) -> NDArray[np.float64]:
        """As :meth:`quality`, of distances of any shape that this metric gave."""
        if self._quality_fit is None:
            raise ModelError(f"{self.name} has no fit to human ratings: use cpips-lite")
        found: NDArray[np.float64] = opinion.expected(np.asarray(distance, np.float64), *self._quality_fit)
        return found

    @property
    def signature(self) -> str:
        """One line that says what was measured: print it beside scores."""
        return f"{self._signature}{'' if self.icc else '|color profiles ignored'}|onnxruntime {onnxruntime.__version__}"

    def __repr__(self) -> str:
        return f"CPIPS({self.name!r}, onnxruntime {onnxruntime.__version__})"

    # ---- the parts --------------------------------------------------------------------------------------------------

    def _prepare(self, image: ImageLike, name: str) -> Floats:
        batch = as_batch(image, self.background, name, self.icc)
        with np.errstate(invalid="ignore"):
            arrays.check_range(float(batch.min()), float(batch.max()), name)
        return batch.astype(np.float32, copy=False)

    def _prepare_pair(self, reference: ImageLike, image: ImageLike) -> tuple[Floats, Floats]:
        x, y = self._prepare(reference, "the first image"), self._prepare(image, "the second image")
        arrays.check_same_size(x, y)
        return x, y

    def _encode(self, batch: Floats) -> Embedding:
        return Embedding(tuple(self._session("embed").run(None, {"image": batch})), (batch.shape[2], batch.shape[3]), self._key)

    def _compare(self, a: Embedding, b: Embedding) -> Floats:
        session = self._session("compare")
        values = [*a.features, *b.features, np.array(a.size, np.int64)]
        found: Floats = session.run(None, {given.name: value for given, value in zip(session.get_inputs(), values)})[0]
        return found

    def _own(self, embedding: Embedding) -> Embedding:
        arrays.check_own(embedding, Embedding, self._key)
        return embedding

    def _session(self, graph: str) -> onnxruntime.InferenceSession:
        if graph not in self._sessions:
            path = self._folder / f"{graph}.onnx"
            if path.name not in self._sha256:
                raise WeightsError(f"{self._folder} has no graph {path.name}: {self._again}")
            try:
                content = path.read_bytes()
            except OSError as error:
                raise WeightsError(f"no graph {path} ({error.strerror}): {self._again}") from error
            found, expected = hashlib.sha256(content).hexdigest(), self._sha256[path.name]
            if found != expected:
                raise WeightsError(f"{path} is damaged or was tampered with: its SHA-256 is {found}, expected {expected}; {self._again}")
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.inter_op_num_threads = 1
            options.intra_op_num_threads = self.threads or 0
            options.enable_mem_reuse = False  # to plan it takes most of the time of a load, and it saves no memory
            try:
                self._sessions[graph] = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime's are of no common class
                raise WeightsError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path} ({' '.join(str(error).split())}): "
                                   "install a newer one, pip install -U onnxruntime") from error
        return self._sessions[graph]

    @property
    def _again(self) -> str:
        return "install cpips-runtime again" if self._folder == GRAPHS else "write it again with `cpips export MODEL -o FOLDER`"


def as_batch(image: ImageLike, background: Background, name: str, icc: bool) -> NDArray[Any]:
    """Any accepted image as a batch ``(N,3,H,W)``, float; its values are not looked at yet.

    Raises:
        ImageError: anything else; the message says what it got and how to fix it.
    """
    if isinstance(image, np.ndarray):
        return arrays.from_array(image, name)
    if isinstance(image, Image.Image):
        return arrays.from_pil(image, background, name, icc)[None]
    if isinstance(image, (str, os.PathLike)):
        with arrays.opened(image) as file:
            return arrays.from_pil(file, background, str(image), icc)[None]
    if isinstance(image, (list, tuple)):
        return np.concatenate(arrays.from_list(image, lambda each, label: as_batch(each, background, label, icc), name))
    raise ImageError(f"{name} is a {type(image).__name__}: expected a numpy array, PIL image, path, or a list of those; a tensor "
                     "becomes an array with x.movedim(-3, -1).numpy(force=True)")
