"""Sums of losses with named terms."""

from __future__ import annotations

from typing import Any, Callable, Mapping, Union

from torch import Tensor, nn

from ..errors import ModelError
from .base import OUTPUT, TARGET, FeatureLoss, Features, Loss, Target, ValueRange

Term = Callable[[Tensor, Tensor], Tensor]


class CombinedLoss(nn.Module):
    """A weighted sum of named losses, which returns what it is made of.

    ::

        loss = CombinedLoss({"perceptual": PerceptualLoss(), "charbonnier": (10, CharbonnierLoss())})
        total, parts = loss(output, target)
        total.backward()
        logger.log(parts)       # {"perceptual": ..., "charbonnier": ..., "total": ...}

    Terms that share one :class:`~cpips.losses.FeatureExtractor` share its pass over the output, and over the target where
    they have one target.

    Args:
        terms: by name, a loss or a pair of weight and loss. A loss is any callable of output and target that returns a
            scalar: those of this package, of torch, or a function. The weights may be changed later, ``loss.weights``.

    Raises:
        ModelError: no terms, a name that torch or the log cannot have, or a weight that is not a finite number.

    Example:
        >>> from cpips.losses import CharbonnierLoss, CombinedLoss, TotalVariationLoss
        >>> loss = CombinedLoss({"pixels": (10, CharbonnierLoss()), "smooth": (0.01, TotalVariationLoss())})
        >>> total, parts = loss(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
        >>> sorted(parts)
        ['pixels', 'smooth', 'total']
    """

    def __init__(self, terms: Mapping[str, Union[Term, "tuple[float, Term]"]]):
        super().__init__()
        if not terms:
            raise ModelError("there are no terms: expected {'name': loss} or {'name': (weight, loss)}")
        self.weights: dict[str, float] = {}
        self._functions: dict[str, Term] = {}
        self.terms = nn.ModuleDict()
        for name, term in terms.items():
            weight, term = term if isinstance(term, tuple) else (1.0, term)
            if not isinstance(name, str) or not name or "." in name or name == "total":
                raise ModelError(f"a term is named {name!r}: expected a string without dots, other than 'total'")
            if not isinstance(weight, (int, float)) or not abs(weight) < float("inf"):
                raise ModelError(f"the weight of {name} is {weight!r}: expected a finite number")
            if not callable(term):
                raise ModelError(f"{name} is a {type(term).__name__}: expected a loss, or a pair of weight and loss")
            if getattr(term, "reduction", "mean") == "none":
                raise ModelError(f"{name} has reduction 'none': the terms of a sum are scalars, choose 'mean' or 'sum'")
            self.weights[name] = float(weight)
            if not isinstance(term, nn.Module):
                self._functions[name] = term
            elif hasattr(self.terms, name):
                raise ModelError(f"a term is named {name!r}, as a part of torch's ModuleDict is: choose another name")
            else:
                self.terms[name] = term
        losses = {name: term for name, term in self.terms.items() if isinstance(term, FeatureLoss)}
        groups: dict[tuple[int, ValueRange], list[str]] = {}
        for name, term in losses.items():
            if term.extractor is not None:
                groups.setdefault((id(term.extractor), term.value_range), []).append(name)
        self._groups = [names for names in groups.values() if len(names) > 1]

    def forward(self, output: Tensor, target: "Tensor | Mapping[str, Target] | None" = None,
                ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum, with its graph, and its parts.

        Args:
            output: ``(N,3,H,W)``.
            target: for all terms, or a mapping with one for each that needs one: an image, or what the term's
                :meth:`~cpips.losses.Loss.embed` made of it. :meth:`embed` does that for all.

        Returns:
            ``total``, a scalar, and ``parts``: the terms before their weights, and ``total``; detached scalars where the
            images are, read by nobody yet (``.item()`` waits for a GPU).

        Raises:
            ImageError: images that a term refuses.
        """
        targets = target if isinstance(target, Mapping) else dict.fromkeys(self.weights, target)
        if unknown := sorted(set(targets) - set(self.weights)):
            raise ModelError(f"targets for {unknown}, which are not among the terms {tuple(self.weights)}")
        known = self._shared(output, OUTPUT, "features")
        if isinstance(target, Tensor):
            for name, features in self._shared(target, TARGET, "target_features").items():
                known[name] |= features
        total: Any = 0.0
        parts = {}
        for name, weight in self.weights.items():
            value = self._term(name)(output, targets.get(name), **known.get(name, {}))
            if value.dim():
                raise ModelError(f"{name} gave a tensor of shape {tuple(value.shape)}: the terms of a sum are scalars")
            total = total + weight * value
            parts[name] = value.detach()
        parts["total"] = total.detach()
        return total, parts

    def embed(self, target: Tensor | None) -> dict[str, Target | None]:
        """What :meth:`forward` takes in place of a ``target`` that is used often: of each term its own, computed once."""
        known = {} if target is None else self._shared(target, TARGET, "features")
        embedded: dict[str, Target | None] = {}
        for name in self.weights:
            term = self._term(name)
            embeds = isinstance(term, Loss) and target is not None
            embedded[name] = term.embed(target, **known.get(name, {})) if embeds else target
        return embedded

    def _term(self, name: str) -> Any:
        return self._functions[name] if name in self._functions else self.terms[name]

    def _shared(self, image: Tensor, role: str, keyword: str) -> dict[str, dict[str, Features]]:
        """By term, for the terms whose extractor others use, too: the features of the image, under a keyword."""
        known = {}
        for names in self._groups:
            first = self._term(names[0])
            wanted = [tap for name in names for tap in self._term(name).taps]
            features = first.extractor(first._prepare(image, role), wanted)
            known.update({name: {keyword: features} for name in names})
        return known
