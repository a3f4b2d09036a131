"""The metric in JAX, against torch."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from cpips import CPIPS, ImageError, ModelError
from cpips._utils.optional import needing
from cpips.encoders import HYPERPRIOR, LITE, AnalysisTransform
from cpips.errors import CpipsError

ROOT = Path(__file__).resolve().parents[1]
needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax (extra jax) is not installed")

# height and width: single pixels, cells that reach out of the image, whole cells
SIZES = [(1, 1), (33, 65), (64, 48)]


def pairs(height: int, width: int, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(height + width)
    x = rng.random((count, 3, height, width), dtype=np.float32)
    return x, np.clip(x + rng.normal(0, 0.1, x.shape), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def metric() -> CPIPS:
    return CPIPS()


@pytest.fixture(scope="module")
def params(metric):
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax (extra jax) is not installed")
    from cpips import jax as cpips_jax

    return cpips_jax.load(metric)


@pytest.fixture(scope="module")
def numbers(params):
    """Distances, qualities and maps in one compiled function: a compilation for each size."""
    import jax
    from cpips import jax as cpips_jax

    def of(params, x, y):
        pair = cpips_jax.embed(params, x), cpips_jax.embed(params, y)
        return cpips_jax.distance(params, *pair), cpips_jax.quality(params, *pair), cpips_jax.map(params, *pair)

    return jax.jit(of)


@pytest.mark.parametrize("size", SIZES)
def test_distances_maps_and_qualities_are_those_of_torch(metric, params, numbers, size):
    x, y = pairs(*size)
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    distances, qualities, maps = numbers(params, x, y)
    np.testing.assert_allclose(distances, metric(*tensors), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(qualities, metric.quality(*tensors), rtol=1e-5)
    assert maps.shape == (2, 1, *size)
    np.testing.assert_allclose(maps, metric.map(*tensors), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.asarray(maps).mean((1, 2, 3)), distances, rtol=1e-5)
    distances, qualities, _ = numbers(params, x, x)
    assert np.abs(distances).max() < 1e-12 and np.abs(qualities - 5).max() < 1e-6  # compiled, the two encodings may differ in a last bit


@needs_jax
@pytest.mark.parametrize("architecture", [LITE, HYPERPRIOR], ids=lambda each: each.name)
def test_other_encoders_and_settings(architecture):
    import jax
    from cpips import jax as cpips_jax

    metric = CPIPS(AnalysisTransform.random(N=6, M=8, architecture=architecture), form="contrast", scales=2)
    x, y = pairs(35, 50)
    found = jax.jit(cpips_jax.distance)(cpips_jax.load(metric), x, y)
    np.testing.assert_allclose(found, metric(torch.from_numpy(x), torch.from_numpy(y)), rtol=1e-5)


def test_compiled_mapped_and_from_embeddings(metric, params):
    import jax
    from cpips import jax as cpips_jax

    x, y = pairs(33, 40, 3)
    expected = metric(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    one = jax.jit(jax.vmap(lambda a, b: cpips_jax.distance(params, a[None], b[None])[0]))
    np.testing.assert_allclose(one(x, y), expected, rtol=1e-5)
    embed, distance = jax.jit(cpips_jax.embed), jax.jit(cpips_jax.distance)
    first, second = embed(params, x), embed(params, y)
    np.testing.assert_allclose(distance(params, first, second), expected, rtol=1e-5)
    single = jax.tree_util.tree_map(lambda leaf: leaf[:1], first)
    expected = metric(torch.from_numpy(x[:1]).expand(3, -1, -1, -1), torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(distance(params, single, second), expected, rtol=1e-5)


@pytest.fixture(scope="module")
def slopes(params):
    """Gradients of the sum of the distances for parameters, references and images, compiled once."""
    import jax
    from cpips import jax as cpips_jax

    return jax.jit(jax.grad(lambda *given: cpips_jax.distance(*given).sum(), argnums=(0, 1, 2)))


def test_gradients_are_those_of_torch(metric, params, slopes):
    x, y = pairs(24, 40, 1)
    first, second = (torch.from_numpy(each.copy()).requires_grad_() for each in (x, y))
    metric(first, second, reduction="sum").backward()
    _, *found = slopes(params, x, y)
    for mine, theirs in zip(found, (first.grad, second.grad)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_gradients_are_finite_everywhere(params, slopes):
    """Of equal, black, white and constant images, for both images and for all parameters; also of the quality, whose fit is steep at 0."""
    import jax
    from cpips import jax as cpips_jax

    x, _ = pairs(24, 40, 1)
    black, white = np.zeros_like(x), np.ones_like(x)
    for name, a, b in (("equal", x, x), ("black", black, black), ("white and black", white, black), ("white and noise", white, x)):
        found = jax.tree_util.tree_leaves(slopes(params, a, b))
        assert len(found) > 10 and all(np.isfinite(slope).all() for slope in found), name
    embedding = jax.jit(cpips_jax.embed)(params, x)
    found = jax.grad(lambda each: cpips_jax.quality(params, embedding, each).sum())(embedding)
    assert all(np.isfinite(slope).all() for slope in jax.tree_util.tree_leaves(found))


def test_other_input_is_refused(params):
    from cpips import jax as cpips_jax

    x, _ = pairs(16, 16)
    for given, said in [(x[0], r"\(N,3,H,W\)"), (np.moveaxis(x, 1, -1), "channels last"), ((x * 255).astype(np.uint8), "divide by the white"),
                        (x[:0], "1 or more")]:
        with pytest.raises(ImageError, match=said):
            cpips_jax.embed(params, given)
    with pytest.raises(ImageError, match="different sizes, 16x16 and 15x16 px"):
        cpips_jax.distance(params, x, x[..., :15])
    with pytest.raises(ImageError, match="hold 2 and 3 images"):
        cpips_jax.distance(params, x, np.repeat(x[:1], 3, 0))
    other = cpips_jax.load(CPIPS(AnalysisTransform.random(N=6, M=8, architecture=LITE), form="contrast"))
    with pytest.raises(ImageError, match="another model"):
        cpips_jax.distance(params, cpips_jax.embed(other, x), x)
    with pytest.raises(ModelError, match="no fit"):
        cpips_jax.quality(other, x, x)
    with pytest.raises(ModelError, match="form 'contrast'"):
        cpips_jax.load("random")


def test_the_signature_names_the_model(metric, params):
    assert params.signature == f"{metric.signature}|jax"


def test_only_this_module_imports_jax():
    for package in ("cpips", "bapps_eval"):
        for path in (ROOT / package).rglob("*.py"):
            names = [name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, (ast.Import, ast.ImportFrom))
                     for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""] * (not node.level))]
            assert path == ROOT / "cpips" / "jax.py" or not any(name.split(".")[0] == "jax" for name in names), path


def test_the_message_without_jax_names_the_extra():
    with pytest.raises(CpipsError, match=r"cpips.jax needs jax, which is not installed: pip install 'cpips\[jax\]'"):
        with needing("cpips.jax", "jax"):
            raise ImportError(name="jax")
