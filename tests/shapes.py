"""Shapes of the public functions on tensors and arrays, checked at run time: jaxtyping says them, beartype checks.

``import cpips`` needs neither: the signatures stand here, and :func:`install` puts checked copies in the places of the
functions, for one test or, with ``pytest --shapes``, for all of them. Letters are bound within a call: what a signature
calls C twice must have one size.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Mapping  # beartype warns of those of typing
from typing import Any

import numpy as np
import torch
from beartype import beartype
from jaxtyping import Float, Int, Shaped, jaxtyped
from torch import Tensor

import bapps_eval.opinions
import bapps_eval.scores
import bapps_eval.significance
import bapps_eval.statistics
import cpips.metric
from cpips import encoders, forms, images
from cpips.losses import adversarial, content, pixels, style
from cpips.realism import distances, wasserstein
from cpips.viz import heatmap

Reduced = Float[Tensor, "N"] | Float[Tensor, ""]
ByTap = Mapping[str, Float[Tensor, "N _ _ _"]]  # sides and channels are each tap's own
Maps = Float[Tensor, "N C h w"]
Cells = Float[Tensor, "N h w"]
Items = Shaped[np.ndarray, "n"]
PAIR = {"output": Float[Tensor, "N C H W"], "target": Float[Tensor, "#N C H W"], "return": Reduced}
OF_FEATURES = {"output": ByTap, "target": Mapping[str, Float[Tensor, "_ _ _ _"]], "return": Reduced}

SIGNATURES: dict[tuple[Any, str], dict[str, Any]] = {
    (forms, "cells"): {"f": Maps, "g": Maps, "weight": Float[Tensor, "C"] | None, "return": Cells},
    (forms, "local"): {"f": Maps, "g": Maps, "weight": Float[Tensor, "C"] | None,
                       "return": Cells | Float[Tensor, "N 2 h w"]},
    (forms, "whole"): {"part": Cells | Float[Tensor, "N 2 h w"], "return": Cells},
    (encoders.AnalysisTransform, "forward"): {"x": Float[Tensor, "N 3 H W"],
                                              "return": tuple[Float[Tensor, "N _ _ _"], ...]},
    (encoders.AnalysisTransform, "stage"): {"x": Float[Tensor, "N _ _ _"], "return": Float[Tensor, "N _ _ _"]},
    (cpips.metric.CPIPS, "forward"): {"return": Reduced},
    (cpips.metric.CPIPS, "map"): {"return": Float[Tensor, "N 1 H W"]},
    (cpips.base.FeatureMetric, "pairwise"): {"return": Float[Tensor, "A B"]},
    (cpips.metric, "cell_mean"): {"values": Cells, "return": Float[Tensor, "N"]},
    (images, "halved"): {"x": Float[Tensor, "N C _ _"], "return": Float[Tensor, "N C _ _"]},
    (pixels, "charbonnier_loss"): PAIR,
    (pixels, "total_variation_loss"): {"output": Float[Tensor, "N C H W"], "return": Reduced},
    (content, "content_loss"): OF_FEATURES,
    (style, "gram_matrix"): {"features": Maps, "return": Float[Tensor, "N P C C"]},
    (style, "style_loss"): OF_FEATURES,
    (adversarial, "nonbinary_generator_loss"): {"fake": Float[Tensor, "N K h w"], "labels": Int[Tensor, "N h w"],
                                                "return": Float[Tensor, ""]},
    (adversarial, "nonbinary_discriminator_loss"): {
        "real": Float[Tensor, "N K h w"], "fake": Float[Tensor, "N K h w"], "labels": Int[Tensor, "N h w"],
        "return": Float[Tensor, ""]},
    (wasserstein, "wasserstein_distortion"): OF_FEATURES,
    (wasserstein, "foveation_map"): {"return": Float[Tensor, "H W"]},
    (wasserstein, "mask_map"): {"mask": Shaped[Tensor, "*shape"], "return": Float[Tensor, "*shape"]},
    (distances, "frechet"): {"mean": Float[Tensor, "D"], "covariance": Float[Tensor, "D D"], "mean2": Float[Tensor, "D"],
                             "covariance2": Float[Tensor, "D D"]},
    (distances, "mmd"): {"x": Float[Tensor, "n D"], "y": Float[Tensor, "m D"]},
    (heatmap, "smooth"): {"values": Shaped[np.ndarray, "H W"], "return": Shaped[np.ndarray, "_ _"]},
    (heatmap, "overlay"): {"image": Shaped[np.ndarray, "H W 3"], "heat": Shaped[np.ndarray, "H W"],
                           "return": Shaped[np.ndarray, "H W 3"]},
    (bapps_eval.scores, "two_afc_credits"): {"return": Float[np.ndarray, "n"]},
    (bapps_eval.scores, "logistic_fit"): {"return": Float[np.ndarray, "n"]},
    (bapps_eval.opinions, "standardized_errors"): {"return": Float[np.ndarray, "n"]},
    (bapps_eval.opinions, "quality_bands"): {"return": Shaped[np.ndarray, "n"]},
    (bapps_eval.significance, "holm"): {"return": Float[np.ndarray, "k"]},
    (bapps_eval.scores, "tie_ends"): {"d": Items, "second": Items, "return": tuple[Items, Shaped[np.ndarray, "_"]]},
    (bapps_eval.statistics, "bootstrap_means"): {"values": Shaped[np.ndarray, "n m"], "groups": Items,
                                                 "return": dict[str, Float[np.ndarray, "_ m"]]},
    (bapps_eval.statistics, "bootstrap_srcc"): {"d": Items, "quality": Items, "return": Float[np.ndarray, "_"]},
    (bapps_eval.statistics, "bootstrap_average_precision"): {"d": Items, "same": Items, "return": Float[np.ndarray, "_"]},
}


def checked(function: Callable[..., Any], shapes: Mapping[str, Any]) -> Callable[..., Any]:
    """A copy of ``function`` that raises ``jaxtyping.TypeCheckError`` where an argument or result breaks ``shapes``."""
    if unknown := set(shapes) - {"return", *inspect.signature(function).parameters}:
        raise TypeError(f"{function.__qualname__} has no parameters {sorted(unknown)}: its signature has changed")
    copy = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__,
                              function.__closure__)
    copy.__kwdefaults__, copy.__annotations__, copy.__module__ = function.__kwdefaults__, dict(shapes), function.__module__
    inner = jaxtyped(typechecker=beartype)(copy)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # a tracer would follow the checker
        return (function if torch.compiler.is_compiling() or torch.jit.is_tracing() else inner)(*args, **kwargs)

    return call


def install(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Put checked copies wherever a module or class holds one of the functions."""
    for (holder, name), (function, copy) in _copies().items():
        put(holder, name, copy)
        for module in [m for key, m in sys.modules.items() if key.startswith(("cpips.", "bapps_eval."))]:
            for alias in [alias for alias, value in vars(module).items() if value is function]:
                put(module, alias, copy)


@functools.cache
def _copies() -> dict[tuple[Any, str], tuple[Callable[..., Any], Callable[..., Any]]]:
    functions = {place: vars(place[0])[place[1]] for place in SIGNATURES}
    return {place: (function, checked(function, SIGNATURES[place])) for place, function in functions.items()}
