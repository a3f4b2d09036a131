"""Distances of distributions: numbers of the reference library, streams, processes, patches, resize rules, the command."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from cpips import CpipsError, ImageError, ModelError, WeightsError
from cpips.cli.app import app
from cpips.realism import Space, Statistics, collect, encoder_space, fid, inception_space, kid, make_space, precision_recall
from cpips.realism import spaces
from cpips.realism.distances import coverage, frechet, mmd
from cpips.realism.statistics import patches_of
from helpers import run_two, state_of


@pytest.fixture(scope="module")
def library():
    pytest.importorskip("tqdm")
    try:
        return spaces._torch_fidelity()
    except ImportError as error:
        pytest.skip(str(error))


def colours(x: torch.Tensor) -> torch.Tensor:
    """Cheap features: means and deviations of the channels."""
    return torch.cat([x.mean((2, 3)), x.flatten(2).std(2)], 1)


def draw(count: int, seed: int, size=(24, 20), shift: float = 0.0) -> torch.Tensor:
    """Images whose colours vary, on the 8-bit grid."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(count, 3, 1, 1, generator=generator)
    x = base * 0.6 + 0.4 * torch.rand(count, 3, *size, generator=generator)
    return ((x + shift).clamp(0, 1) * 255).round() / 255


def features(count: int, seed: int, shift: float = 0.0, D: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, D, generator=generator) @ torch.randn(D, D, generator=torch.Generator().manual_seed(9)) + shift


def known(x: torch.Tensor, keep: int = 10_000) -> Statistics:
    """Statistics of features that are given: of constant images, a feature each."""
    found = Statistics(Space("given", lambda batch: batch.mean((2, 3))), keep=keep)
    for part in x.split(7):
        found._add(part)
    found.images = len(x)
    return found


# ---- numbers of the reference library -------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_frechet_distance_is_torch_fidelitys(library, shift):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = features(60, 0), features(45, 1, shift)
    wanted = fid_statistics_to_metric(*(fid_features_to_statistics(z.double()) for z in (x, y)), False)
    assert fid(known(x), known(y)).value == pytest.approx(wanted["frechet_inception_distance"], abs=1e-4, rel=1e-6)


def test_frechet_distance_with_fewer_samples_than_dimensions(library):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = features(8, 0, D=40), features(9, 1, 0.3, D=40)
    result = fid(known(x), known(y))
    wanted = fid_statistics_to_metric(*(fid_features_to_statistics(z.double()) for z in (x, y)), False)
    assert result.value == pytest.approx(wanted["frechet_inception_distance"], rel=1e-4)
    assert "singular" in result.notes[0]


def test_frechet_distance_by_hand():
    """Two diagonal Gaussians: |m - m'|^2 + sum (s - s')^2."""
    one = torch.eye(2, dtype=torch.float64)
    value = frechet(torch.zeros(2).double(), one * torch.tensor([4.0, 9.0]), torch.tensor([1.0, 2.0]).double(), one)
    assert value == pytest.approx(1 + 4 + 1 + 4)


def test_kernel_distance_is_torch_fidelitys(library):
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = features(60, 0), features(50, 1, 0.4)
    a, b = known(x), known(y)
    settings = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1,
                "rng_seed": 2020, "verbose": False}
    wanted = kid_features_to_metric(a.features.double(), b.features.double(), kid_subsets=20, kid_subset_size=30, **settings)
    found = kid(a, b, subsets=20, subset_size=30)
    assert found.value == pytest.approx(wanted["kernel_inception_distance_mean"], rel=1e-6, abs=1e-4)
    assert "20 subsets of 30" in found.signature
    same = known(x[:50])
    all_of = kid_features_to_metric(same.features.double(), b.features.double(), kid_subsets=1, kid_subset_size=50, **settings)
    assert kid(same, b).value == pytest.approx(all_of["kernel_inception_distance_mean"], rel=1e-6, abs=1e-4)


def test_kernel_distance_is_unbiased_and_its_standard_error_true():
    """Over many draws of one distribution: mean about zero, and a spread as the jackknife says."""
    found = [mmd(features(30, 2 * i), features(40, 2 * i + 1)) for i in range(150)]
    values, errors = np.array(found).T
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5 and (values < 0).any()
    assert 0.6 < np.sqrt((errors**2).mean()) / values.std() < 1.7
    values, errors = np.array([mmd(features(30, 2 * i), features(40, 2 * i + 1, 1.0)) for i in range(150)]).T
    assert 0.7 < np.sqrt((errors**2).mean()) / values.std() < 1.5


def test_the_jackknife_leaves_one_out():
    x, y = features(9, 0), features(7, 1, 0.5)
    out = [[mmd(torch.cat([x[:i], x[i + 1:]]), y)[0] for i in range(9)], [mmd(x, torch.cat([y[:i], y[i + 1:]]))[0] for i in range(7)]]
    wanted = sum((len(o) - 1) / len(o) * np.square(np.array(o) - np.mean(o)).sum() for o in out) ** 0.5
    assert mmd(x, y)[1] == pytest.approx(wanted, rel=1e-9)


def test_precision_and_recall_are_torch_fidelitys(library):
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = features(60, 0), features(50, 1) * 0.5
    wanted = prc_features_to_metric(y, x, prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False, verbose=False)
    precision, recall = precision_recall(known(x), known(y))
    assert precision.value == pytest.approx(wanted["precision"]) and recall.value == pytest.approx(wanted["recall"])
    assert precision.value > recall.value  # half of the spread: all of it real, and not all of it there
    assert coverage(x, x, 1) == 1.0


# ---- streams, sizes, processes --------------------------------------------------------------------------------------


def test_a_stream_has_the_moments_of_the_whole():
    x = features(100, 3, shift=1e4)  # where plain sums of squares in float32 would have no digit left
    found = known(x)
    assert torch.allclose(found.mean, x.double().mean(0), rtol=1e-12)
    assert torch.allclose(found.covariance, torch.cov(x.double().T), rtol=1e-9)


def test_order_batches_and_files_play_no_part(tmp_path):
    x = draw(20, 0)
    for i, image in enumerate(x):
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / f"{i:02}.png")
    found = [collect(x, colours, batch_size=1), collect(list(x.flip(0)), colours, batch_size=7),
             collect(tmp_path, colours), collect((image for image in x), colours, workers=1)]
    for other in found[1:]:
        assert other.images == other.samples == 20
        assert torch.allclose(found[0].mean, other.mean) and torch.allclose(found[0].covariance, other.covariance)
        assert fid(found[0], other).value < 1e-9 and kid(found[0], other).value < 0


def test_images_of_many_sizes():
    mixed = [image for size in ((16, 16), (30, 17), (40, 40)) for image in draw(5, sum(size), size)]
    a = collect(mixed, encoder_space(state_of()))
    b = collect(mixed[::-1], encoder_space(state_of()), batch_size=3)
    assert a.samples == b.samples == 15 and torch.allclose(a.mean, b.mean, atol=1e-5)


def test_what_is_kept_is_bounded_and_does_not_depend_on_who_saw_it():
    x = features(200, 0)
    whole = known(x, keep=50)
    assert whole.features.shape == (50, 6) and whole.samples == 200
    parts = known(x[120:], keep=50).merge(known(x[:120], keep=50))
    assert torch.equal(parts.features, whole.features)
    assert torch.allclose(parts.covariance, whole.covariance) and parts.images == 200
    result = kid(whole, known(features(60, 1)))
    assert result.samples == (50, 60) and "50 of 200" in result.notes[0]
    assert known(x, keep=0).features.numel() == 0


@pytest.mark.slow
def test_two_processes_see_what_one_would(tmp_path):
    found = run_two("""
        import json, sys, torch, torch.distributed as dist
        from cpips.realism import collect
        rank, folder = int(sys.argv[1]), sys.argv[2]
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
        def colours(x):
            return x.mean((2, 3))
        x = torch.arange(30.).view(10, 3, 1, 1).expand(10, 3, 4, 4) / 255
        whole = collect(x[rank::2], colours).gather()
        alone = collect(x, colours)
        json.dump([whole.images, (whole.covariance - alone.covariance).abs().max().item(),
                   torch.equal(whole.features, alone.features)], open(f"{folder}/{rank}.json", "w"))
        dist.destroy_process_group()
    """, tmp_path)
    for count, difference, same in found:
        assert count == 10 and difference < 1e-12 and same


def test_statistics_of_a_file(tmp_path):
    x, y = draw(20, 0), draw(20, 1)
    a = collect(x, colours)
    a.save(tmp_path / "a.safetensors")
    read = Statistics.load(tmp_path / "a.safetensors")
    assert fid(read, collect(y, colours)).value == fid(a, y).value
    assert kid(read, y, space=colours).value == kid(a, y).value
    with pytest.raises(ModelError, match="different features"):
        fid(read, y, space=encoder_space(state_of()))
    with pytest.raises(ModelError, match="read from a file"):
        read.update(y)
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="does not hold statistics"):
        Statistics.load(tmp_path / "b.safetensors")
    with pytest.raises(FileNotFoundError):
        Statistics.load(tmp_path / "c.safetensors")


# ---- patches, resize rules, spaces ----------------------------------------------------------------------------------


def test_patches_of_hific():
    """A grid, and one shifted by half a patch where both sides reach 1.5 patches; leftovers are dropped."""
    assert len(patches_of(draw(1, 0, (512, 512)), 256)) == 4 + 1
    assert len(patches_of(draw(1, 0, (384, 768)), 256)) == 3 + 2
    assert len(patches_of(draw(1, 0, (383, 768)), 256)) == 3
    assert len(patches_of(draw(2, 0, (255, 768)), 256)) == 0
    x = torch.arange(2 * 3 * 7 * 9.0).view(2, 3, 7, 9)
    found = patches_of(x, 4)
    assert torch.equal(found[1], x[0, :, :4, 4:8]) and torch.equal(found[4], x[0, :, 2:6, 2:6])


def test_patches_in_a_result():
    x = [*draw(4, 0, (40, 60)), *draw(2, 1, (20, 90))]
    result = fid(x, draw(5, 2, (64, 64)), space=colours, patches=32)
    assert result.name == "frechet-colours/32" and result.samples == (4 * 1, 5 * (4 + 1))
    assert "patches of 32 px" in result.signature and "2 of 6 references are smaller" in result.notes[-1]
    with pytest.raises(ImageError, match="smaller than a patch of 300"):
        fid(x, x, space=colours, patches=300)
    with pytest.raises(ModelError, match="different patches"):
        fid(collect(x, colours, patches=16), collect(x, colours))


def test_images_are_rounded_as_files_hold_them():
    x = draw(6, 0)
    assert torch.equal(collect(x, colours).features, collect(x + 0.3 / 255 * (x < 0.9), colours).features)


def test_clean_resize_is_pillows_on_floats():
    x = draw(1, 0, (50, 37))
    found = spaces.resize(x, "clean-21")[0]
    for plane, wanted in zip(found, x[0]):
        image = Image.fromarray((wanted * 255).numpy()).resize((21, 21), Image.Resampling.BICUBIC)
        assert np.allclose(plane.numpy() * 255, np.asarray(image).clip(0, 255), atol=1e-3)
    assert not torch.equal(found * 255, (found * 255).round())


def test_resize_rules_differ_and_are_told(library):
    x = draw(8, 0, (50, 37))
    results = {rule: fid(x, draw(8, 1), space=Space("c", colours, resize=rule))
               for rule in ("none", "clean-20", "tf1-bilinear-20", "torch-bilinear-20")}
    assert len({result.value for result in results.values()}) == 4
    for rule, result in results.items():
        assert f"|resize {rule}|" in result.signature
    with pytest.raises(ModelError, match="different resize rules"):
        fid(collect(x, Space("c", colours)), collect(x, Space("c", colours, resize="clean-20")))
    for wrong in ("clean", "clean-0", "bicubic-20", "none-3"):
        with pytest.raises(ModelError, match="resize rule .* is unknown"):
            Space("c", colours, resize=wrong)


def test_the_encoder_is_the_space_and_names_the_result():
    space = encoder_space("cpips-lite")
    x = draw(6, 0, (32, 32))
    result = fid(x, draw(6, 1, (32, 32), 0.1), space=space)
    assert result.name == "frechet-cpips-lite" and result.signature.startswith(result.name) and result.value > 0
    assert kid(x, x.flip(0), space=space).name == "kernel-cpips-lite"
    assert make_space("cpips-lite").key == space.key
    assert encoder_space(state_of())(x).shape == (6, 2 * 6)
    cells = encoder_space(state_of(), pool="cells")
    assert cells(x).shape == (6 * 4, 6)
    assert encoder_space(state_of(), pool="mean", taps=["gdn1", "y"])(x).shape == (6, 4 + 6)
    with pytest.raises(ModelError, match="takes one tap"):
        encoder_space(state_of(), taps=["gdn1", "y"], pool="cells")
    with pytest.raises(ModelError, match="pool 'max' is unknown"):
        encoder_space(state_of(), pool="max")


def test_blur_noise_and_equal_sets_in_an_encoders_space():
    """What is the same is at zero, and what is worse is farther."""
    x = torch.nn.functional.interpolate(draw(16, 0, (12, 12)), (48, 48), mode="bicubic").clamp(0, 1)
    space = encoder_space("cpips-lite")
    a = collect(x, space)
    noisy = [fid(a, (x + s * torch.randn_like(x)).clamp(0, 1)).value for s in (0.0, 0.05, 0.2)]
    assert noisy[0] == pytest.approx(0, abs=1e-6) and noisy[0] < noisy[1] < noisy[2]


def test_spaces_that_give_no_features():
    x = draw(3, 0)
    for function, told in ((lambda x: x, "gave"), (lambda x: 3.0, "gave float"), (lambda x: x.mean((2, 3)) * torch.nan, "NaN")):
        with pytest.raises(ModelError, match=told):
            collect(x, function)


@pytest.mark.parametrize("wrong, told", [
    ([], "no images"), (torch.zeros(1, 3, 8, 8), "1 sample"), (torch.zeros(2, 1, 8, 8), "gray"), (torch.full((2, 3, 8, 8), 2.0), "values"),
    (torch.zeros(2, 3, 8, 8) / 0, "NaN"), ("nowhere", "is no folder"), ([torch.zeros(3, 8, 8), "no.png"], "no such file")])
def test_sets_that_cannot_be_compared(wrong, told):
    with pytest.raises((CpipsError, FileNotFoundError), match=told):
        fid(draw(5, 0), wrong, space=colours)


def test_settings_that_cannot_be():
    x = draw(5, 0)
    for settings in ({"patches": 0}, {"keep": -1}, {"batch_size": 0}):
        with pytest.raises(ModelError):
            fid(x, x, space=colours, **settings)
    with pytest.raises(ModelError, match="subsets of 1000 of 5"):
        kid(x, x, space=colours, subsets=100)
    with pytest.raises(ModelError, match="keep=0"):
        kid(x, x, space=colours, keep=0)
    with pytest.raises(ModelError, match="neighbours is 5"):
        precision_recall(x, x, space=colours, neighbours=5)
    with pytest.raises(ModelError, match="unknown model"):
        fid(x, x, space="inceptoin")


# ---- Inception ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(library, tmp_path_factory):
    """A file of random weights of the genuine network, as torch-fidelity stores them, and its digest."""
    from torch_fidelity import feature_extractor_inceptionv3 as genuine

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(genuine, "load_state_dict_from_url", lambda *args, **settings: {})
        patch.setattr(genuine.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        net = genuine.FeatureExtractorInceptionV3("x", ["2048"])
    path = tmp_path_factory.mktemp("inception") / "weights-inception.pth"
    torch.save(net.state_dict(), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest(), net


@pytest.mark.slow
def test_inception_from_a_file_is_torch_fidelitys(weights):
    path, _, net = weights
    x = draw(2, 0, (70, 45))
    space = inception_space(path)
    wanted = net((x * 255).round().byte())[0]
    assert torch.allclose(space(spaces.resize(x, space.resize)), wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max())
    seen = collect(x, space)
    result = fid(seen, seen)
    assert result.name == "FID" and "resize tf1-bilinear-299" in result.signature and result.value == pytest.approx(0, abs=1e-6)
    assert kid(seen, seen).name == "KID" and seen.features.shape == (2, 2048)
    with pytest.raises(ModelError, match="does not give Inception its 299 px"):
        inception_space(path, resize="none")


@pytest.mark.slow
def test_inception_by_its_digest_from_a_server(weights, monkeypatch, capsys, tmp_path):
    path, sha256, _ = weights
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *args: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=path.parent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        with pytest.raises(WeightsError, match="offline mode is on"):
            inception_space(url=url, sha256=sha256[:8])
        with pytest.raises(WeightsError, match="other bytes than expected"):
            inception_space(url=url, sha256="0" * 8, offline=False)
        assert inception_space(url=url, sha256=sha256[:8], offline=False).inception
        server.shutdown()
    assert inception_space(url=url, sha256=sha256[:8]).key  # of the cache


def test_inception_that_is_none(library, tmp_path):
    with pytest.raises(WeightsError, match="CPIPS_OFFLINE"):
        inception_space()
    with pytest.raises(WeightsError, match="not of FID's Inception"):
        inception_space({"fc.bias": torch.zeros(1008)})
    with pytest.raises(WeightsError, match="no weights file"):
        inception_space(tmp_path / "nothing.pth")


# ---- the command ----------------------------------------------------------------------------------------------------


def command(*args: object) -> int:
    with pytest.raises(SystemExit) as end:
        app([str(arg) for arg in args])
    return end.value.code


@pytest.fixture
def folders(tmp_path):
    for name, seed, shift in (("a", 0, 0.0), ("b", 1, 0.2)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(draw(6, seed, (40, 36), shift)):
            Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_the_command(folders, capsys):
    a, b = folders / "a", folders / "b"
    assert command("realism", a, b, "--space", "cpips-lite", "--json", "--save-reference", folders / "a.safetensors") == 0
    told = json.loads(capsys.readouterr().out)
    by_name = {result["name"]: result for result in told["results"]}
    assert list(by_name) == [f"{what}-cpips-lite" for what in ("frechet", "kernel", "precision", "recall")]
    wanted = fid(a, b, space="cpips-lite")
    assert by_name["frechet-cpips-lite"]["value"] == pytest.approx(wanted.value, rel=1e-5)
    assert by_name["kernel-cpips-lite"]["standard_error"] > 0 and "singular" in told["notes"][0]
    assert command("realism", folders / "a.safetensors", b, "--space", "cpips-lite") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t") == ["measure", "value", "standard error", "references", "samples"]
    assert lines[1].startswith("frechet-cpips-lite\t") and lines[-2].startswith("# ")
    assert float(lines[1].split("\t")[1]) == pytest.approx(wanted.value, rel=1e-4)


@pytest.mark.parametrize("args, told", [
    (["--space", "nothing"], "unknown model"), (["--space", "inception"], "offline"), (["--weights", "x"], "--weights are those"),
    (["--space", "cpips-lite", "--resize", "big"], "resize rule"), (["--space", "cpips-lite", "--patches", 500], "smaller than a patch"),
    (["--space", "cpips-lite", "--subsets", 10], "subsets of 1000")])
def test_commands_that_are_refused(folders, capsys, args, told):
    assert command("realism", folders / "a", folders / "b", *args) == 2
    assert told in capsys.readouterr().err
