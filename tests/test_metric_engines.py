"""The metric inside autocast, compiled and exported graphs, function transforms, threads and parallel training."""

from __future__ import annotations

import copy
import shutil
import sys
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import cpips
from cpips import CPIPS
from cpips.encoders import AnalysisTransform
from helpers import run_two

FORMS = {
    "latent": {}, "taps": {"form": "taps"}, "local": {"form": "local"}, "structure": {"form": "structure"},
    "everything": {"form": "taps", "scales": 2, "root": True, "quantize": True,
                   "weights": {"y": torch.linspace(0, 2, 6)}},
}


def make(form: str = "latent", **settings) -> CPIPS:
    net = AnalysisTransform.random(N=4, M=6)
    net.g_a[6].weight *= 100
    return CPIPS(net, **FORMS[form], **settings)


@pytest.fixture(params=FORMS)
def metric(request):
    return make(request.param)


@pytest.fixture
def invalid():
    """Four images, of which the second and the last are no images."""
    x = torch.rand(4, 3, 20, 24)
    x[1, 0, 3, 4] = float("nan")
    x[3] = x[3] * 255
    return x


# ---- autocast -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(metric, pair, dtype):
    expected = metric(*pair)
    with torch.autocast("cpu", dtype=dtype):
        x = pair[0].clone().requires_grad_()
        distance = metric(x, pair[1])
        same = metric(x, pair[0])
        where = metric.map(*pair)
    assert distance.dtype == torch.float32 and torch.allclose(distance, expected, rtol=0.05)
    assert torch.allclose(where.mean((1, 2, 3)), expected, rtol=0.05)
    assert same.tolist() == [0.0, 0.0]
    gradient, = torch.autograd.grad((distance + same).sum(), x)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_of_the_default_model(pair, dtype):
    metric = CPIPS()
    flat = torch.zeros(1, 3, 40, 40, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.allclose(metric(*pair), CPIPS()(*pair), rtol=0.05)
        for picture in (flat, flat + 1):
            distance = metric(picture, picture.detach())
            assert distance.item() == 0
            assert torch.isfinite(torch.autograd.grad(distance.sum(), flat)[0]).all()


def test_half_precision_inputs_in_autocast_still_raise():
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(cpips.ImageError, match="0..255"):
        make()(torch.full((1, 3, 8, 8), 200.0).bfloat16(), torch.zeros(1, 3, 8, 8))


def test_the_stated_tolerance(metric, pair):
    """1e-5 of the distance plus 1e-7 between types, numbers of threads, layouts and batches, as docs/limits.md says."""
    expected, threads = metric(*pair), torch.get_num_threads()
    last = copy.deepcopy(metric).to(memory_format=torch.channels_last)
    found = {"channels_last": last(*(image.contiguous(memory_format=torch.channels_last) for image in pair)),
             "alone": torch.cat([metric(x[None], y[None]) for x, y in zip(*pair)])}
    if not metric.quantize:  # where a latent lies near to the edge between two integers, rounding takes either
        found["float64"] = copy.deepcopy(metric).double()(*(image.double() for image in pair)).float()
    try:
        torch.set_num_threads(2)
        found["two threads"] = metric(*pair)
    finally:
        torch.set_num_threads(threads)
    for name, got in found.items():
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-7), name


# ---- compiled and exported graphs -----------------------------------------------------------------------------------


def backward(function, x, y):
    x = x.clone().requires_grad_()
    distance = function(x, y)
    return distance.detach(), torch.autograd.grad(distance.sum(), x)[0]


def compiled(function, backend: str):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if form != "taps"])  # which "everything" is, too
def test_one_graph_for_every_form(form, pair, invalid):
    """The whole call is one graph, forward and backward; there an invalid image is NaN, and only itself."""
    metric = make(form)
    fast = compiled(metric, "aot_eager")
    for got, expected in zip(backward(fast, *pair), backward(metric, *pair)):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-6)
    if metric.form == "latent":
        whole = invalid.clone().nan_to_num(0).clamp(0, 1)
        got = fast(invalid, whole)
        assert torch.isnan(got).tolist() == [False, True, False, True]
        assert torch.isnan(fast(whole, invalid)).tolist() == [False, True, False, True]
        assert torch.allclose(fast(whole, whole.flip(0)), metric(whole, whole.flip(0)), rtol=1e-4)


def test_nothing_breaks_the_graph_in_inference_mode(pair):
    """As a user compiles, without ``fullgraph``, which would trace what breaks here, too."""
    torch._dynamo.reset()
    metric = make("taps")
    with torch.inference_mode():
        assert torch._dynamo.explain(metric)(*pair).graph_break_count == 0


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch, about torch
def test_compiled_by_inductor(pair):
    metric = make("latent")
    fast = compiled(metric, "inductor")
    for got, expected in zip(backward(fast, *pair), backward(metric, *pair)):
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_compiled_map_and_training_step(pair):
    """A network, its loss and the step of its map as one graph."""
    metric, net = make("latent"), nn.Conv2d(3, 3, 3, padding=1)

    def loss(x, y):
        out = net(x).sigmoid()
        return metric(out, y, reduction="mean") + metric.map(out, y).amax()

    expected = torch.autograd.grad(loss(*pair), list(net.parameters()))
    got = torch.autograd.grad(compiled(loss, "aot_eager")(*pair), list(net.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(got, expected))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpips", "mse"])
def test_triplet_as_one_graph(name, pair):
    metric = make() if name == "cpips" else cpips.create_metric(name)
    fast = compiled(metric.triplet, "aot_eager")
    whole, other, invalid = *pair, pair[0].clone()
    invalid[1, 0, 3, 4] = float("nan")
    # the same tensor twice would be another graph
    for got, expected in zip(fast(whole, other, whole.clone()), metric.triplet(whole, other, whole)):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-6)
    for images, expected in [((invalid, other, whole), [[False, True], [False, True]]),
                             ((whole, invalid, other), [[False, True], [False, False]])]:
        assert [torch.isnan(d).tolist() for d in fast(*images)] == expected


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cpips-lite", "hyperprior-q4"])
def test_exported_for_every_size(model):
    """torch.export by itself refuses sides below 33 px or 17 px."""
    from cpips.exporting import export_program

    metric = cpips.CPIPS(model)
    try:
        program = export_program(metric).module()
    except cpips.ModelError as error:
        pytest.skip(str(error))
    for size in [(1, 1, 1), (3, 5, 7), (1, 16, 17), (2, 33, 20), (2, 1, 90), (1, 300, 257)]:
        x, y = torch.rand(2, size[0], 3, *size[1:])
        assert torch.allclose(program(x, y), metric(x, y), rtol=1e-5, atol=1e-7), size
    with pytest.raises(cpips.ModelError, match="cannot be exported"):
        export_program(cpips.create_metric("mse"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["latent", "taps"])
def test_exported_for_any_batch_and_size(form, invalid):
    metric, dim = make(form), torch.export.Dim.DYNAMIC
    shape = {0: dim, 2: dim, 3: dim}
    program = torch.export.export(metric, (torch.rand(2, 3, 48, 40), torch.rand(2, 3, 48, 40)),
                                  dynamic_shapes={"reference": shape, "image": shape}).module()
    for size in [(2, 48, 40), (3, 70, 45), (4, 33, 97)]:
        x, y = torch.rand(2, size[0], 3, *size[1:])
        assert torch.allclose(program(x, y), metric(x, y), rtol=1e-5)
    whole = invalid.nan_to_num(0).clamp(0, 1)
    assert torch.isnan(program(invalid, whole)).tolist() == [False, True, False, True]


# ---- function transforms --------------------------------------------------------------------------------------------


def test_vmap_and_grad(metric):
    x, y = torch.rand(2, 4, 3, 20, 24)

    def distance(a, b):
        return metric(a[None], b[None])[0]

    expected, slopes = backward(metric, x, y)
    assert torch.allclose(torch.func.vmap(distance)(x, y), expected, rtol=1e-4, atol=1e-6)
    assert torch.allclose(torch.func.grad(distance)(x[0], y[0]), slopes[0], rtol=1e-3, atol=1e-5)
    assert torch.allclose(torch.func.vmap(torch.func.grad(distance))(x, y), slopes, rtol=1e-3, atol=1e-5)
    against_all = torch.func.vmap(distance, (None, 0))(x[0], y)
    assert torch.allclose(against_all, metric(x[:1].expand(4, -1, -1, -1), y), rtol=1e-4)


def test_vmap_of_batches(metric):
    """A metric of batches, mapped over groups of them."""
    x, y = torch.rand(2, 3, 2, 3, 20, 24)
    got = torch.func.vmap(metric)(x, y)
    assert torch.allclose(got, torch.stack([metric(a, b) for a, b in zip(x, y)]), rtol=1e-4, atol=1e-6)


def test_invalid_images_are_nan_in_vmap(invalid):
    metric, whole = make(), invalid.nan_to_num(0).clamp(0, 1)
    triplet = torch.func.vmap(lambda *images: metric.triplet(*(image[None] for image in images)))
    assert [torch.isnan(d).flatten().tolist() for d in triplet(whole, invalid, whole)] == [
        [False, True, False, True], [False] * 4]
    for pair in ((invalid, whole), (whole, invalid)):
        got = torch.func.vmap(lambda a, b: metric(a[None], b[None])[0])(*pair)
        assert torch.isnan(got).tolist() == [False, True, False, True]
        maps = torch.func.vmap(lambda a, b: metric.map(a[None], b[None])[0])(*pair)
        assert torch.isnan(maps).flatten(1).all(1).tolist() == [False, True, False, True]


def test_invalid_images_raise_where_they_can_be_read(invalid):
    with pytest.raises(cpips.ImageError, match="holds NaN"):
        make()(invalid, invalid)
    with pytest.raises(cpips.ImageError, match="holds NaN"):
        make()(invalid.requires_grad_(), torch.rand(4, 3, 20, 24))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch, about torch
def test_forward_mode_and_second_derivatives():
    metric = make("taps").double()
    x, y, v = torch.rand(3, 1, 3, 12, 12, dtype=torch.float64)
    _, tangent = torch.func.jvp(lambda a: metric(a, y).sum(), (x,), (v,))
    gradient = torch.func.grad(lambda a: metric(a, y).sum())(x)
    assert torch.allclose(tangent, (gradient * v).sum())
    hessian = torch.func.jvp(torch.func.grad(lambda a: metric(a, x).sum()), (x,), (v,))[1]
    assert torch.isfinite(hessian).all() and (hessian * v).sum() > 0  # a minimum, at equal images


def test_activation_checkpointing(metric, pair):
    expected = backward(metric, *pair)
    got = backward(lambda x, y: checkpoint(metric, x, y, use_reentrant=False), *pair)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


# ---- processes, threads, defaults -----------------------------------------------------------------------------------


def test_threads(metric, pair):
    expected, results = metric(*pair), []
    threads = [threading.Thread(target=lambda: results.append(metric(*pair))) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(results) == 4 and all(torch.equal(result, expected) for result in results)


def test_defaults_of_torch_do_not_matter(pair):
    """Someone's default device or dtype changes neither the weights nor the numbers."""
    metric, expected = CPIPS("random"), CPIPS("random")(*pair)
    weights = {"y": [1.0] * 192}
    try:
        torch.set_default_dtype(torch.float64)
        assert CPIPS("random").digest == metric.digest
        assert torch.equal(CPIPS("random", weights=weights)(*pair), expected)
        torch.set_default_dtype(torch.float32)
        torch.set_default_device("meta")
        assert CPIPS("random").digest == metric.digest and CPIPS("random").device.type == "cpu"
        assert torch.equal(CPIPS("random", weights=weights)(*pair), expected)
        assert CPIPS().map(*pair).device.type == "cpu"
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def test_meta_device_gives_shapes(pair):
    metric = copy.deepcopy(make()).to("meta")
    x, y = (image.to("meta") for image in pair)
    assert metric(x, y).shape == (2,) and metric.map(x, y).shape == (2, 1, 70, 45)


SCRIPT = """
import json, sys
import torch
from torch import nn
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)

class Step(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Conv2d(3, 3, 3, padding=1)
        self.metric = torch.load(f"{folder}/metric.pt", weights_only=False)

    def forward(self, x, y):
        return self.metric(self.net(x).sigmoid(), y, reduction="mean")

data = torch.load(f"{folder}/data.pt")
step = DistributedDataParallel(Step())
before = {key: value.clone() for key, value in step.module.metric.state_dict().items()}
optimiser = torch.optim.AdamW(step.parameters(), lr=0.01, weight_decay=0.1)
losses = []
for epoch in range(2):
    optimiser.zero_grad()
    loss = step(data[0][rank::2], data[1][rank::2])
    loss.backward()
    losses.append(loss.item())
    if epoch == 0:
        gradient = torch.cat([p.grad.flatten() for p in step.parameters()])
    optimiser.step()
frozen = all(torch.equal(before[key], value) for key, value in step.module.metric.state_dict().items())
json.dump({"losses": losses, "gradient": gradient.tolist(), "frozen": frozen, "digest": step.module.metric.digest,
           "weights": torch.cat([p.detach().flatten() for p in step.parameters()]).tolist()},
          open(f"{folder}/{rank}.json", "w"))
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available() or sys.platform == "win32", reason="no gloo")
def test_distributed_data_parallel(tmp_path):
    """As a submodule of what is trained, and as its loss: the processes agree, and agree with one process."""
    metric, data = make(), torch.rand(2, 4, 3, 24, 24)
    torch.save(metric, tmp_path / "metric.pt")
    torch.save(data, tmp_path / "data.pt")
    first, second = run_two(SCRIPT, tmp_path)
    assert first["gradient"] == second["gradient"] and first["weights"] == second["weights"]
    assert first["losses"] != second["losses"]  # each saw its own images
    assert first["frozen"] and second["frozen"] and first["digest"] == second["digest"] == metric.digest
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, 3, padding=1)
    metric(net(data[0]).sigmoid(), data[1], reduction="mean").backward()
    alone = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert torch.allclose(torch.tensor(first["gradient"]), alone, rtol=1e-3, atol=1e-6)
