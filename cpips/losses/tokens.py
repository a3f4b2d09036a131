"""Frozen tokenizers: which of K kinds each cell of 8x8 px of an image is, the labels of the non-binary adversarial loss."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import ImageError, ModelError, WeightsError
from ..files import replace
from .adversarial import CELL


class Tokenizer(nn.Module):
    """Base of the tokenizers: images ``(N,3,H,W)`` in [0,1] to labels ``(N,H/8,W/8)``, int64 in [0,codes)."""

    codes: int
    kind: str
    book: Tensor

    def forward(self, image: Tensor) -> Tensor:
        if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] % CELL or image.shape[3] % CELL:
            raise ImageError(f"images of shape {tuple(image.shape)}: the tokenizer needs (N,3,H,W) with sides that are "
                             f"multiples of {CELL}")
        with torch.no_grad():
            return self._nearest(self._cells(image.float()))

    def usage(self, image: Tensor) -> Tensor:
        """How often each code stands in ``(N,3,H,W)``: shares ``(codes,)``."""
        counts = torch.bincount(self(image).flatten(), minlength=self.codes)
        return counts / counts.sum()

    def save(self, path: Path) -> None:
        """Write as safetensors, which :func:`load_tokenizer` reads."""
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        replace(path, lambda partial: save_file(state, partial, metadata={"kind": self.kind}))

    # ---- what a subclass gives ----------------------------------------------------------------------------------------

    def _cells(self, image: Tensor) -> Tensor:
        """What is compared with the codes, ``(N,D,H/8,W/8)``."""
        raise NotImplementedError

    def _nearest(self, cells: Tensor) -> Tensor:
        """``(N,h,w)``: the nearest of ``self.book`` ``(codes,D)``."""
        n, d, h, w = cells.shape
        flat = cells.permute(0, 2, 3, 1).reshape(-1, d)
        return torch.cdist(flat, self.book).argmin(1).view(n, h, w)


class PatchTokenizer(Tokenizer):
    """k-means of whitened patches of 8x8 px: labels without a network (the cheap stand-in for MS-ILLM's VQ-VAE).

    A patch is centred and reduced to its principal components, each divided by its deviation: without that, brightness
    would be all that the labels tell.

    Args:
        mean: of the patches, ``(192,)``.
        basis: principal components over their deviations, ``(192,D)``.
        book: centres, ``(K,D)``.
    """

    kind = "patches"
    mean: Tensor
    basis: Tensor

    def __init__(self, mean: Tensor, basis: Tensor, book: Tensor):
        super().__init__()
        if mean.shape != (3 * CELL**2,) or basis.shape != (3 * CELL**2, book.shape[-1]) or book.dim() != 2:
            raise ModelError(f"mean {tuple(mean.shape)}, basis {tuple(basis.shape)}, book {tuple(book.shape)}: expected "
                             f"({3 * CELL**2},), ({3 * CELL**2},D) and (K,D)")
        for name, tensor in (("mean", mean), ("basis", basis), ("book", book)):
            self.register_buffer(name, tensor.detach().float().clone())
        self.codes = len(book)

    @classmethod
    def fit(cls, images: Tensor, codes: int = 64, *, dims: int = 24, seed: int = 0) -> "PatchTokenizer":
        """Of the patches of ``images``, ``(N,3,H,W)`` in [0,1]; the same for the same images and seed.

        Args:
            codes: K, centres.
            dims: principal components that are kept.

        Raises:
            ModelError: fewer patches than codes, or more dims than a patch has.
            ImageError: sides that are no multiples of 8 px.
        """
        from scipy.cluster.vq import kmeans2

        if images.shape[2] % CELL or images.shape[3] % CELL:
            raise ImageError(f"images of shape {tuple(images.shape)}: expected sides that are multiples of {CELL}")
        patches = F.pixel_unshuffle(images.float(), CELL).permute(0, 2, 3, 1).reshape(-1, 3 * CELL**2)
        if not 1 <= codes <= len(patches) or not 1 <= dims <= patches.shape[1]:
            raise ModelError(f"{codes} codes and {dims} dims from {len(patches)} patches: expected as many patches as codes "
                             f"or more, and 1 to {patches.shape[1]} dims")
        mean = patches.mean(0)
        variances, vectors = torch.linalg.eigh((patches - mean).T.double().cov())
        # flat originals have components of no variance at all
        basis = (vectors / variances.clamp_min(1e-6).sqrt()).flip(1)[:, :dims].float()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "One of the clusters is empty")  # a code that is never used does no harm
            book, _ = kmeans2(((patches - mean) @ basis).numpy(), codes, minit="++", seed=seed)
        return cls(mean, basis, torch.from_numpy(book))

    def _cells(self, image: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(image, CELL).permute(0, 2, 3, 1)
        return ((patches - self.mean) @ self.basis).permute(0, 3, 1, 2)


def load_tokenizer(path: Path) -> Tokenizer:
    """What :meth:`Tokenizer.save` wrote.

    Raises:
        WeightsError: no such file, or no tokenizer.
    """
    try:
        with safe_open(path, "pt") as stream:
            kind = (stream.metadata() or {}).get("kind", "")
        state: dict[str, Any] = load_file(path)
        return KINDS[kind](**state)
    except (OSError, KeyError, TypeError, ModelError, RuntimeError) as error:
        raise WeightsError(f"{path} is no tokenizer that cpips wrote: {error}") from error
    except Exception as error:  # safetensors has its own, which derives from nothing
        raise WeightsError(f"{path} is damaged: {error}") from error


KINDS = {PatchTokenizer.kind: PatchTokenizer}
