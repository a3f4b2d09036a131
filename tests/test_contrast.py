"""The form 'contrast': its formula, what it promises, and the settings that it takes."""

from __future__ import annotations

import pytest
import torch

from cpips import CPIPS, ModelError
from cpips import contrast as module
from cpips.contrast import DETAIL_PER_CHANNEL, DETAIL_PER_SCALE, PER_CHANNEL, PER_SCALE, ContrastHead
from cpips.encoders import ALIGNED, AnalysisTransform
from cpips.errors import WeightsError
from cpips.training.opinion_loss import turned_slopes
from cpips.training.tied import turned_filters, turned_matrix

SCALES = 3


def settings(channels: dict[str, int], seed: int = 0, details: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return 0.01 + torch.rand(shape, generator=generator)

    found = {"color": draw(3)}
    for tap in ("gdn1", "gdn2"):
        count = channels[tap]
        found |= {f"{tap}.{name}": draw(SCALES, count) for name in PER_CHANNEL}
        found |= {f"{tap}.{name}": draw(SCALES) for name in PER_SCALE}
        found[f"{tap}.mix"] = draw(count, count) / count
        if details:
            found |= {f"{tap}.{name}": draw(SCALES, count) for name in DETAIL_PER_CHANNEL}
            found[f"{tap}.detail_weight"][1] = 0  # a scale without
            found |= {f"{tap}.{name}": draw(SCALES) for name in DETAIL_PER_SCALE}
            found[f"{tap}.slopes"] = draw(2 * count, count) - 0.5
    return found


def state(N: int = 6, M: int = 5, seed: int = 0, details: bool = False) -> dict[str, torch.Tensor]:
    """Weights of a model with such a head."""
    encoder = AnalysisTransform.random(seed, N=N, M=M, architecture=ALIGNED)
    stored = {}
    for i, layer in enumerate(encoder.g_a):
        parts = {"weight": layer.weight, "bias": layer.bias} if i % 2 == 0 else {
            "beta": (layer.beta + 2.0**-36).sqrt(), "gamma": (layer.gamma[:, :, 0, 0] + 2.0**-36).sqrt()}
        stored |= {f"g_a.{i}.{name}": value for name, value in parts.items()}
    head = {f"head.contrast.{name}": value for name, value in settings(encoder.channels, seed, details).items()}
    return {**stored, **head, "head.quality": torch.tensor([0.2, 0.7])}


@pytest.fixture(params=[False, True], ids=["", "details"])
def details(request) -> bool:
    return request.param


@pytest.fixture
def metric(details) -> CPIPS:
    return CPIPS(state(details=details))


def pair(*size: int, step: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    return x, (x + step * noise).clamp(0, 1)


def blocks(feature: torch.Tensor, count: int) -> torch.Tensor:
    """Means over count x count cells, those at the end over what is there."""
    rows = [torch.stack([part.mean((1, 2)) for part in band.split(count, 2)], -1) for band in feature.split(count, 1)]
    return torch.stack(rows, 1)


def by_hand(weights: dict[str, torch.Tensor], encoder: AnalysisTransform, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The formula of the module's docstring, of one pair whose sides are multiples of 128."""
    total = ((x.mean((1, 2)) - y.mean((1, 2))) ** 2 * weights["color"]).sum()
    for scale in range(SCALES):
        if scale:
            x, y = (torch.nn.functional.avg_pool2d(image[None], 2)[0] for image in (x, y))
        for tap, f, g in zip(("gdn1", "gdn2"), encoder(x[None], ("gdn1", "gdn2")), encoder(y[None], ("gdn1", "gdn2"))):
            w = {name: weights[f"{tap}.{name}"][scale].double() for name in (*PER_CHANNEL, *PER_SCALE)}
            window = max((16 >> scale) // encoder.taps[tap], 1)
            m, n = blocks(f[0].double(), window), blocks(g[0].double(), window)
            error = ((m - n) ** 2 / (m**2 + n**2 + w["mean_floor"][:, None, None]) * w["mean_weight"][:, None, None]).sum(0)
            total = total + (error**2 / (error + w["mean_threshold"])).mean()
            mix = weights[f"{tap}.mix"].double()
            s, t = ((torch.einsum("kc,chw->khw", mix, blocks(h[0].double() ** 2, 2)) + 1e-5).sqrt() for h in (f, g))
            u = w["contrast_weight"][:, None, None]
            error = (u * (s - t) ** 2 / (s**2 + t**2 + w["contrast_floor"][:, None, None])).sum(0)
            error = error**2 / (error + w["contrast_threshold"])
            cell = (((u * torch.maximum(s, t) ** 2).sum(0) / u.sum()) + 1e-4) ** w["power"]
            total = total + (cell * error).mean() / cell.mean()
            if f"{tap}.slopes" in weights and weights[f"{tap}.detail_weight"][scale].any():
                total = total + details_by_hand({name: weights[f"{tap}.{name}"][scale].double() for name in
                                                 (*DETAIL_PER_CHANNEL, *DETAIL_PER_SCALE)}, weights[f"{tap}.slopes"].double(),
                                                f[0].double(), g[0].double(), s, t)
    return total


def details_by_hand(w: dict[str, torch.Tensor], slopes: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
    f, g, s, t = maps
    energy, other = (blocks(contrast**2, 2) for contrast in (s, t))
    across, along = torch.einsum("kc,chw->khw", slopes, (f + g) / 2).chunk(2)
    o = w["detail_weight"][:, None, None]
    share, errors = o / (energy + other + w["detail_floor"][:, None, None]), []
    for row in range(share.shape[1]):
        for column in range(share.shape[2]):
            place = (slice(None), slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
            root = (share[:, row, column] / f[place][0].numel()).sqrt()[:, None]
            target, *sides = ((part[place].flatten(1) * root).flatten() for part in (f - g, across, along))
            A = torch.cat([torch.stack(sides, 1), w["detail_damping"].sqrt() * torch.eye(2, dtype=torch.float64)])
            b = torch.cat([target, torch.zeros(2, dtype=torch.float64)])
            errors.append((A @ torch.linalg.lstsq(A, b[:, None]).solution - b[:, None]).square().sum())
    error = torch.stack(errors).view(share.shape[1:])
    error = error**2 / (error + w["detail_threshold"])
    cell = ((o * torch.maximum(energy, other)).sum(0) / o.sum() + 1e-4) ** w["detail_power"]
    return (cell * error).mean() / cell.mean()


def test_formula(metric, details):
    x, y = pair(128, 256)
    weights = settings(metric.encoder.channels, details=details)
    expected = torch.stack([by_hand(weights, metric.encoder, *one) for one in zip(x, y)])
    assert torch.allclose(metric(x, y).double(), expected, rtol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (33, 70), (64, 64), (129, 40)])
def test_promises(metric, size):
    x, y = pair(*size)
    d = metric(x, y)
    assert (d > 0).all() and torch.isfinite(d).all() and (metric(x, x) == 0).all()
    assert torch.allclose(metric(y, x), d, rtol=1e-5)
    assert torch.allclose(metric.map(x, y).mean((1, 2, 3)), d, rtol=1e-4)
    assert torch.allclose(metric.distance(metric.embed(x), metric.embed(y)), d, rtol=1e-5)
    assert torch.allclose(metric(x[:1], y[:1]), d[:1], rtol=1e-5)
    mask = torch.rand(2, 1, *size) + 0.1
    assert torch.allclose(metric(x, y, mask=mask), (metric.map(x, y) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)), rtol=1e-4)


def test_map_of_a_local_change_is_local(metric):
    x, _ = pair(256, 256)
    y = x.clone()
    y[:, :, 96:128, 96:128] = 1 - y[:, :, 96:128, 96:128]
    heat = metric.map(x, y)[0, 0] - metric.map(x, y)[0, 0].min()
    assert heat[90:134, 90:134].sum() > 0.3 * heat.sum()
    fine = metric.map(x, y)[0, 0]
    assert any((fine[100, c] - fine[100, c + 8]).abs() > 0 for c in range(60, 160, 8))  # cells of 8 px


@pytest.mark.parametrize("rows", [16, 64, 80])
def test_tiles_change_nothing(rows, details):
    x, y = pair(301, 77)
    whole, cut = (CPIPS(state(details=details), strip=strip) for strip in (None, rows))
    assert torch.allclose(cut(x, y), whole(x, y), rtol=1e-6)
    assert torch.allclose(cut.map(x, y), whole.map(x, y), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["equal", "black", "white", "constant", "noise"])
def test_gradients_are_finite(kind, dtype, details):
    metric = CPIPS(state(details=details)).to(dtype)
    x = {"equal": pair(64, 64)[0], "black": torch.zeros(2, 3, 64, 64), "white": torch.ones(2, 3, 64, 64),
         "constant": torch.full((2, 3, 64, 64), 0.5), "noise": pair(64, 64)[0]}[kind]
    y = (x if kind != "noise" else pair(64, 64)[1]).clone().requires_grad_()
    metric(x, y).sum().backward()
    assert torch.isfinite(y.grad).all()
    assert (y.grad.abs().sum() > 0) == (kind == "noise")


def test_turned_images_of_tied_features():
    """Quarter turns and flips of both images: equal to rounding where the channels come in fours."""
    weights = state(12, 5, details=True)
    generator = torch.Generator().manual_seed(3)
    base = torch.rand(2, 2, 4, generator=generator)
    weights["g_a.0.weight"] = turned_filters(torch.randn(2, 3, 8, 8, generator=generator) / 10)
    weights["g_a.1.gamma"] = turned_matrix(base[..., None, None])[..., 0, 0]
    weights["g_a.2.weight"] = turned_matrix(torch.randn(3, 2, 4, 4, 4, generator=generator) / 10)
    weights["g_a.3.gamma"] = turned_matrix(torch.rand(3, 3, 4, 1, 1, generator=generator))[..., 0, 0]
    for key, value in weights.items():
        if key.endswith("slopes"):
            count = value.shape[1] // 4
            weights[key] = turned_slopes(torch.randn(2, count, count, 4, generator=generator))
        elif value.dim() == 2 and not key.endswith(("gamma", "mix")):
            weights[key] = value[:, ::4].repeat_interleave(4, 1)
        elif key.endswith("mix"):
            count = len(value) // 4
            weights[key] = turned_matrix(torch.rand(count, count, 4, 1, 1, generator=generator))[..., 0, 0]
        elif value.dim() == 1 and key.startswith("g_a.") and not key.startswith("g_a.4"):
            weights[key] = value[::4].repeat_interleave(4)
    metric = CPIPS(weights)
    x, y = pair(128, 192)
    d = metric(x, y)
    for turn in (1, 2, 3):
        assert torch.allclose(metric(x.rot90(turn, (2, 3)), y.rot90(turn, (2, 3))), d, rtol=1e-4)


def test_head_travels_with_the_weights(metric, details, tmp_path):
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in state(details=details).items()}, tmp_path / "model.safetensors")
    loaded = CPIPS(tmp_path / "model.safetensors")
    x, y = pair(64, 64)
    assert torch.equal(loaded(x, y), metric(x, y)) and loaded.form == "contrast" and loaded.scales == SCALES
    assert loaded.taps == ("gdn1", "gdn2") and "|head " in loaded.signature
    other = CPIPS({**state(details=details), "head.contrast.color": torch.zeros(3)})
    assert other.signature != metric.signature
    with pytest.raises(Exception, match="another metric"):
        other.distance(metric.embed(x), metric.embed(y))


def test_other_forms_leave_the_head_aside():
    x, y = pair(64, 64)
    assert CPIPS(state(), form="latent").contrast is None
    assert CPIPS(state(), quantize=True).form == "latent"
    plain = CPIPS(AnalysisTransform.random(N=6, M=5, architecture=ALIGNED), form="contrast", scales=2)
    assert (plain(x, y) > 0).all() and plain.taps == ("gdn1", "gdn2") and not plain.is_metric
    assert not CPIPS(state(), root=True).is_metric


def test_channel_weights_are_refused():
    encoder = AnalysisTransform.random(N=6, M=5, architecture=ALIGNED)
    with pytest.raises(ModelError, match="channel weights"):
        CPIPS(encoder, form="contrast", weights={"gdn1": torch.ones(4)})


@pytest.mark.parametrize("damage, message", [
    (lambda s: s.pop("head.contrast.gdn1.power"), "expected"),
    (lambda s: s.pop("head.contrast.color"), "expected"),
    (lambda s: s.update({"head.contrast.gdn2.mean_weight": -s["head.contrast.gdn2.mean_weight"]}), "negative"),
    (lambda s: s.update({"head.contrast.gdn2.mix": s["head.contrast.gdn2.mix"] * float("nan")}), "not finite"),
    (lambda s: s.update({"head.contrast.gdn1.mean_floor": 0 * s["head.contrast.gdn1.mean_floor"]}), "zeros"),
    (lambda s: s.update({"head.contrast.gdn1.mix": torch.ones(3, 3)}), "shape"),
    (lambda s: s.update({"head.contrast.gdn9.mix": torch.ones(3, 3)}), "expected"),
    (lambda s: s.update({"head.quality": torch.tensor([0.0, 1.0])}), "two positive"),
    (lambda s: s.update({"head.quality": torch.ones(3)}), "two positive"),
    (lambda s: s.pop("head.contrast.gdn1.slopes"), "expected"),
    (lambda s: s.update({"head.contrast.gdn1.detail_damping": torch.zeros(SCALES)}), "zeros"),
    (lambda s: s.update({"head.contrast.gdn2.slopes": s["head.contrast.gdn2.slopes"] * float("inf")}), "not finite"),
])
def test_damaged_heads_are_refused(damage, message):
    weights = state(details=True)
    damage(weights)
    with pytest.raises(WeightsError, match=message):
        CPIPS(weights)


def test_quality(metric):
    x, y = pair(64, 64)
    steps = torch.stack([metric.quality(x, (x + k * (y - x)).clamp(0, 1)) for k in (0, 0.3, 1)])
    assert (steps[0] == 5).all() and (steps[:-1] > steps[1:]).all() and (steps > 1).all()
    expected = 1 + 4 / (1 + (metric(x, y) / 0.2) ** 0.7)
    assert torch.allclose(metric.quality(x, y), expected, rtol=1e-5)
    for other in (CPIPS(state(), root=True), CPIPS(state(), form="latent"), CPIPS("hyperprior-q1")):
        with pytest.raises(ModelError, match="no fit to human ratings"):
            other.quality(x, y)


def test_details_leave_out_what_a_displacement_explains():
    generator = torch.Generator().manual_seed(0)
    middle = torch.randn(1, 6, 16, 12, generator=generator)
    slopes = torch.randn(12, 6, generator=generator)
    across, along = torch.einsum("kc,nchw->nkhw", slopes, middle).chunk(2, 1)
    values = {"detail_weight": torch.ones(6), "detail_floor": torch.full((6,), 0.01), "detail_threshold": torch.tensor(1e-6),
              "detail_power": torch.tensor(0.0), "detail_damping": torch.tensor(1e-6), "slopes": slopes}
    ones = torch.ones(1, 6, 8, 6)

    def error(change: torch.Tensor) -> float:
        return module.compare_details(middle + change / 2, middle - change / 2, ones, ones, values)[:, 0].mean().item()

    other = torch.randn(middle.shape, generator=generator)
    moved = 0.3 * across - 0.2 * along
    assert error(moved) < 1e-4 * error(other * (moved.norm() / other.norm()))
    assert error(moved + other) == pytest.approx(error(other), rel=1e-3)


def test_default_head_is_even():
    channels = {"gdn1": 4, "gdn2": 6, "y": 5}
    head = ContrastHead.default(channels, ("gdn1", "gdn2"), 2)
    assert head.taps == ("gdn1", "gdn2") and head.scales == 2
    assert set(head.state()) == {f"head.contrast.{name}" for name in settings(channels)}
    with pytest.raises(WeightsError, match="no tap"):
        ContrastHead({"color": torch.ones(3)}, channels)


def test_strides():
    assert [module.strides(4, scale) for scale in range(3)] == [(16, 8), (8, 8), (4, 8)]
    assert module.strides(8, 2) == (8, 16)
