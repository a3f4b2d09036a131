"""Frozen tokenizers: they assign one of K labels to each cell of 8x8 px, for the non-binary adversarial loss."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any, Mapping

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .._utils.io import check_regular, replace
from ..encoders import tensors_digest
from ..errors import ImageError, ModelError, WeightsError

log = logging.getLogger(__name__)

CELL = 8  # px, each way, that a label stands for


class Tokenizer(nn.Module):
    """Base of the tokenizers: images ``(N,3,H,W)`` in [0,1] to labels ``(N,H/8,W/8)``, int64 in [0,codes).

    ``settings`` is what it was made with; empty for one that was put together from its tensors.

    Example:
        >>> from cpips.losses import PatchTokenizer, Tokenizer
        >>> tokenizer = PatchTokenizer.fit(torch.rand(4, 3, 64, 64), codes=4)
        >>> isinstance(tokenizer, Tokenizer), tokenizer.codes
        (True, 4)
    """

    codes: int
    kind: str
    book: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}

    def forward(self, image: Tensor) -> Tensor:
        _check(image)
        with torch.no_grad():
            return self._nearest(self._cells(image.float()))

    def reconstruct(self, image: Tensor) -> Tensor:
        """What the labels alone tell of ``(N,3,H,W)``, as such."""
        with torch.no_grad():
            return self._draw(F.embedding(self(image), self.book).permute(0, 3, 1, 2))

    def usage(self, image: Tensor) -> Tensor:
        """How often each code stands in ``(N,3,H,W)``: shares ``(codes,)``."""
        counts = torch.bincount(self(image).flatten(), minlength=self.codes)
        return counts / counts.sum()

    def perplexity(self, image: Tensor) -> float:
        """How many codes stand in ``(N,3,H,W)``, were all as frequent: from 1 to ``codes``."""
        return torch.special.entr(self.usage(image)).sum().exp().item()

    @property
    def digest(self) -> str:
        """SHA-256 of the tensors."""
        return tensors_digest(self.state_dict().items())

    def save(self, path: Path) -> None:
        """Write as safetensors, with settings and digest, which :func:`load_tokenizer` reads."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        told = {"kind": self.kind, "settings": json.dumps(self.settings), "digest": self.digest}
        replace(path, lambda partial: save_file(state, partial, metadata=told))

    # ---- what a subclass gives ----------------------------------------------------------------------------------------

    @classmethod
    def _from_state(cls, state: Mapping[str, Tensor]) -> "Tokenizer":
        """Of the tensors of a file."""
        raise NotImplementedError

    def _cells(self, image: Tensor) -> Tensor:
        """What is compared with the codes, ``(N,D,H/8,W/8)``."""
        raise NotImplementedError

    def _draw(self, cells: Tensor) -> Tensor:
        """The image ``(N,3,H,W)`` of codes ``(N,D,H/8,W/8)``."""
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

    Example:
        >>> from cpips.losses import PatchTokenizer
        >>> photos = torch.rand(4, 3, 64, 64)
        >>> tokenizer = PatchTokenizer.fit(photos, codes=4)
        >>> tokenizer(photos).shape
        torch.Size([4, 8, 8])
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

        _check(images)
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
        made = cls(mean, basis, torch.from_numpy(book))
        made.settings = {"codes": codes, "dims": dims, "seed": seed, "images": len(images)}
        return made

    @classmethod
    def _from_state(cls, state: Mapping[str, Tensor]) -> "PatchTokenizer":
        return cls(**state)

    def _cells(self, image: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(image, CELL).permute(0, 2, 3, 1)
        return ((patches - self.mean) @ self.basis).permute(0, 3, 1, 2)

    def _draw(self, cells: Tensor) -> Tensor:
        patches = cells.permute(0, 2, 3, 1) @ torch.linalg.pinv(self.basis) + self.mean
        return F.pixel_shuffle(patches.permute(0, 3, 1, 2), CELL)


class VQTokenizer(Tokenizer):
    """A small vector-quantised autoencoder (van den Oord et al., Neural Discrete Representation Learning, NIPS 2017, arXiv
    1711.00937): labels that see a little of what is around a cell.

    Three strided convolutions of 4x4 and a residual block lead to ``dims`` numbers a cell, whose nearest of ``codes``
    vectors a mirrored decoder draws. The vectors are running means of what fell to them (the paper's appendix A.1). MS-ILLM's
    is larger (taming-transformers' autoencoder with attention), and has 1,024 codes of 8 numbers.

    The quantiser is written out here: it is two dozen lines, and the package that has it (vector-quantize-pytorch) brings
    four others with it.

    Args:
        codes: K.
        width: channels after the first convolution, twice as many after the others.
        dims: numbers a cell.

    Raises:
        ModelError: a setting that is not positive.

    Example:
        >>> from cpips.losses import VQTokenizer
        >>> photos = torch.rand(4, 3, 64, 64)
        >>> tokenizer = VQTokenizer.fit(photos, codes=4, width=8, steps=2)
        >>> tokenizer(photos).shape
        torch.Size([4, 8, 8])
    """

    kind = "vq"
    COMMITMENT, DECAY = 0.25, 0.99  # the paper's beta and gamma
    RARE = 0.1  # of an equal share of the cells: codes that get fewer are put elsewhere

    def __init__(self, codes: int, width: int = 32, dims: int = 8):
        super().__init__()
        if min(codes, width, dims) < 1:
            raise ModelError(f"codes {codes}, width {width}, dims {dims}: expected positive numbers")
        self.codes, wide = codes, 2 * width
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, wide, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(wide, wide, 4, 2, 1), Residual(wide, wide), nn.LeakyReLU(0.2), nn.Conv2d(wide, dims, 1))
        self.decoder = nn.Sequential(
            nn.Conv2d(dims, wide, 3, 1, 1), Residual(wide, wide), nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(wide, wide, 4, 2, 1), nn.LeakyReLU(0.2), nn.ConvTranspose2d(wide, width, 4, 2, 1),
            nn.LeakyReLU(0.2), nn.ConvTranspose2d(width, 3, 4, 2, 1))
        self.register_buffer("book", torch.zeros(codes, dims))
        self.requires_grad_(False)

    @classmethod
    def fit(cls, images: Tensor, codes: int = 64, *, width: int = 32, dims: int = 8, steps: int = 1000, batch: int = 16,
            lr: float = 1e-3, seed: int = 0) -> "VQTokenizer":
        """Trained on ``images``, ``(N,3,H,W)`` in [0,1]; the same for the same images and seed, on one machine with as many
        threads.

        Args:
            codes, width, dims: of the network.
            steps: of Adam, each of ``batch`` images drawn at random; ``lr`` falls along a cosine.

        Raises:
            ModelError: a setting that is not positive, or not one image.
            ImageError: sides that are no multiples of 8 px.
            FloatingPointError: training diverged.
        """
        _check(images)
        if min(len(images), steps, batch) < 1 or not 0 < lr < float("inf"):
            raise ModelError(f"{len(images)} images, steps {steps}, batch {batch}, lr {lr!r}: expected positive numbers")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = cls(codes, width, dims)
            made._train(images, steps, batch, lr)
        made.settings = {"codes": codes, "width": width, "dims": dims, "steps": steps, "batch": batch, "lr": lr, "seed": seed,
                         "images": len(images)}
        return made

    def _train(self, images: Tensor, steps: int, batch: int, lr: float) -> None:
        learned = [p.requires_grad_(True) for p in self.parameters()]
        optimizer = torch.optim.Adam(learned, lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        variance = images.float().var().clamp_min(1e-4)
        counts = torch.zeros(self.codes)  # of the cells of a batch, running means; 0: nowhere yet
        for step in range(steps):
            x = images[torch.randint(len(images), (batch,))].float()
            cells = self._cells(x)
            labels = self._nearest(cells.detach()).flatten()
            self._move(cells.detach().permute(0, 2, 3, 1).flatten(0, 2), labels, counts)
            nearest = F.embedding(labels.view(-1, *cells.shape[2:]), self.book).permute(0, 3, 1, 2)
            passed = cells + (nearest - cells).detach()  # straight through
            error = F.mse_loss(self.decoder(passed), x - 0.5) / variance
            loss = error + self.COMMITMENT * F.mse_loss(cells, nearest)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if not loss.isfinite():
                raise FloatingPointError(f"the tokenizer diverged at step {step}: lower its lr (now {lr})")
            if (step + 1) % 100 == 0:
                log.info("tokenizer: step %d of %d, error %.3f of the variance", step + 1, steps, error.item())
        self.requires_grad_(False)

    def _move(self, cells: Tensor, labels: Tensor, counts: Tensor) -> None:
        """Codes move to the running mean of their cells ``(n,D)``; those that get next to none, to cells drawn at random."""
        found = torch.bincount(labels, minlength=self.codes).float()
        sums = (self.book * counts[:, None]).lerp(torch.zeros_like(self.book).index_add_(0, labels, cells), 1 - self.DECAY)
        counts.lerp_(found, 1 - self.DECAY)
        self.book.copy_(sums / counts.clamp_min(1e-12)[:, None])
        share = len(cells) / self.codes
        rare = (counts < self.RARE * share).nonzero()[:, 0]
        self.book[rare] = cells[torch.randint(len(cells), (len(rare),))]
        counts[rare] = share

    @classmethod
    def _from_state(cls, state: Mapping[str, Tensor]) -> "VQTokenizer":
        codes, dims = state["book"].shape
        made = cls(codes, len(state["encoder.0.bias"]), dims)
        made.load_state_dict(state)
        return made

    def _cells(self, image: Tensor) -> Tensor:
        return self.encoder(image - 0.5)

    def _draw(self, cells: Tensor) -> Tensor:
        return self.decoder(cells) + 0.5


KINDS: dict[str, type[Tokenizer]] = {PatchTokenizer.kind: PatchTokenizer, VQTokenizer.kind: VQTokenizer}


def load_tokenizer(path: Path) -> Tokenizer:
    """What :meth:`Tokenizer.save` wrote.

    Raises:
        WeightsError: no such file, no tokenizer, or tensors that are not those that were written.

    Example:
        >>> from cpips.losses import PatchTokenizer, load_tokenizer
        >>> tokenizer = PatchTokenizer.fit(torch.rand(4, 3, 64, 64), codes=4)
        >>> tokenizer.save("tokenizer.safetensors")
        >>> load_tokenizer("tokenizer.safetensors").digest == tokenizer.digest
        True
    """
    try:
        check_regular(path)
        with safe_open(path, "pt") as stream:
            told = stream.metadata() or {}
        made = KINDS[told["kind"]]._from_state(load_file(path))
        made.settings = json.loads(told["settings"])
        digest = told["digest"]
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:  # ValueError: ModelError, JSON
        raise WeightsError(f"{path} is no tokenizer that cpips wrote: {error}") from error
    except Exception as error:  # safetensors has its own, which derives from nothing
        raise WeightsError(f"{path} is damaged: {error}") from error
    if made.digest != digest:
        raise WeightsError(f"{path} is damaged: its tensors are not those that were written; delete it, and it is made anew")
    return made


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, ``(N,before,h,w)`` to ``(N,after,h,w)``."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.second(F.leaky_relu(self.first(F.leaky_relu(x, 0.2)), 0.2))


def _check(image: Tensor) -> None:
    if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] % CELL or image.shape[3] % CELL:
        raise ImageError(f"images of shape {tuple(image.shape)}: the tokenizer needs (N,3,H,W) with sides that are multiples "
                         f"of {CELL}")
