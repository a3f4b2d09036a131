"""Where weights come from: names and cards, digests, files of every kind, the cache and its downloads."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import importlib.util
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import cpips
from cpips import CPIPS, ModelError, WeightsError, pretrained
from cpips._utils.optional import declare_torchvision_ops
from cpips.baselines import DISTS, LPIPS, weights as _common, dists, lpips, trunks
from cpips.encoders import AnalysisTransform
from helpers import state_of

ZOO = "compressai:bmshj2018-hyperprior/mse/3"


DIGEST = AnalysisTransform.from_state_dict(state_of()).digest()


# ---- names and cards ------------------------------------------------------------------------------------------------


def test_every_shipped_model_loads_and_is_what_its_card_says():
    assert pretrained.DEFAULT_MODEL in cpips.list_models()
    assert cpips.list_models() == sorted(cpips.list_models())
    for name in cpips.list_models():
        card = cpips.model_card(name)
        assert card["name"] == name and card["licence"]
        path = pretrained.weights_dir() / card["file"]
        assert path.suffix == ".safetensors" and len(card["sha256"]) == 64
        assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"]
        metric = CPIPS(name)
        assert metric.name == name and (metric.encoder.N, metric.encoder.M) == (card["N"], card["M"])
        assert name in metric.signature and name in cpips.list_metrics()
    assert CPIPS().name == pretrained.DEFAULT_MODEL


@pytest.mark.parametrize("name", ["hyperprior-q44", "hyperprior q4", "Hyperprior-Q4", "hyperpriorq4"])
def test_unknown_names_have_their_nearest(name):
    for call in (CPIPS, cpips.model_card, cpips.create_metric):
        with pytest.raises(ModelError, match="unknown model .*did you mean .*hyperprior-q4"):
            call(name)


def test_unknown_names_without_a_nearest_have_them_all():
    for call in (CPIPS, cpips.model_card):
        with pytest.raises(ModelError, match="unknown model 'xyzzy': .*hyperprior-q4"):
            call("xyzzy")
    for name in ("", "lpips", "resnet50"):
        with pytest.raises(ModelError, match="unknown model"):
            cpips.create_metric(name)
    with pytest.raises(ModelError, match="did you mean .*compressai:bmshj2018-hyperprior/mse/"):
        CPIPS("compressai:bmshj2018-hyperprior/mse/9")
    with pytest.raises(ModelError, match="unknown model"):
        CPIPS("compressai:")


@pytest.mark.parametrize("model", [None, 3, 0.5, ["hyperprior-q4"], b"hyperprior-q4", torch.ones(3)], ids=repr)
def test_models_of_other_types(model):
    with pytest.raises(ModelError, match="expected a name, a path, a state dict or an encoder"):
        CPIPS(model)


def test_a_shipped_name_is_not_a_file_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(pretrained.DEFAULT_MODEL).write_text("something else")
    assert CPIPS(pretrained.DEFAULT_MODEL).name == pretrained.DEFAULT_MODEL


def test_create_metric_knows_what_it_lists():
    assert {"random", "mse", "psnr", "lpips-alex"} <= set(cpips.list_metrics())
    metric = cpips.create_metric("random", form="taps", reduction="mean")
    assert isinstance(metric, CPIPS) and metric.form == "taps" and metric.reduction == "mean"


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A copy of the weights folder that may be damaged."""
    folder = tmp_path / "weights"
    shutil.copytree(pretrained.weights_dir(), folder)
    monkeypatch.setattr(pretrained, "weights_dir", lambda: folder)
    return folder


def test_shipped_weights_that_were_changed(shipped):
    path = shipped / cpips.model_card(pretrained.DEFAULT_MODEL)["file"]
    whole = path.read_bytes()
    tampered = bytearray(whole)
    tampered[-1] ^= 1
    for data in (bytes(tampered), whole[:-1], whole[:1000], b"", whole + b"\0"):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match="damaged or was tampered with.*SHA-256.*install or download it again"):
            CPIPS()
    path.write_bytes(whole)
    CPIPS()
    path.unlink()
    with pytest.raises(WeightsError, match="no weights file at"):
        CPIPS()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"file": "x.safetensors"}', "\xff"])
def test_damaged_cards(shipped, text):
    (shipped / f"{pretrained.DEFAULT_MODEL}.json").write_text(text, encoding="latin-1")
    with pytest.raises(WeightsError, match="card of cpips-lite is damaged.*reinstall"):
        CPIPS()


def test_cards_are_read_afresh():
    """Changing a card in the hand does not change the model."""
    cpips.model_card(pretrained.DEFAULT_MODEL)["sha256"] = "0" * 64
    assert CPIPS().name == pretrained.DEFAULT_MODEL


# ---- files ----------------------------------------------------------------------------------------------------------


def test_files_of_every_kind(tmp_path, monkeypatch):
    save_file(state_of(), tmp_path / "a.safetensors")
    for name, content in [("a.pth", state_of()), ("a.pt", {"state_dict": state_of(), "epoch": 3}),
                          ("a.pth.tar", state_of()), ("noext", state_of())]:
        torch.save(content, tmp_path / name)
    torch.save(state_of(), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        for model in (path, str(path)):
            metric = CPIPS(model)
            assert metric.digest == DIGEST and metric.name == path.name
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "a.pth", "noext"):
        assert CPIPS(name).digest == cpips.create_metric(name).digest == DIGEST


def test_state_dicts_and_encoders():
    encoder = AnalysisTransform.from_state_dict(state_of())
    for model in (state_of(), encoder, {f"module.{key}": value for key, value in state_of().items()}):
        assert CPIPS(model).digest == DIGEST and CPIPS(model).name == "custom"


def test_weights_of_a_codec_in_training(compressai):
    net = compressai.models.ScaleHyperprior(4, 6)
    metric = CPIPS(net.state_dict())
    digest = metric.digest
    with torch.no_grad():
        [p.add_(1) for p in net.parameters()]
    assert metric.encoder.digest() == digest


def test_weights_of_other_networks(tmp_path):
    save_file({"features.0.weight": torch.rand(64, 3, 11, 11)}, tmp_path / "alexnet.safetensors")
    save_file(state_of() | {"g_a.0.weight": torch.rand(4, 1, 5, 5)}, tmp_path / "grey.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(torch.rand(3), tmp_path / "tensor.pth")
    torch.save({"model": state_of()}, tmp_path / "nested.pth")
    for name, words in [("alexnet.safetensors", "not a hyperprior encoder.*features.0.weight"),
                        ("grey.safetensors", r"g_a.0.weight has shape \(4, 1, 5, 5\)"), ("list.pth", "holds a list"),
                        ("tensor.pth", "holds a Tensor"), ("nested.pth", "got: model")]:
        with pytest.raises(WeightsError, match=words):
            CPIPS(tmp_path / name)


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("missing.pth", "folder.safetensors", "no/such/folder.pth"):
        for model in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(WeightsError, match="no weights file at"):
                CPIPS(model)
    with pytest.raises(WeightsError, match="no weights file at"):
        CPIPS(tmp_path)
    for suffix in ("safetensors", "pth"):
        for data in (b"", b"text", b"\0" * 100, b"PK\3\4" + b"\0" * 100, b"\x80\x02}q\x00."):
            path = tmp_path / f"bad.{suffix}"
            path.write_bytes(data)
            with pytest.raises(WeightsError):
                CPIPS(path)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_truncated_files(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    save_file(state_of(), path) if suffix == "safetensors" else torch.save(state_of(), path)
    whole = path.read_bytes()
    for cut in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(WeightsError, match="a.*(damaged|truncated|plain tensors)"):
            CPIPS(path)


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["pickle", "torch", "legacy"])
def test_pickles_are_not_executed(tmp_path, kind):
    content = {"g_a.0.weight": Bomb(tmp_path / "executed")}
    path = tmp_path / "bomb.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(WeightsError, match="not unpickled"):
        CPIPS(path)
    assert not (tmp_path / "executed").exists()
    if kind == "pickle":
        pickle.loads(path.read_bytes())
        assert (tmp_path / "executed").exists()  # the bomb is live: it was the loading that was safe


# ---- the cache and its downloads ------------------------------------------------------------------------------------


def payload(tmp_path: Path) -> bytes:
    torch.save(state_of(), tmp_path / "payload.pth")
    return (tmp_path / "payload.pth").read_bytes()


class Server:
    """A web server on this machine that sends ``body``, or what ``files`` holds under the name that was asked for, in
    the way of ``mode``, and counts what it was asked."""

    def __init__(self, body: bytes):
        self.files: dict[str, bytes] = {}
        self.body, self.mode, self.requests, self.quit = body, "good", 0, threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests += 1
                outer.body = outer.files.get(self.path.rsplit("/", 1)[1], outer.body)
                getattr(outer, outer.mode)(self)

            def log_message(self, *args):
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/"
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self):
        self.quit.set()
        self.httpd.shutdown()
        self.thread.join()
        self.httpd.server_close()

    def send(self, handler, body, length=None):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)

    def good(self, handler):
        self.send(handler, self.body)

    def missing(self, handler):
        handler.send_error(404)

    def broken(self, handler):
        handler.send_error(500)

    def truncated(self, handler):
        self.send(handler, self.body[: len(self.body) // 2], len(self.body))

    def wrong(self, handler):
        self.send(handler, self.body[:-1] + bytes([self.body[-1] ^ 1]))

    def empty(self, handler):
        self.send(handler, b"")

    def page(self, handler):
        self.send(handler, b"<html>Please log in to the hotel's network</html>")

    def chunked(self, handler):
        """Says that chunks follow, and sends none."""
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"zz\r\n")

    def nonsense(self, handler):
        handler.wfile.write(b"\0\1\2\3 no HTTP\r\n\r\n")

    def hangup(self, handler):
        pass

    def silent(self, handler):
        self.quit.wait(30)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The zoo, on this machine, with one known file."""
    body = payload(tmp_path)
    server = Server(body)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "CPIPS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pretrained, "ZOO_URL", server.url)
    monkeypatch.setitem(pretrained._ZOO_DIGESTS, "mse", [hashlib.sha256(body).hexdigest()[:8]] * 8)
    yield server
    server.close()


def cached() -> list[str]:
    folder = pretrained.cache_dir()
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_download_once_then_from_the_cache(server):
    assert CPIPS(ZOO).digest == DIGEST
    assert len(cached()) == 1 and cached()[0].startswith("bmshj2018-hyperprior-3-") and server.requests == 1
    metric = CPIPS(ZOO, offline=True)
    assert server.requests == 1 and metric.name == ZOO and metric.digest == DIGEST
    CPIPS("compressai:bmshj2018-hyperprior/mse/4")
    assert server.requests == 2 and len(cached()) == 2


@pytest.mark.parametrize("mode", ["missing", "broken", "truncated", "wrong", "empty", "page", "chunked", "nonsense",
                                  "hangup"])
def test_a_failed_download_leaves_nothing(server, mode):
    server.mode = mode
    with pytest.raises(WeightsError, match="http://127.0.0.1.*put the file at"):
        CPIPS(ZOO)
    assert cached() == [] and server.requests >= 1
    server.mode = "good"
    assert CPIPS(ZOO).digest == DIGEST  # and spoils nothing


def test_a_silent_server_is_given_up(server):
    server.mode = "silent"
    with pytest.raises(WeightsError, match="could not download.*timed out"):
        pretrained.fetch(server.url + "file.pth", "00", timeout=0.2)
    assert cached() == []


def test_a_refused_connection(monkeypatch):
    monkeypatch.delenv("CPIPS_OFFLINE")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(pretrained, "ZOO_URL", f"http://127.0.0.1:{unused.getsockname()[1]}/")
        monkeypatch.setenv("no_proxy", "*")
        with pytest.raises(WeightsError, match="could not download.*check the connection"):
            CPIPS(ZOO)
    assert cached() == []


def test_an_interrupted_download_leaves_nothing(server, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        CPIPS(ZOO)
    assert cached() == []


@pytest.mark.parametrize("value", ["1", "true", "YES", " on "])
def test_offline_by_environment(server, monkeypatch, value):
    monkeypatch.setenv("CPIPS_OFFLINE", value)
    with pytest.raises(WeightsError, match="offline mode is on: download http.* and put it at .*unset"):
        CPIPS(ZOO)
    assert server.requests == 0 and cached() == []
    CPIPS(), CPIPS("random")  # what ships needs no network
    assert CPIPS(ZOO, offline=False).digest == DIGEST  # the argument wins
    assert CPIPS(ZOO).digest == DIGEST  # the cache does


@pytest.mark.parametrize("value", ["", "0", "false", "No", "off"])
def test_not_offline_by_environment(server, monkeypatch, value):
    monkeypatch.setenv("CPIPS_OFFLINE", value)
    assert CPIPS(ZOO).digest == DIGEST and server.requests == 1


def test_offline_by_argument(server):
    with pytest.raises(WeightsError, match="offline mode is on"):
        CPIPS(ZOO, offline=True)
    assert server.requests == 0


def test_a_damaged_cache_is_not_trusted(server):
    CPIPS(ZOO)
    path = pretrained.cache_dir() / cached()[0]
    path.write_bytes(path.read_bytes()[:-5])
    for offline in (True, False):
        with pytest.raises(WeightsError, match="damaged or was tampered with.*delete it"):
            CPIPS(ZOO, offline=offline)
    path.unlink()
    assert CPIPS(ZOO).digest == DIGEST


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CPIPS_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(WeightsError, match="cannot write to the cache directory .*set CPIPS_HOME"):
        CPIPS(ZOO)
    assert server.requests == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_cache(server, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir(mode=0o500)
    monkeypatch.setenv("CPIPS_HOME", str(tmp_path / "locked"))
    with pytest.raises(WeightsError, match="cannot write to the cache directory"):
        CPIPS(ZOO)


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("CPIPS_HOME", "~/somewhere")
    assert pretrained.cache_dir() == Path.home() / "somewhere"
    monkeypatch.delenv("CPIPS_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pretrained.cache_dir() == tmp_path / "cpips"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert pretrained.cache_dir() == Path.home() / ".cache" / "cpips"


def test_threads_that_download_at_once(server):
    digests = []
    threads = [threading.Thread(target=lambda: digests.append(CPIPS(ZOO).digest)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert digests == [DIGEST] * 4 and len(cached()) == 1


@pytest.mark.slow
def test_processes_that_download_at_once(server):
    script = ("import sys, json; from cpips import CPIPS, pretrained\n"
              "pretrained.ZOO_URL, pretrained._ZOO_DIGESTS['mse'] = sys.argv[1], [sys.argv[2]] * 8\n"
              f"print(CPIPS({ZOO!r}).digest)")
    command = [sys.executable, "-c", script, server.url, hashlib.sha256(server.body).hexdigest()[:8]]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert outputs == [DIGEST] * 2 and len(cached()) == 1 and 1 <= server.requests <= 2


def test_no_checkpoint_of_the_zoo_is_unknown():
    """The digests that the official file names carry: eight qualities each, and no typing error among them."""
    for digests in pretrained._ZOO_DIGESTS.values():
        assert len(digests) == len(set(digests)) == 8 and all(len(d) == 8 and int(d, 16) >= 0 for d in digests)


@pytest.mark.parametrize(("name", "file"), [
    ("mse/1", "bmshj2018-hyperprior-1-7eb97409.pth.tar"),
    ("ms-ssim/8", "bmshj2018-hyperprior-ms-ssim-8-cc15b5f3.pth.tar")])
def test_urls_of_the_zoo_are_compressais(compressai, name, file):
    from compressai.zoo.image import model_urls

    metric, quality = name.split("/")
    assert model_urls["bmshj2018-hyperprior"][metric][int(quality)] == pretrained.ZOO_URL + file
    with pytest.raises(WeightsError, match=file):
        CPIPS(f"compressai:bmshj2018-hyperprior/{name}", offline=True)


def test_every_digest_of_the_zoo_is_compressais(compressai):
    from compressai.zoo.image import model_urls

    for metric, digests in pretrained._ZOO_DIGESTS.items():
        for quality, digest in enumerate(digests, 1):
            assert digest in model_urls["bmshj2018-hyperprior"][metric][quality]


# ---- the weights of baselines ---------------------------------------------------------------------------------------


def saved(state: dict[str, torch.Tensor], path: Path) -> bytes:
    torch.save(state, path)
    return path.read_bytes()


@pytest.fixture
def baselines(server, tmp_path, monkeypatch):
    """LPIPS-Squeeze's two files, and DISTS' alpha and beta, on this machine."""
    squeeze = trunks.NETS["squeeze"]
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(squeeze.channels)}
    trunk = saved(trunks.random_state(squeeze) | {"classifier.1.bias": torch.zeros(1)}, tmp_path / "t")
    server.files = {
        "squeeze.pth": saved(heads, tmp_path / "h"),
        "weights.pt": saved({key: torch.ones(1, 1475, 1, 1) for key in ("alpha", "beta")}, tmp_path / "w"),
    }
    digest = {name: hashlib.sha256(body).hexdigest() for name, body in server.files.items()}
    sha256 = hashlib.sha256(trunk).hexdigest()
    name = f"squeezenet1_1-{sha256[:8]}.pth"
    server.files[name] = trunk
    here = dataclasses.replace(squeeze, url=f"{server.url}models/{name}", sha256=sha256)
    monkeypatch.setitem(trunks.NETS, "squeeze", here)
    monkeypatch.setattr(lpips, "_HEADS_URL", server.url + "v0.1/")
    monkeypatch.setitem(lpips._HEADS_SHA256, "squeeze", digest["squeeze.pth"])
    monkeypatch.setattr(dists, "_URL", server.url + "DISTS_pytorch/weights.pt")
    monkeypatch.setattr(dists, "_SHA256", digest["weights.pt"])
    return server


def in_trunks() -> list[str]:
    return sorted(path.name for path in _common.folder().iterdir()) if _common.folder().is_dir() else []


def test_baselines_download_once_then_read_the_cache(baselines, tmp_path):
    metric = cpips.create_metric("lpips-squeeze")
    heads, trunk = (digest[:8] for digest in (lpips._HEADS_SHA256["squeeze"], trunks.NETS["squeeze"].sha256))
    assert baselines.requests == 2
    assert in_trunks() == [f"lpips_v0.1_squeeze-{heads}.pth", f"squeezenet1_1-{trunk}.pth"]
    kept = _common.folder() / f"squeezenet1_1-{trunk}.pth"
    assert kept.read_bytes() == (tmp_path / "t").read_bytes()  # classifier and all, so that its digest can be checked
    given = LPIPS("squeeze", trunk=tmp_path / "t", heads=tmp_path / "h")
    assert metric.name == "lpips-squeeze" and metric.digest == given.digest
    assert LPIPS("squeeze", offline=True).digest == metric.digest and baselines.requests == 2
    distance = DISTS(trunk="random")
    assert baselines.requests == 3 and distance.digest == DISTS(trunk="random", weights="ones").digest
    LPIPS("squeeze", trunk="random", heads="ones"), LPIPS("squeeze", trunk=tmp_path / "t", heads=tmp_path / "h")
    assert baselines.requests == 3


def test_the_first_digits_of_a_digest_are_checked(baselines, monkeypatch):
    """All that the name of a file tells."""
    net = trunks.NETS["squeeze"]
    monkeypatch.setitem(trunks.NETS, "squeeze", dataclasses.replace(net, sha256=net.sha256[:8]))
    LPIPS("squeeze", heads="ones"), LPIPS("squeeze", heads="ones", offline=True)
    assert in_trunks() == [f"squeezenet1_1-{net.sha256[:8]}.pth"] and baselines.requests == 1
    monkeypatch.setitem(trunks.NETS, "squeeze", dataclasses.replace(net, sha256="b8a52dc0"))
    with pytest.raises(WeightsError, match=r"gave other bytes than expected.*expected b8a52dc0\.\.\."):
        LPIPS("squeeze", heads="ones")


def test_ones_own_file_comes_before_a_download(baselines, tmp_path):
    _common.folder().mkdir(parents=True)
    own = {key: value + 1 for key, value in torch.load(tmp_path / "h", weights_only=True).items()}
    torch.save(own, _common.folder() / "lpips_v0.1_squeeze.pth")
    for _ in range(2):
        metric = LPIPS("squeeze", trunk="random")
        assert torch.equal(metric.lin0, own["lin0.model.1.weight"].flatten()) and baselines.requests == 0
        (_common.folder() / f"lpips_v0.1_squeeze-{lpips._HEADS_SHA256['squeeze'][:8]}.pth").write_bytes(b"")


@pytest.mark.parametrize("mode", ["missing", "broken", "truncated", "wrong", "empty", "page", "chunked", "nonsense",
                                  "hangup"])
def test_a_failed_download_of_a_baseline_leaves_nothing(baselines, mode):
    baselines.mode = mode
    for make in (lambda: LPIPS("squeeze", heads="ones"), lambda: LPIPS("squeeze"), lambda: DISTS(trunk="random")):
        with pytest.raises(WeightsError, match="(backbone|heads|weights).*http://127.0.0.1.*put the file.*needs no file"):
            make()
    assert in_trunks() == []
    baselines.mode = "good"
    LPIPS("squeeze")


def test_a_silent_server_of_a_baseline_is_given_up(baselines, monkeypatch):
    monkeypatch.setattr(_common, "fetch", functools.partial(pretrained.fetch, timeout=0.2))
    baselines.mode = "silent"
    with pytest.raises(WeightsError, match="the LPIPS heads for squeeze: could not download.*timed out"):
        LPIPS("squeeze")
    assert in_trunks() == []


def test_baselines_offline(baselines, monkeypatch):
    """By argument and by environment: file, address, digest and place are told, and nothing is asked for."""
    net = trunks.NETS["squeeze"]

    def refused(**settings):
        with pytest.raises(WeightsError, match="offline mode is on") as error:
            LPIPS("squeeze", **settings)
        return str(error.value)

    message = refused(heads="ones", offline=True)
    place = _common.folder() / f"squeezenet1_1-{net.sha256[:8]}.pth"
    for part in (f"download {net.url} (SHA-256 {net.sha256})", f"put it at {place}", "unset CPIPS_OFFLINE", "'random'"):
        assert part in message
    monkeypatch.setenv("CPIPS_OFFLINE", "1")
    assert lpips._HEADS_SHA256["squeeze"] in refused(trunk="random")
    with pytest.raises(WeightsError, match=f"offline mode is on.*{dists._SHA256}"):
        DISTS(trunk="random")
    assert baselines.requests == 0 and in_trunks() == []
    LPIPS("squeeze", offline=False)
    assert baselines.requests == 2


def test_a_damaged_copy_of_a_baselines_weights_is_not_trusted(baselines):
    DISTS(trunk="random")
    (copy,) = _common.folder().iterdir()
    copy.write_bytes(copy.read_bytes()[:-1])
    for offline in (True, False):
        with pytest.raises(WeightsError, match="DISTS weights: .*tampered with.*delete it"):
            DISTS(trunk="random", offline=offline)


@pytest.mark.shared_data
def test_genuine_heads_have_the_digests_that_are_asked_for(shared_data, server, monkeypatch):
    weights = shared_data / "weights"
    server.files = {f"{net}.pth": (weights / f"lpips_v0.1_{net}.pth").read_bytes() for net in trunks.NETS}
    server.files["weights.pt"] = (weights / "DISTS_weights.pt").read_bytes()
    monkeypatch.setattr(lpips, "_HEADS_URL", server.url)
    monkeypatch.setattr(dists, "_URL", server.url + "weights.pt")
    for net in trunks.NETS:
        given = LPIPS(net, trunk="random", heads=weights / f"lpips_v0.1_{net}.pth")
        assert LPIPS(net, trunk="random").digest == given.digest
    assert DISTS(trunk="random").digest == DISTS(trunk="random", weights=weights / "DISTS_weights.pt").digest
    assert server.requests == 4 and in_trunks() == [
        "DISTS_weights-f5e65c96.pt", "lpips_v0.1_alex-df73285e.pth", "lpips_v0.1_squeeze-4a5350f2.pth",
        "lpips_v0.1_vgg-a78928a0.pth"]


@pytest.mark.parametrize(("package", "folder", "files"), [
    ("lpips", "weights/v0.1", {f"{net}.pth": digest for net, digest in lpips._HEADS_SHA256.items()}),
    ("DISTS_pytorch", "", {"weights.pt": dists._SHA256})])
def test_digests_are_those_of_the_authors_packages(package, folder, files):
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    for name, digest in files.items():
        assert pretrained.file_sha256(Path(spec.origin).parent / folder / name) == digest


def test_trunks_are_torchvisions():
    declare_torchvision_ops()
    models = pytest.importorskip("torchvision").models
    for net, enum in [("alex", "AlexNet_Weights"), ("squeeze", "SqueezeNet1_1_Weights"), ("vgg", "VGG16_Weights")]:
        known = trunks.NETS[net]
        assert known.url == getattr(models, enum).IMAGENET1K_V1.url
        assert len(known.sha256) == 64 and f"-{known.sha256[:8]}.pth" in known.url


def test_cards_are_plain_data():
    for name in cpips.list_models():
        json.dumps(cpips.model_card(name))
        state = load_file(pretrained.weights_dir() / cpips.model_card(name)["file"])
        assert any(key.startswith("g_a.") for key in state)
