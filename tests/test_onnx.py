"""Metrics as ONNX graphs, against onnxruntime."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from helpers import state_of
from runtime_package import GRAPHS
from safetensors.torch import save_file
from typer.testing import CliRunner

import cpips
from cpips import CPIPS, ModelError
from cpips.cli.app import app
from cpips.encoders import HYPERPRIOR, LITE, AnalysisTransform

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} (extra onnx) not installed")

# height and width: the traced one is (70, 45); whole cells, cells that reach out, a single pixel, a wide strip
SIZES = [(2, 70, 45), (1, 64, 48), (3, 33, 97), (1, 1, 1), (5, 17, 16), (1, 200, 31)]


def encoder(architecture) -> AnalysisTransform:
    net = AnalysisTransform.random(N=6, M=8, architecture=architecture)
    net.g_a[-1].weight *= 10
    return net


METRICS = {
    "lite, local, weights": lambda: CPIPS(encoder(LITE), form="local", taps=("gdn2", "y"),
                                          weights={"gdn2": torch.linspace(0, 2, 6), "y": torch.linspace(2, 0, 8)}),
    "hyperprior, latent, root, rounded": lambda: CPIPS(encoder(HYPERPRIOR), root=True, quantize=True),
    "lite, structure, 2 scales": lambda: CPIPS(encoder(LITE), form="structure", scales=2),
}


def session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", METRICS)
def test_onnxruntime_gives_the_same_distances(name, tmp_path):
    from cpips import onnx

    metric = METRICS[name]()
    run = session(onnx.export(metric, tmp_path / "metric.onnx"))
    for batch, height, width in SIZES:
        x, y = torch.rand(2, batch, 3, height, width)
        got, = run.run(["distance"], {"x": x.numpy(), "y": y.numpy()})
        assert got.shape == (batch,)
        assert torch.allclose(torch.from_numpy(got), metric(x, y), rtol=1e-5, atol=1e-5), (batch, height, width)
        equal, = run.run(None, {"x": x.numpy(), "y": x.numpy()})
        assert (equal == 0).all()
    unchecked, = run.run(["distance"], {"x": 2 * x.numpy(), "y": y.numpy()})
    assert (unchecked > 0).all()  # a number, and not NaN
    assert run.get_modelmeta().custom_metadata_map["cpips.signature"] == metric.signature
    assert [i.shape[1] for i in run.get_inputs()] == [3, 3] and not list(tmp_path.glob("*.partial*"))
    assert not any(buffer.requires_grad for buffer in metric.buffers())


@needs_onnx
@pytest.mark.slow
def test_command(tmp_path):
    """Of a calibrated model, in its own form."""
    path, out = tmp_path / "tiny.safetensors", tmp_path / "tiny.onnx"
    save_file(state_of() | {"head.taps.gdn2": torch.rand(1, 4), "head.taps.y": torch.rand(1, 6)}, path)
    result = CliRunner().invoke(app, ["export", str(path), "-o", str(out), "--json"])
    assert result.exit_code == 0, result.output
    facts, metric = json.loads(result.stdout), CPIPS(path)
    assert metric.form == "taps"
    assert facts["signature"] == metric.signature and facts["bytes"] == out.stat().st_size
    x, y = torch.rand(2, 1, 3, 40, 52)
    got, = session(out).run(None, {"x": x.numpy(), "y": y.numpy()})
    assert torch.allclose(torch.from_numpy(got), metric(x, y), rtol=1e-5)


@needs_onnx
@pytest.mark.slow
def test_an_encoder_in_float16_gives_distances_near_those_in_float32(tmp_path):
    """Between inputs and outputs in float32, at sizes from 1 to 300 px; the features are compared by the graph in float32."""
    metric, out = CPIPS(), tmp_path / "half.onnx"
    result = CliRunner().invoke(app, ["export", "cpips-lite", "-o", str(out), "--graph", "embed", "--half", "--json"])
    assert result.exit_code == 0, result.output
    encode, compare = session(out), session(GRAPHS / "compare.onnx")
    assert {each.type for each in (*encode.get_inputs(), *encode.get_outputs())} == {"tensor(float)"}
    assert out.stat().st_size < 0.75 * (GRAPHS / "embed.onnx").stat().st_size
    assert encode.get_modelmeta().custom_metadata_map["cpips.signature"].endswith("|encoder in float16")
    for height, width in ((1, 1), (1, 300), (7, 5), (33, 97), (70, 45), (128, 96), (300, 257)):
        x = torch.rand(1, 3, height, width)
        y = (x + 0.1 * torch.randn(x.shape)).clamp(0, 1)
        features = [each for image in (x, y) for each in encode.run(None, {"image": image.numpy()})]
        values = [*features, np.array([height, width], np.int64)]
        got, = compare.run(None, {each.name: value for each, value in zip(compare.get_inputs(), values)})
        expected = metric(x, y).item()
        assert abs(float(got[0]) - expected) < 2e-4 * max(1, expected), (height, width)


def test_command_refuses_another_suffix(tmp_path):
    result = CliRunner().invoke(app, ["export", "hyperprior-q1", "-o", str(tmp_path / "model.pt")])
    assert result.exit_code == 2 and "use the suffix .onnx" in result.stderr and not list(tmp_path.iterdir())


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    from cpips import onnx

    with pytest.raises(ModelError, match="'psnr' cannot be exported"):
        onnx.export(cpips.create_metric("psnr"), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="float32"):
        onnx.export(CPIPS("random").bfloat16(), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="'map' cannot be in float16"):
        onnx.export(CPIPS("random"), tmp_path / "a.onnx", "map", half=True)
    monkeypatch.setattr(onnx, "_MODULES", ("no_such_module_of_onnx",))
    with pytest.raises(ImportError, match=r"cpips\[onnx\]"):
        onnx.export(CPIPS("random"), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
