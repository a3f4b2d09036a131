"""The torchmetrics adapter: one state of two numbers, for any metric, any sizes, any number of processes."""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
import warnings

import pytest
import torch
from torch import nn

import cpips
from cpips import ImageError, ModelError
from cpips._utils.optional import declare_torchvision_ops
from cpips.encoders import AnalysisTransform
from helpers import run_two


@pytest.fixture(scope="module")
def torchmetrics():
    declare_torchvision_ops()  # torchmetrics imports torchvision where it is installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchmetrics", exc_type=ImportError)


@pytest.fixture
def CPIPS(torchmetrics):
    return importlib.import_module("cpips.torchmetrics").CPIPS


def tiny(**settings) -> cpips.CPIPS:
    return cpips.CPIPS(AnalysisTransform.random(N=4, M=6), **settings)


def batches(uint8: bool = True) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of different counts and sizes, one of them of uint8."""
    generator = torch.Generator().manual_seed(2)
    out = [tuple(torch.rand(2, n, 3, h, w, generator=generator)) for n, h, w in [(3, 20, 24), (1, 17, 33), (2, 40, 8)]]
    if uint8:
        out[1] = tuple((image * 255).to(torch.uint8) for image in out[1])
    return out


def states_of(adapter) -> list[torch.Tensor]:
    return [getattr(adapter, name) for name in adapter._defaults]


def test_it_is_a_metric_of_the_real_torchmetrics(torchmetrics, CPIPS):
    assert issubclass(CPIPS, torchmetrics.Metric) and torchmetrics.__name__ == "torchmetrics"
    assert CPIPS(tiny()).full_state_update is False


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_update_and_compute(CPIPS, reduction):
    metric = tiny()
    adapter = CPIPS(metric, reduction=reduction)
    distances = []
    for x, y in batches():
        adapter.update(x, y)
        distances.append(metric(x, y))
    expected = getattr(torch.cat(distances), reduction)()
    assert adapter.compute().shape == () and torch.allclose(adapter.compute(), expected, rtol=1e-6)
    adapter.update(*batches()[0])  # after compute() it goes on
    expected = getattr(torch.cat([*distances, distances[0]]), reduction)()
    assert torch.allclose(adapter.compute(), expected, rtol=1e-6)


def test_updates_of_arrays_and_files(CPIPS, tmp_path):
    import numpy as np
    from PIL import Image

    arrays = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    Image.fromarray(arrays[1]).save(tmp_path / "image.png")
    adapter, metric = CPIPS(tiny()), tiny()
    adapter.update(arrays[0], tmp_path / "image.png")
    assert torch.allclose(adapter.compute(), metric(arrays[0], arrays[1])[0])


def test_the_default_and_names_and_settings(CPIPS):
    x, y = batches()[0]
    for adapter, metric in [(CPIPS(), cpips.CPIPS()), (CPIPS(form="local"), cpips.CPIPS(form="local")),
                            (CPIPS("random", form="taps", scales=2), cpips.CPIPS("random", form="taps", scales=2)),
                            (CPIPS(metric="mse"), cpips.create_metric("mse"))]:
        adapter.update(x, y)
        assert adapter.metric.signature == metric.signature
        assert torch.allclose(adapter.compute(), metric(x, y).mean())


def test_settings_of_torchmetrics(CPIPS):
    adapter = CPIPS(tiny(), sync_on_compute=False, compute_with_cache=False, dist_sync_on_step=True)
    assert not adapter.sync_on_compute and not adapter.compute_with_cache and adapter.dist_sync_on_step


def test_what_is_refused(CPIPS):
    with pytest.raises(ModelError, match="choose 'mean' or 'sum'.*or 'none'"):
        CPIPS(tiny(), reduction="average")
    with pytest.raises(ModelError, match="settings form, scales beside a metric that is made already"):
        CPIPS(tiny(), form="taps", scales=2)
    with pytest.raises(ModelError, match="did you mean lpips-alex"):
        CPIPS("lpips-alexx")
    with pytest.raises(TypeError, match="colour"):
        CPIPS("random", colour="red")
    with pytest.raises(ModelError, match="expected a name, a path, a state dict or an encoder"):
        CPIPS(None)


def test_models_of_every_kind(CPIPS, tmp_path):
    encoder = AnalysisTransform.random(N=4, M=6)
    x, y = batches()[0]
    adapter = CPIPS(encoder, form="taps")
    adapter.update(x, y)
    assert torch.allclose(adapter.compute(), tiny(form="taps")(x, y).mean())
    with pytest.raises(cpips.WeightsError, match="no weights file"):
        CPIPS(tmp_path / "missing.pth")


def test_facts_follow_the_metric(CPIPS):
    assert CPIPS(tiny()).higher_is_better is False and CPIPS(tiny()).is_differentiable is True
    psnr = CPIPS("psnr")
    assert psnr.higher_is_better is True and psnr.is_differentiable is False
    x, y = batches(False)[0]
    psnr.update(x, y)
    assert torch.allclose(psnr.compute(), -10 * (x - y).square().mean((1, 2, 3)).log10().mean(), rtol=1e-5)


def test_a_reduction_of_the_metric_is_not_applied_twice(CPIPS):
    adapter, expected = CPIPS(tiny(reduction="sum")), CPIPS(tiny())
    for x, y in batches():
        adapter.update(x, y), expected.update(x, y)
    assert torch.equal(adapter.compute(), expected.compute())


def test_bad_images_change_nothing(CPIPS):
    adapter = CPIPS(tiny())
    adapter.update(*batches()[0])
    before = adapter.compute()
    for bad in (torch.rand(3, 20, 24), torch.rand(3, 3, 20, 25), torch.rand(3, 3, 20, 24) * 255):
        with pytest.raises(ImageError):
            adapter.update(bad, batches()[0][1])
    adapter._computed = None
    assert torch.equal(adapter.compute(), before)


def test_compute_without_update(CPIPS):
    """As documented: torchmetrics warns; a mean of nothing is no number, a sum of nothing is zero."""
    for reduction in ("mean", "sum"):
        adapter = CPIPS(tiny(), reduction=reduction)
        with pytest.warns(UserWarning, match="before the ``update`` method"):
            value = adapter.compute()
        assert torch.isnan(value) if reduction == "mean" else value == 0


def test_reset(CPIPS):
    adapter = CPIPS(tiny())
    adapter.update(*batches()[0])
    adapter.reset()
    assert all(state == 0 for state in states_of(adapter)) and not adapter.update_called
    adapter.update(*batches()[2])
    assert torch.allclose(adapter.compute(), tiny()(*batches()[2]).mean())


def test_the_state_does_not_grow(CPIPS):
    adapter = CPIPS(tiny())
    sizes = []
    for _ in range(3):
        adapter.update(*batches()[0])
        sizes.append(len(pickle.dumps([state.clone() for state in states_of(adapter)])))
    assert len(set(sizes)) == 1 and all(state.shape == () for state in states_of(adapter))


def test_a_list_per_sample_where_it_is_wanted(CPIPS):
    """In the order in which they came, whatever their sizes; the batch's own from forward; and it resets, moves, merges."""
    adapter, expected = CPIPS(tiny(), reduction="none"), torch.cat([tiny()(x, y) for x, y in batches()])
    for x, y in batches():
        assert torch.equal(adapter(x, y).reshape(-1), tiny()(x, y))  # torchmetrics squeezes one number
    assert torch.equal(adapter.compute(), expected) and adapter.compute().dtype == torch.float32
    assert not adapter.compute().requires_grad and adapter.count == len(expected)
    twin = pickle.loads(pickle.dumps(adapter))
    assert torch.equal(twin.half().compute(), expected)
    merged = CPIPS(tiny(), reduction="none")
    merged.update(*batches()[0])
    merged.merge_state(twin)
    assert sorted(merged.compute().tolist()) == sorted([*expected.tolist(), *expected[:3].tolist()])
    adapter.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics' own: compute before update
        assert adapter.compute().shape == (0,)
    assert not hasattr(CPIPS(tiny()), "samples")  # the default keeps two numbers


def test_sums_do_not_lose_small_addends(CPIPS):
    """In float32, ten million images later, an update of a thousandth would change nothing."""
    adapter = CPIPS(tiny())
    adapter.total, adapter.count = torch.tensor(1e8, dtype=torch.float64), torch.tensor(10**9)
    adapter.update(*batches()[0])
    assert adapter.total.dtype == torch.float64 and adapter.count.dtype == torch.int64
    assert (adapter.total - 1e8).item() == pytest.approx(tiny()(*batches()[0]).sum().item(), rel=1e-4)


def test_forward_is_the_batch_and_adds_to_the_total(CPIPS):
    adapter, metric = CPIPS(tiny()), tiny()
    everything = []
    for x, y in batches(False):
        assert torch.allclose(adapter(x, y), metric(x, y).mean())
        everything.append(metric(x, y))
    assert torch.allclose(adapter.compute(), torch.cat(everything).mean()) and adapter.update_count == 3


def test_no_graph_is_kept(CPIPS):
    """torchmetrics #2597: a state that remembers how it came about keeps every image of the epoch."""
    adapter = CPIPS(tiny())
    x, y = (image.requires_grad_() for image in batches(False)[0])
    adapter.update(x, y)
    value = adapter(x, y)
    assert not any(state.requires_grad for state in states_of(adapter)) and not adapter.compute().requires_grad
    expected, = torch.autograd.grad(tiny()(x, y).mean(), x)
    assert torch.allclose(torch.autograd.grad(value, x)[0], expected)  # forward()'s value can be a loss


class Model(nn.Module):
    def __init__(self, adapter):
        super().__init__()
        self.net, self.quality = nn.Conv2d(3, 3, 1), adapter


def test_nothing_of_it_is_in_a_checkpoint(CPIPS):
    for adapter in (CPIPS(), CPIPS("random"), CPIPS(tiny()), CPIPS(tiny(persistent=False))):
        model = Model(adapter)
        assert set(model.state_dict()) == {"net.weight", "net.bias"}
        model.load_state_dict(model.state_dict())
        assert not [name for name, _ in model.named_parameters() if "quality" in name]


def test_persistent_states_are_saved_and_loaded(CPIPS):
    """On request, as for every torchmetrics metric: to go on after an interruption."""
    adapter = CPIPS(tiny())
    adapter.persistent(True)
    adapter.update(*batches()[0])
    state = Model(adapter).state_dict()
    assert {"quality.total", "quality.count"} < set(state)
    other = CPIPS(tiny())
    Model(other).load_state_dict(state)
    other.update(*batches()[2]), adapter.update(*batches()[2])
    assert torch.equal(other.compute(), adapter.compute())


def test_copies_and_pickles(CPIPS):
    adapter = CPIPS(tiny())
    adapter.update(*batches()[0])
    for twin in (pickle.loads(pickle.dumps(adapter)), copy.deepcopy(adapter), adapter.clone()):
        assert torch.equal(twin.compute(), adapter.compute())
        twin.update(*batches()[2])
        assert not torch.equal(twin.compute(), adapter.compute())
        twin.reset()
        twin.update(*batches()[2])
        assert torch.allclose(twin.compute(), tiny()(*batches()[2]).mean())


def test_devices_are_followed(CPIPS):
    adapter = CPIPS(tiny())
    Model(adapter).to("meta")
    assert adapter.device.type == adapter.metric.device.type == "meta"
    assert all(state.device.type == "meta" for state in states_of(adapter))
    adapter.update(*(image.to("meta") for image in batches(False)[0]))
    adapter.reset()
    assert adapter.total.device.type == "meta" and adapter.total.dtype == torch.float64


def test_precision_is_not(CPIPS):
    """A model in half precision is measured as exactly as one in single."""
    for lower in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16(), lambda m: m.double(),
                  lambda m: m.to("cpu", torch.float16)):
        adapter = CPIPS(tiny())
        lower(Model(adapter))
        assert adapter.metric.encoder.dtype == torch.float32
        adapter.update(*batches()[0])
        assert adapter.total.dtype == torch.float64
        assert torch.allclose(adapter.compute(), tiny()(*batches()[0]).mean())


def test_devices_without_float64(CPIPS, monkeypatch):
    monkeypatch.setattr(sys.modules["cpips.torchmetrics"], "_WITHOUT_FLOAT64", ("meta",))
    adapter = CPIPS(tiny()).to("meta")
    assert adapter.total.dtype == torch.float32 and adapter.count.dtype == torch.int64
    adapter.update(*(image.to("meta") for image in batches(False)[0]))
    adapter.reset()
    assert adapter.total.dtype == torch.float32


def test_the_very_metric_is_used(CPIPS):
    metric = tiny()
    assert CPIPS(metric).metric is metric


def test_collections(torchmetrics, CPIPS):
    """Equal first batches give equal states; torchmetrics must not take different metrics for one because of that."""
    members = {"latent": CPIPS(tiny()), "taps": CPIPS(tiny(form="taps")), "sum": CPIPS(tiny(), reduction="sum"),
               "mse": CPIPS("mse")}
    collection = torchmetrics.MetricCollection(members)
    x, y = batches(False)[0]
    collection.update(x, x)
    assert all(value == 0 for value in collection.compute().values())
    collection.update(x, y)
    got = collection.compute()
    assert torch.allclose(got["latent"], tiny()(x, y).sum() / 6) and torch.allclose(got["sum"], tiny()(x, y).sum())
    assert torch.allclose(got["taps"], tiny(form="taps")(x, y).sum() / 6)
    assert torch.allclose(got["mse"], (x - y).square().mean() / 2)
    groups = sorted(sorted(group) for group in collection.compute_groups.values())
    assert groups == [["latent", "sum"], ["mse"], ["taps"]]  # and the same metric is computed once
    assert set(collection(x, y)) == set(members)
    collection.reset()
    assert torch.allclose(collection.clone(prefix="val_")(x, y)["val_latent"], tiny()(x, y).mean())


def test_tracker_knows_the_better_way(torchmetrics, CPIPS):
    x, y = batches(False)[0]
    for name, best in (("random", 1), ("psnr", 1)):
        tracker = torchmetrics.MetricTracker(CPIPS(name))
        for amount in (1.0, 0.1, 0.5):
            tracker.increment()
            tracker.update(x, x + amount * (y - x))
        value, step = tracker.best_metric(return_step=True)
        assert step == best and torch.isfinite(torch.as_tensor(value))


def test_arithmetic_of_metrics(torchmetrics, CPIPS):
    x, y = batches(False)[0]
    both = CPIPS(tiny()) + 10 * CPIPS("mse")
    both.update(x, y)
    assert torch.allclose(both.compute(), tiny()(x, y).mean() + 10 * (x - y).square().mean(), rtol=1e-5)


def test_merge_state(CPIPS):
    one, other, whole = CPIPS(tiny()), CPIPS(tiny()), CPIPS(tiny())
    for i, (x, y) in enumerate(batches()):
        (one if i else other).update(x, y), whole.update(x, y)
    one.merge_state(other)
    assert torch.allclose(one.compute(), whole.compute())


def test_plot(CPIPS):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    adapter = CPIPS(tiny())
    adapter.update(*batches()[0])
    figure, axes = adapter.plot()
    assert axes.has_data()
    pyplot.close(figure)
    figure, axes = adapter.plot([torch.tensor(0.1), torch.tensor(0.2)])
    assert len(axes.get_lines()) >= 1
    pyplot.close(figure)


def test_without_torchmetrics_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "cpips.torchmetrics", raising=False)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ImportError, match=r"pip install 'cpips\[torchmetrics\]'"):
        importlib.import_module("cpips.torchmetrics")


SCRIPT = """
import json, sys, warnings
import torch, torch.distributed as dist
from cpips._utils.optional import declare_torchvision_ops

declare_torchvision_ops()
warnings.simplefilter("ignore")
import torchmetrics
import cpips
from cpips.encoders import AnalysisTransform
from cpips.torchmetrics import CPIPS

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
metric = cpips.CPIPS(AnalysisTransform.random(N=4, M=6))
adapters = torchmetrics.MetricCollection(
    {"mean": CPIPS(metric), "sum": CPIPS(metric, reduction="sum"), "psnr": CPIPS("psnr")})
alone, idle = CPIPS(metric, sync_on_compute=False), CPIPS(metric)
samples, some = CPIPS(metric, reduction="none"), CPIPS(metric, reduction="none")
shares = torch.load(f"{folder}/shares.pt")
for x, y in shares[rank]:
    adapters.update(x, y), alone.update(x, y), samples.update(x, y)
    if rank == 0:
        idle.update(x, y), some.update(x, y)
result = {name: value.item() for name, value in adapters.compute().items()}
result |= {"alone": alone.compute().item(), "idle": idle.compute().item()}
result |= {"samples": samples.compute().tolist(), "some": some.compute().tolist()}
adapters.update(*shares[0][0])  # the sync is undone: each goes on with its own
result["count"] = adapters["mean"].count.item()
json.dump(result, open(f"{folder}/{rank}.json", "w"))
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available() or sys.platform == "win32", reason="no gloo")
def test_two_processes_with_unequal_shares(torchmetrics, CPIPS, tmp_path):
    """The mean over all images, not the mean of the processes' means; also where a process had none."""
    shares = [batches()[:2] + batches(), batches()[2:]]
    torch.save(shares, tmp_path / "shares.pt")
    first, second = run_two(SCRIPT, tmp_path)
    single = {"mean": CPIPS(tiny()), "sum": CPIPS(tiny(), reduction="sum"), "psnr": CPIPS("psnr")}
    for x, y in shares[0] + shares[1]:
        for adapter in single.values():
            adapter.update(x, y)
    expected = {name: adapter.compute().item() for name, adapter in single.items()}
    own = [torch.cat([tiny()(x, y) for x, y in share]).mean().item() for share in shares]
    for result in (first, second):
        assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-6)
        assert result["idle"] == pytest.approx(own[0], rel=1e-6)
        assert result["samples"] == pytest.approx(torch.cat([tiny()(x, y) for x, y in sum(shares, [])]).tolist(), rel=1e-5)
        assert result["some"] == pytest.approx(torch.cat([tiny()(x, y) for x, y in shares[0]]).tolist(), rel=1e-5)
    assert [first["alone"], second["alone"]] == pytest.approx(own, rel=1e-6) and abs(own[0] - own[1]) > 1e-4
    assert [first["count"], second["count"]] == [sum(len(x) for x, _ in shares[0]) + 3, 2 + 3]
