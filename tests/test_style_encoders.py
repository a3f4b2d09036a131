"""Style transfer by many encoders: what its judges measure, and what becomes of their rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    for package in ("pandas", "matplotlib"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import style_encoders

    return style_encoders


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """A few large shapes, and fine stripes."""
    torch.manual_seed(0)
    content = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6), (96, 96), mode="bilinear")
    style = (0.5 + 0.4 * torch.sin(torch.arange(96) * 0.9)).expand(1, 3, 96, 96) * torch.tensor([1.0, 0.6, 0.3]).view(1, 3, 1, 1)
    return content, style


def test_the_scales_of_the_judges(benchmark, images, shared_data):
    content, style = images
    judges = benchmark.Judges(content, style)
    assert set(judges(content, but="alex")) == {"texture_left", "style_left squeeze", "content_lost squeeze"}
    for image, left in ((content, 1.0), (style, 0.0)):
        found = judges(image)
        assert found["texture_left"] == pytest.approx(left, abs=1e-3)
        for name in benchmark.BACKBONES:
            assert found[f"style_left {name}"] == pytest.approx(left, abs=1e-3)
            assert found[f"content_lost {name}"] == pytest.approx(1 - left, abs=1e-3)


def test_filters_know_the_direction_and_not_the_place(benchmark, images):
    _, style = images
    energies, correlations = benchmark.filtered(style)
    moved, _ = benchmark.filtered(style.roll(5, 3))
    turned, _ = benchmark.filtered(style.transpose(2, 3))
    assert energies.shape == (180,) and correlations.shape == (435,)
    assert (moved - energies).abs().max() < 1e-3 and (turned - energies).abs().max() > 1


def test_colors_alone_have_the_styles_moments(benchmark, images):
    content, _ = images
    style = 0.4 + 0.05 * torch.randn(1, 3, 96, 96)  # so that nothing is clipped
    pixels, wanted = (image[0].flatten(1) for image in (benchmark.colors_alone(content, style), style))
    assert torch.allclose(pixels.mean(1), wanted.mean(1), atol=2e-3) and torch.allclose(pixels.cov(), wanted.cov(), atol=2e-4)


def rows(benchmark, pairs) -> list[dict]:
    """The tuned encoder leaves a tenth less than the others, whose style left depends on the pair; each backbone judges others."""
    return [{"content": content, "style": style, "encoder": name, "texture_left": value - 0.1 * (name == benchmark.TUNED),
             **{f"{key} {judge}": value - 0.1 * (name == benchmark.TUNED) + 0.5 * (judge == "squeeze") for judge in benchmark.BACKBONES
                if judge != name for key in ("style_left", "content_lost")}}
            for (content, style), value in pairs.items() for name in (benchmark.CONTROL, *benchmark.ENCODERS)]


def test_differences_are_paired(benchmark):
    contents, styles = ["a", "b"], ["s", "t"]
    pairs = {("a", "s"): 0.2, ("a", "t"): 0.4, ("b", "s"): 0.6, ("b", "t"): 0.8}
    found = benchmark.summarized(rows(benchmark, pairs), contents, styles)
    assert found["encoders"]["plain"]["texture left"][0] == pytest.approx(0.5)
    assert found["encoders"]["plain"]["style left"][0] == pytest.approx(0.75)  # the mean of both judges
    low, high = found["encoders"]["plain"]["texture left"][1:]
    assert low < 0.4 and high > 0.6
    assert found["differences"]["tuned - plain"]["style left"] == pytest.approx([-0.1] * 3)
    # a backbone is compared by the other one alone, so what that adds to both is no difference
    assert found["differences"]["plain - squeeze"]["style left"] == pytest.approx([0.0] * 3, abs=1e-12)
    assert found["differences"]["plain - alex"]["sum"] == pytest.approx([0.0] * 3, abs=1e-12)


def test_some_of_the_pairs(benchmark):
    pairs = {("a", "s"): 0.2, ("b", "t"): 0.8}
    found = benchmark.summarized(rows(benchmark, pairs), ["a", "b", "c"], ["s", "t"])
    assert found["encoders"]["plain"]["texture left"][0] == pytest.approx(0.5)


def test_layers_are_averaged_over_those_of_the_other_term(benchmark):
    cells = [{"content": pair, "style": "s", "content_tap": content, "style_taps": label, "texture_left": 0.0,
              **{f"{key} {judge}": 0.1 * benchmark.TAPS.index(content) for judge in benchmark.BACKBONES for key in ("style_left", "content_lost")}}
             for pair in ("a", "b") for content in benchmark.TAPS for label in (*benchmark.TAPS, "all")]
    found = benchmark.chosen(cells)
    assert found["content"]["y - gdn1"]["style left"] == pytest.approx([0.3] * 3)
    assert found["style"]["y - gdn1"]["sum"] == pytest.approx([0.0] * 3, abs=1e-12)
    assert found["cells"]["gdn2, all"]["sum"][0] == pytest.approx(0.2)


@pytest.mark.slow
def test_smoke(benchmark, shared_data, shipped_codecs, tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setattr(benchmark, "SETTINGS", dict(benchmark.SETTINGS))
    monkeypatch.setattr(sys, "argv", ["style_encoders.py", "--runs", str(tmp_path), "--smoke"])
    benchmark.main()
    printed = capsys.readouterr().out
    assert "tuned for classification minus hyperprior-q4, untuned" in printed and "content layer `y` minus `gdn1`" in printed
    assert all((tmp_path / name).exists() for name in ("style_models.png", "style_taps.png", "style_encoders.json"))
