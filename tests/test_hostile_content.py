"""What files, tables, servers and names of strangers may hold, and what becomes of it: an error with a name, never a number,
and never an error of anything but the row that holds it."""

from __future__ import annotations

import csv
import errno
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

import cpips
from cpips import images, integrity, web
from cpips._utils.io import json_line
from cpips.batch import Result, read_table, score_pairs, score_table, urls
from cpips.batch.tables import write_table
from cpips.cli.app import app
from cpips.errors import ImageError, ModelError, WeightsError
from cpips.printable import no_formula, one_line, printable, printable_json
from helpers import state_of, write_csv

NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "AVIF": "avif", "BMP": "bmp", "PPM": "ppm", "TIFF": "tif", "GIF": "gif"}


def encoded(kind: str, pixels: np.ndarray = NOISE, **settings) -> bytes:
    stream = io.BytesIO()
    try:
        Image.fromarray(pixels).save(stream, kind, **settings)
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow writes no {kind} ({error})")
    return stream.getvalue()


def call(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


# ---- images that are not whole --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [200, 0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_tail_of_zeros_is_no_image(tmp_path, kind, kept):
    whole = encoded(kind)
    at = kept if isinstance(kept, int) else int(kept * len(whole))
    path = tmp_path / f"cut.{FORMATS[kind]}"
    path.write_bytes(whole[:at] + bytes(len(whole) - at))
    with pytest.raises(ImageError, match="cut.*(damaged|truncated|broke off|not an image)"):
        images.load(path)
    with pytest.raises(ImageError):
        images.decode(path.read_bytes())
    path.write_bytes(whole)
    assert images.load(path).shape == (3, 60, 80)


def test_the_command_gives_no_distance_for_it(tmp_path):
    whole = encoded("PNG")
    (tmp_path / "a.png").write_bytes(whole)
    (tmp_path / "b.png").write_bytes(whole[:200] + bytes(len(whole) - 200))
    result = call("compare", tmp_path / "a.png", tmp_path / "b.png")
    assert result.exit_code == 2 and "checksum of its PNG chunk IDAT does not hold" in result.stderr and result.stdout == ""


def test_every_chunk_of_a_png_is_checked():
    whole = bytearray(encoded("PNG", pnginfo=None, dpi=(72, 72)))
    place = whole.index(b"pHYs") + 5
    whole[place] ^= 1
    with pytest.raises(ImageError, match="checksum of its PNG chunk pHYs"):
        images.decode(bytes(whole))
    whole[place] ^= 1
    assert images.decode(bytes(whole) + b"something behind the end").shape == (3, 60, 80)
    with pytest.raises(ImageError, match="truncated"):
        images.decode(bytes(whole[:-12]))


def test_a_chunk_that_would_fill_the_memory_is_not_read():
    whole = encoded("PNG")
    head = whole[:33] + (1 << 30).to_bytes(4, "big") + b"iCCP"
    with pytest.raises(ImageError, match="iCCP.*1073741824 bytes"):
        images.decode(head)


def test_padding_behind_the_end_is_no_damage():
    """Cameras pad JPEG files to whole blocks; a RIFF file says how long it is."""
    for kind in ("JPEG", "WEBP", "GIF"):
        whole = encoded(kind)
        assert torch.equal(images.decode(whole + bytes(4096)), images.decode(whole))


@pytest.mark.parametrize("kind", FORMATS)
def test_dark_pictures_are_images(kind):
    """Black borders, and in formats with any compression black pictures."""
    framed = np.zeros_like(NOISE)
    framed[2:-2, 2:-2] = NOISE[2:-2, 2:-2]
    assert images.decode(encoded(kind, framed)).shape == (3, 60, 80)
    if kind == "BMP":  # an icon ends in its mask, which is zeros where it is opaque
        assert images.decode(encoded("ICO", NOISE[:48, :48], bitmap_format="bmp"), background="white").shape == (3, 48, 48)
    if kind not in ("BMP", "PPM", "TIFF"):
        assert images.decode(encoded(kind, np.zeros((300, 300, 3), np.uint8))).max() == 0


def test_the_check_of_tails_can_be_switched_off(monkeypatch, tmp_path):
    black = encoded("BMP", np.zeros_like(NOISE))
    with pytest.raises(ImageError, match="CPIPS_ALLOW_ZERO_TAIL=1"):
        images.decode(black)
    monkeypatch.setattr(integrity, "ALLOW_ZERO_TAIL", True)
    assert images.decode(black).max() == 0
    (tmp_path / "black.bmp").write_bytes(black)
    script = f"import cpips; print(cpips.load_image({str(tmp_path / 'black.bmp')!r}).max())"
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "CPIPS_ALLOW_ZERO_TAIL": "1"}, capture_output=True,
                          text=True)
    assert done.stdout == "tensor(0.)\n", done.stderr


# ---- rows of tables -------------------------------------------------------------------------------------------------

ROWS = ["reference://x", "zip://x.png::ref.png", "dir://x", "http://[::1", "http://[::1/", "simplecache::http://h/x.png", "s3://",
        "memory://a.png", "file://", "file://\0", "nul\0.png", "x" * 5000, "\x1b]0;t\x07.png", "=cmd|' /C calc'!A0", "//", "..",
        "https://h:99999999/x.png", "git://h/x", "\ud800.png".encode("utf-8", "surrogatepass").decode("utf-8", "replace"), "\u202egnp.exe",
        "generic://x", "blockcache::s3://b/x", "ftp://h/x", "data:image/png;base64,AA", "ssh://h/x", "local:///etc/passwd", "C://x"]


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> Path:
    for name in ("ref", "img"):
        Image.fromarray(NOISE[:20, :20] // (2 if name == "img" else 1)).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("schemes", [None, "http,https,s3,gs,memory"])
def test_whatever_a_row_says_only_that_row_has_an_error(pictures, monkeypatch, schemes):
    pytest.importorskip("fsspec")
    write_csv(pictures / "t.csv", [("ref.png", "img.png"), *(("ref.png", cell) for cell in ROWS), *((cell, "img.png") for cell in ROWS),
                                   ("ref.png", "ref.png")])
    args = ["score", "t.csv", "-o", "out.csv", "--metric", "mse", *(["--urls", schemes] if schemes else [])]
    result = call(*args)
    assert result.exit_code == 1, result.output
    with (pictures / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["distance"] and rows[-1]["distance"] == "0.0" and len(rows) == 2 + 2 * len(ROWS)
    assert all(row["error"] and not row["distance"] for row in rows[1:-1])
    assert "\x1b" not in result.output and "Traceback" not in result.output


def test_a_folder_with_a_name_that_is_no_text(tmp_path, pictures):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in (b"x\xff.png", b"y.png"):
            try:
                (Path(os.fsdecode(os.fsencode(tmp_path / folder) + b"/" + name))).write_bytes((pictures / "ref.png").read_bytes())
            except OSError:
                pytest.skip("names are text here")
    (tmp_path / "b" / os.fsdecode(b"x\xff.png")).write_bytes(b"no image")
    for suffix in ("csv", "jsonl", "parquet"):
        result = call("score", "a", "b", "-o", f"out.{suffix}", "--metric", "mse")
        assert result.exit_code == 1 and (tmp_path / f"out.{suffix}").exists(), result.output


def test_urls_of_rows_need_an_option(pictures):
    write_csv(pictures / "t.csv", [("ref.png", "https://example.org/a.png")])
    table = read_table(pictures / "t.csv")
    assert table.pairs == ["https://example.org/a.png is a URL, and rows may name files of this machine alone: allow them with "
                           "--urls https"]
    allowed = read_table(pictures / "t.csv", access=urls.Access(["https"], offline=False))
    assert allowed.pairs == [(pictures / "ref.png", "https://example.org/a.png")]
    with pytest.raises(urls.UrlError, match="choose from http, https"):
        urls.Access(["zip"])
    assert call("score", "t.csv", "-o", "o.csv", "--urls", "file").exit_code == 2
    assert call("score", "t.csv", "-o", "o.csv", "--private-hosts").exit_code == 2


def test_offline_keeps_tables_from_the_network(pictures, monkeypatch):
    monkeypatch.setenv("CPIPS_OFFLINE", "1")
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("the network was reached"))
    write_csv(pictures / "t.csv", [("ref.png", "https://example.org/a.png"), ("ref.png", "s3://bucket/a.png"), ("ref.png", "img.png")])
    result = call("score", "t.csv", "-o", "o.csv", "--metric", "mse", "--urls", "https,s3")
    assert result.exit_code == 1 and result.stderr.count("offline mode is on") == 2, result.output
    assert "offline mode is on" in call("score", "https://example.org/t.csv", "-o", "p.csv").stderr
    assert "offline" in list(score_pairs([("https://example.org/a.png", "img.png")], cpips.create_metric("mse")))[0].error


# ---- servers --------------------------------------------------------------------------------------------------------


class Server:
    """On this machine; answers as the path says."""

    def __init__(self, image: bytes):
        outer, self.seen = self, []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.seen.append(self.path)
                try:
                    getattr(outer, self.path.strip("/").split("/")[0].split(".")[0])(self)
                except (BrokenPipeError, ConnectionError):
                    pass

            def log_message(self, *args):
                pass

        self.image, self.quit = image, threading.Event()
        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def good(self, handler, length=None):
        handler.send_response(200)
        handler.send_header("Content-Length", str(length or len(self.image)))
        handler.end_headers()
        handler.wfile.write(self.image)

    def announced(self, handler):
        self.good(handler, 1 << 40)

    def endless(self, handler):
        handler.send_response(200)
        handler.end_headers()
        while not self.quit.is_set():
            handler.wfile.write(bytes(1 << 16))

    def slow(self, handler):
        handler.send_response(200)
        handler.end_headers()
        while not self.quit.wait(0.05):
            handler.wfile.write(b"x")

    def header(self, handler):
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
        while not self.quit.wait(0.05):
            handler.wfile.write(b"x")

    def redirect(self, handler):
        handler.send_response(302)
        handler.send_header("Location", self.url.replace("127.0.0.1", "localhost") + "good.png")
        handler.end_headers()

    def elsewhere(self, handler):
        handler.send_response(302)
        handler.send_header("Location", "file:///etc/passwd")
        handler.end_headers()

    def loop(self, handler):
        handler.send_response(302)
        handler.send_header("Location", self.url + "loop")
        handler.end_headers()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "CPIPS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    server = Server(encoded("PNG", NOISE[:20, :20]))
    yield server
    server.quit.set()
    server.httpd.shutdown()
    server.httpd.server_close()


def get(url: str, limit: int = 1 << 20, seconds: float = 20.0, private: bool = True) -> bytes:
    return urls.read(url, urls.Access(urls.SCHEMES, private, offline=False), limit=limit, seconds=seconds)


def test_what_a_server_sends_is_bounded(server):
    assert get(server.url + "good.png") == server.image
    with pytest.raises(OSError, match="has 1099511627776 bytes, and at most 1048576"):
        get(server.url + "announced")
    with pytest.raises(OSError, match="more than 1048576 bytes"):
        get(server.url + "endless")
    with pytest.raises(FileNotFoundError):
        Server.absent = lambda self, handler: handler.send_error(404)
        get(server.url + "absent")
    with pytest.raises(OSError, match="cannot be read"):
        get(server.url + "loop")


@pytest.mark.parametrize("kind", ["slow", "header"])
def test_a_byte_at_a_time_is_not_waited_for(server, kind):
    """Each byte comes in time, and all of them never would."""
    with pytest.raises(OSError, match="more than 0.5 seconds"):
        get(server.url + kind, seconds=0.5)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0", "127.1"])
def test_addresses_of_this_machine_are_not_reached(server, host):
    port = server.httpd.server_port
    with pytest.raises(OSError, match="no public address|cannot be read"):
        get(f"http://{host}:{port}/good.png", private=False)
    assert server.seen == []


@pytest.mark.parametrize("address", [
    "169.254.169.254", "10.0.0.1", "192.168.1.1", "172.16.0.1", "127.0.0.1", "0.0.0.0", "::1", "::", "fe80::1%eth0", "fc00::1",
    "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "224.0.0.1", "100.64.0.1", "not an address"])
def test_addresses_that_are_not_public(address):
    assert not web._is_public(address)
    assert web._is_public("93.184.216.34") and web._is_public("2606:2800:220:1:248:1893:25c8:1946")


def test_a_redirect_is_checked_like_the_first_address(server):
    only = urls.Access(["http"], origins=[urls.origin(server.url)], offline=False)  # a table there was asked for by its URL
    assert urls.read(server.url + "good.png", only) == server.image
    with pytest.raises(OSError, match="localhost is no public address"):
        urls.read(server.url + "redirect", only)
    with pytest.raises(OSError):
        get(server.url + "elsewhere")
    assert get(server.url + "redirect") == server.image


def test_a_table_behind_a_url_reaches_its_own_server_alone(server, pictures):
    Server.table = lambda self, handler: (handler.send_response(200), handler.end_headers(), handler.wfile.write(
        f"ref,img\ngood.png,{self.url}good.png\ngood.png,{self.url.replace('127.0.0.1', 'localhost')}good.png\ngood.png,s3://b/x\n".encode()))
    table = read_table(server.url + "table.csv")
    found = list(score_pairs(table.pairs, cpips.create_metric("mse"), access=table.access))
    assert found[0].distance == 0 and "--urls http" in found[1].error and "--urls s3" in found[2].error


def test_a_download_of_weights_is_bounded(server, monkeypatch):
    with pytest.raises(WeightsError, match="at most 1000 are fetched"):
        cpips.pretrained.fetch(server.url + "announced", "00", max_bytes=1000)
    with pytest.raises(WeightsError, match="more than 0.5 seconds"):
        cpips.pretrained.fetch(server.url + "slow", "00", max_seconds=0.5)


# ---- resumed runs ---------------------------------------------------------------------------------------------------


class Slow(cpips.base.FullReferenceMetric):
    """The mean difference; stops after some pairs, as a kill would."""

    name, signature, left = "slow", "slow|1", 10**9

    def _compare(self, x, y):
        type(self).left -= len(x)
        if type(self).left < 0:
            raise KeyboardInterrupt
        return (x - y).abs().mean((1, 2, 3))


def twenty(folder: Path, seed: int) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return write_csv(folder / "t.csv", [(f"{i}.png", f"{(i + 1) % 20}.png") for i in range(20)])


def killed(table, out: Path, after: int) -> None:
    Slow.left = after
    with pytest.raises(KeyboardInterrupt):
        score_table(table, Slow(), out, batch_size=1)
    Slow.left = 10**9


def fresh(table) -> list:
    return [result.distance for result in score_pairs(table.pairs, Slow(), batch_size=1)]


def test_images_replaced_between_a_kill_and_the_resumed_run(tmp_path):
    table, out = read_table(twenty(tmp_path / "a", 0)), tmp_path / "out.jsonl"
    killed(table, out, 14)
    twenty(tmp_path / "a", 1)
    summary = score_table(table, Slow(), out, batch_size=1)
    assert [json.loads(line)["distance"] for line in out.read_text().splitlines()] == fresh(table)
    assert summary.resumed == 0 and summary.stale >= 12


def test_one_image_replaced(tmp_path):
    table, out = read_table(twenty(tmp_path / "a", 0)), tmp_path / "out.jsonl"
    killed(table, out, 14)
    Image.fromarray(NOISE[:8, :8]).save(tmp_path / "a" / "9.png")
    summary = score_table(table, Slow(), out, batch_size=1)
    assert [json.loads(line)["distance"] for line in out.read_text().splitlines()] == fresh(table)
    assert summary.resumed == 8  # the pair 8 has the image as well


def test_the_same_table_in_another_folder(tmp_path, monkeypatch):
    for seed, name in enumerate("ab"):
        twenty(tmp_path / name, seed)
    out = tmp_path / "out.jsonl"
    monkeypatch.chdir(tmp_path / "a")
    killed(read_table("t.csv"), out, 14)
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(cpips.CpipsError, match="journal of another run .table differ"):
        score_table(read_table("t.csv"), Slow(), out, batch_size=1)


def test_an_image_that_was_absent_is_compared(tmp_path):
    table, out = read_table(twenty(tmp_path / "a", 0)), tmp_path / "out.jsonl"
    (tmp_path / "a" / "3.png").rename(tmp_path / "a" / "x")
    killed(table, out, 10)
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "3.png")
    assert score_table(table, Slow(), out, batch_size=1).failed == 0


def test_parts_of_replaced_images_are_missing(tmp_path):
    pytest.importorskip("pyarrow")
    from cpips.batch.parts import Parts

    table = read_table(twenty(tmp_path / "a", 0))
    header = {"signature": "s"}

    (tmp_path / "out").mkdir()

    def parts() -> Parts:
        return Parts(tmp_path / "out", table, header, 10)

    for part in (0, 1):
        parts().write(part, [Result(0.5)] * 10)
    assert [part for part, _ in parts().kept()] == [0, 1]
    Image.fromarray(NOISE[:9, :9]).save(tmp_path / "a" / "15.png")
    assert [part for part, _ in parts().kept()] == [0]


def test_a_data_sets_images_replaced(tmp_path):
    pytest.importorskip("pyarrow")
    from bapps_eval.layouts import open_datasets
    from bapps_eval.run import run

    def make(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")

    make(0)
    write_csv(tmp_path / "set.csv", [(f"{i}.png", f"{(i + 1) % 12}.png", i) for i in range(12)], ("ref", "image", "mos"))
    dataset = open_datasets(tmp_path / "set.csv")[0]
    Slow.left = 7
    with pytest.raises(KeyboardInterrupt):
        run(dataset, Slow(), tmp_path / "out", batch_size=1)
    Slow.left = 10**9
    make(1)
    resumed, _ = run(dataset, Slow(), tmp_path / "out", batch_size=1)
    whole, _ = run(dataset, Slow(), tmp_path / "other", batch_size=1)
    assert np.array_equal(resumed.values, whole.values)


# ---- saved statistics and distances ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def statistics(tmp_path_factory) -> Path:
    from cpips.realism import Space, Statistics

    found = Statistics(Space("colours", lambda x: torch.cat([x.mean((2, 3)), x.flatten(2).std(2)], 1)), keep=20)
    for _ in range(5):
        found.update(torch.rand(6, 3, 8, 8))
    path = tmp_path_factory.mktemp("statistics") / "s.safetensors"
    found.save(path)
    return path


def reforged(path: Path, out: Path, digest: bool, **changes) -> Path:
    """The file with other content; with the digest that this content has, too, or the old one."""
    from cpips.realism.statistics import _digest

    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    about = json.loads(metadata["cpips-statistics"])
    for name, change in changes.items():
        if name in tensors:
            tensors[name] = change(tensors[name]).contiguous()
        else:
            about[name] = change
    told = {"cpips-statistics": json.dumps(about), "digest": _digest(about, tensors) if digest else metadata["digest"]}
    save_file(tensors, out, told)
    return out


def nan_at(t: torch.Tensor) -> torch.Tensor:
    t = t.clone()
    t.view(-1)[0] = float("nan")
    return t


FORGED = {
    "no digest": dict(digest=False, samples=31),
    "a mean of another length": dict(mean=lambda t: t[:-1]),
    "a mean of floats": dict(mean=lambda t: t.float()),
    "NaN": dict(scatter=nan_at),
    "infinite": dict(mean=lambda t: t * float("inf")),
    "not symmetric": dict(scatter=lambda t: t + torch.ones_like(t).triu(1)),
    "negative": dict(scatter=lambda t: -t),
    "indefinite": dict(scatter=lambda t: t - 2 * torch.diag(t.diagonal().mean().expand(len(t)))),
    "zero": dict(scatter=lambda t: t * 0),
    "too small": dict(scatter=lambda t: t / 10),
    "other features": dict(features=lambda t: t.flip(0)),
    "fewer features": dict(features=lambda t: t[:-1]),
    "another order": dict(order=lambda t: t + 1),
    "counts": dict(samples=-1),
    "counts of another type": dict(samples=True),
    "few samples": dict(samples=3),
    "no images": dict(images=0),
    "skipped": dict(skipped=5),
    "a name": dict(name=7),
    "keep": dict(keep="many"),
    "unknown": dict(surprise=1),
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_statistics_are_refused(statistics, tmp_path, what):
    from cpips.realism import Statistics

    settings = dict(FORGED[what])
    path = reforged(statistics, tmp_path / "forged.safetensors", settings.pop("digest", True), **settings)
    with pytest.raises(ModelError, match="does not hold statistics of images, or is damaged"):
        Statistics.load(path)


def test_mutated_statistics_are_refused_or_true(statistics, tmp_path):
    from cpips.realism import Statistics

    whole, rng, path = statistics.read_bytes(), np.random.default_rng(0), tmp_path / "m.safetensors"
    true = Statistics.load(statistics)
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.2 else content)
        try:
            found = Statistics.load(path)
        except (ModelError, FileNotFoundError):
            continue
        assert torch.equal(found.scatter, true.scatter) and torch.equal(found.features, true.features), "a lie was believed"
        assert (found.samples, found.images, found.name) == (true.samples, true.images, true.name)


def test_statistics_are_read_back(statistics):
    from cpips.realism import Statistics, fid

    found = Statistics.load(statistics)
    assert found.samples == 30 and len(found.order) == 20 and fid(found, Statistics.load(statistics)).value == pytest.approx(0, abs=1e-9)


def metadata_of(**changes):
    from test_eval_scores import make_run

    run = make_run("mos", "m", [f"i{i}" for i in range(6)], ["g"] * 6, range(6), np.arange(6) / 10)
    about = {"format": 2, "dataset": run.dataset, "metric": run.metric, "run": run.run}
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if not key:
            about[part] = value
        elif value is None:
            del about[part][key]
        else:
            about[part][key] = value
    return about


def test_a_parquet_table_with_cells_that_are_no_text(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    cells = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 3], np.int32)), pa.py_buffer(b"a\xee\x01")])
    parquet.write_table(pa.table({"ref": cells, "img": ["b"]}), tmp_path / "t.parquet")
    with pytest.raises(cpips.CpipsError, match="t.parquet"):
        read_table(tmp_path / "t.parquet")


def distances_file(path: Path, about, digest=None, **columns) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    data = {"id": [f"i{i}" for i in range(6)], "group": ["g"] * 6, "reference": [f"i{i}" for i in range(6)],
            "opinion": [float(i) for i in range(6)], "distance": [i / 10 for i in range(6)]} | columns
    table = pa.table(data)
    if isinstance(about, dict):
        from bapps_eval.distances import _digest

        about = {**about, "digest": _digest(table, about)} if digest is None else {**about, "digest": digest}
    text = about if isinstance(about, str) else json.dumps(about)
    parquet.write_table(table.replace_schema_metadata({b"bapps_eval": text.encode()}), path)
    return path


FORGED_DISTANCES = {
    "a list": dict(about="[1]"), "a number": dict(about="3"), "null": dict(about="null"), "deep": dict(about="[" * 100_000),
    "no dataset": dict(about=dict(dataset=[])), "no metric": dict(about=dict(metric="x")), "no run": dict(about=dict(run=None)),
    "no direction": dict(about=dict(metric__lower_is_better=None)), "a direction of text": dict(about=dict(metric__lower_is_better="yes")),
    "no name": dict(about=dict(metric__name=None)), "no items": dict(about=dict(dataset__items=None)),
    "items of text": dict(about=dict(dataset__items="6")), "no task": dict(about=dict(dataset__task=None)),
    "a task that is a list": dict(about=dict(dataset__task=["mos"])), "missing is text": dict(about=dict(dataset__missing="none")),
    "notes of numbers": dict(about=dict(dataset__notes=[1])), "no resize": dict(about=dict(dataset__resize=None)),
    "seconds": dict(about=dict(run__seconds="soon")),
    "null ids": dict(id=[None, *"abcde"]), "double ids": dict(id=["a", "a", *"bcde"]), "numbers for ids": dict(id=list(range(6))),
    "another digest": dict(digest="0" * 64), "null distances": dict(distance=[None, *[0.1] * 5]), "infinite distances": dict(distance=[float("inf"), *[0.1] * 5]),
    "minus infinity": dict(distance=[float("-inf"), *[0.1] * 5]), "NaN distances": dict(distance=[float("nan"), *[0.1] * 5]),
    "distances of text": dict(distance=["x"] * 6), "NaN opinions": dict(opinion=[float("nan"), *[1.0] * 5]),
    "infinite opinions": dict(opinion=[float("inf"), *[1.0] * 5]), "null groups": dict(group=[None, *"ggggg"]),
}


@pytest.mark.parametrize("what", FORGED_DISTANCES)
def test_forged_distances_are_refused(tmp_path, what):
    from bapps_eval import distances

    settings = dict(FORGED_DISTANCES[what])
    about = settings.pop("about", {})
    path = distances_file(tmp_path / "m.parquet", metadata_of(**about) if isinstance(about, dict) else about, **settings)
    with pytest.raises(distances.DistancesError, match="m.parquet"):
        distances.read(path)


def test_distances_are_read_back(tmp_path):
    from bapps_eval import distances

    found = distances.read(distances_file(tmp_path / "m.parquet", metadata_of()))
    assert found.values[:, 0].tolist() == [i / 10 for i in range(6)]
    psnr = distances_file(tmp_path / "psnr.parquet", metadata_of(metric__lower_is_better=False), distance=[float("inf"), *[30.0] * 5])
    assert np.isinf(distances.read(psnr).values[0, 0])  # of equal images


def test_a_probes_result_that_is_none(tmp_path):
    from bapps_eval.probes import ProbeResult

    whole = {"probe": "order", "metric": "m", "signature": "s", "settings": {}, "result": {"findings": []}}
    for changed in ({"result": 3}, {"result": {"findings": 1}}, {"result": {"findings": [1]}}, {"settings": []}, {"metric": None},
                    {"result": {"findings": [{"kind": "blind", "value": "x", "limit": 1, "text": "t"}]}}):
        (tmp_path / "r.json").write_text(json.dumps({**whole, **changed}))
        with pytest.raises(ModelError, match="not the result of a probe"):
            ProbeResult.load(tmp_path / "r.json")
    (tmp_path / "r.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="not JSON"):
        ProbeResult.load(tmp_path / "r.json")


def test_a_cpz_file_is_not_read_beyond_what_its_header_says(tmp_path):
    from cpips import BitstreamError
    from cpips.codec import container

    data = container.pack(container.Bitstream(b"zzzz", b"yyyy", 16, 16, 0), "hyperprior-q4", "00" * 32)
    for name, size in (("long.cpz", 1 << 33), ("short.cpz", len(data) - 1)):
        with open(tmp_path / name, "wb") as stream:
            stream.write(data)
            stream.truncate(size)
        with pytest.raises(BitstreamError, match="header says"):
            container.read(tmp_path / name)
    forged = bytearray(data)
    forged[10 + 13 + 8 + 12 : 10 + 13 + 8 + 16] = (0xF0000000).to_bytes(4, "little")  # the length of y
    total = len(data) - 4 + 0xF0000000
    with open(tmp_path / "forged.cpz", "wb") as stream:
        stream.write(forged)
        stream.truncate(total)
    with pytest.raises(BitstreamError, match=f"{total} bytes for 16x16 px"):
        container.read(tmp_path / "forged.cpz")


# ---- what is printed ------------------------------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2028.png"


def test_printable():
    assert printable("plain ü 漢 –") == "plain ü 漢 –"
    assert printable("a\x1b[2J\nb") == "a\\x1b[2J\nb" and one_line("a\x1b\tb\nc\r\x85d\u2028e") == "a\\x1b b c  d e"
    assert printable("\x9b\x7f\u202e\udcff") == "\\x9b\\x7f\\u202e\\udcff"
    value = {"name": EVIL + "\U000e0001\udcff", "ok": "ü"}
    text = printable_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value and text.isprintable() and "ü" in text


@pytest.mark.parametrize("line", [["compare", "ref.png", EVIL], ["compare", EVIL, "ref.png"], ["compare", "ref.png", EVIL, "--json"],
                                  ["map", "ref.png", "img.png", "-o", EVIL], ["view", "ref.png", "img.png", "-o", EVIL, "--no-open"],
                                  ["models", EVIL], ["compare", "ref.png", "img.png", "--metric", EVIL], ["probe", EVIL], [EVIL],
                                  ["compare", "ref.png", "x\x1b[2J", "--debug"], ["compress", EVIL], ["score", EVIL, "-o", "o.csv"]])
def test_names_do_not_reach_the_terminal(pictures, line):
    result = call(*line)
    for c in "\x1b\x07\x9b\u202e\u2028":
        assert c not in result.output, (line, result.output)


def test_an_image_with_such_a_name(pictures):
    (pictures / EVIL).write_bytes((pictures / "img.png").read_bytes())
    for options in ([], ["--json"]):
        result = call("compare", "ref.png", EVIL, *options)
        assert result.exit_code == 0 and not set("\x1b\x07\x9b\u202e\u2028") & set(result.output), result.output
    assert json.loads(result.stdout)["results"][0]["image"] == EVIL


def test_a_terminal_gets_no_markup_and_no_control_characters(monkeypatch):
    rich = pytest.importorskip("rich.console")
    from cpips._utils import console as common

    stream = io.StringIO()
    monkeypatch.setattr(common, "console", lambda stderr=False: rich.Console(file=stream, force_terminal=True, width=80, no_color=True,
                                                                             highlight=False, color_system=None))
    evil = "[/red][bold]\x1b]0;owned\x07\x9b"
    common.print_table([evil, "b"], [(evil, "1")], notes=[evil], title=evil)
    common.say(evil), common.fail(evil)
    with common.counting(evil) as advance:
        advance(None, 1)
    assert "[/red][bold]\\x1b]0;" in stream.getvalue()
    assert "\x1b]0" not in stream.getvalue() and "\x07" not in stream.getvalue() and "\x9b" not in stream.getvalue()


@pytest.mark.parametrize("cell,written", [
    ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"), ("@SUM(1)", "'@SUM(1)"), ("+1+cmd|x", "'+1+cmd|x"), ("-2+3+cmd|x!A", "'-2+3+cmd|x!A"),
    ("\tx", "'\tx"), ("-0.5", "-0.5"), ("+3e4", "+3e4"), ("-1.png", "-1.png"), ("a=b", "a=b"), ("", ""), (None, None), (-3, -3)])
def test_no_cell_is_a_formula(cell, written):
    assert no_formula(cell) == written


def test_outputs_hold_no_formula_and_their_text(pictures):
    write_csv(pictures / "t.csv", [("ref.png", "img.png", "=1+1", "-0.5")], ("ref", "img", "=note", "x"))
    table = read_table(pictures / "t.csv")
    write_table(pictures / "o.csv", table, [Result(0.5)], "s")
    header, row = csv.reader((pictures / "o.csv").read_text().splitlines())
    assert header[2] == "'=note" and row[:4] == ["ref.png", "img.png", "'=1+1", "-0.5"]
    write_table(pictures / "o.jsonl", table, [Result(0.5)], "s")
    assert json.loads((pictures / "o.jsonl").read_text())["=note"] == "=1+1"
    assert json.loads(json_line({"a": "\udcff"})) == {"a": "\udcff"} and json_line({"a": "\udcff"}).encode()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a shell of Unix")
@pytest.mark.parametrize("command,redirection", [("compare absent.png ref.png", ">&- 2>&-"), ("examples -o .", "2>&-"),
                                                 ("examples -o .", "2>/dev/full"), ("examples -o .", "</dev/null 2>&1")])
def test_errors_without_a_place_to_tell_them(pictures, command, redirection):
    (pictures / "configs").mkdir()  # which examples does not replace
    done = subprocess.run(f"{sys.executable} -m cpips {command} {redirection}", shell=True, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_results_that_cannot_be_printed_are_an_error(pictures):
    done = subprocess.run(f"{sys.executable} -m cpips compare ref.png img.png -m mse >/dev/full", shell=True, capture_output=True, text=True)
    assert done.returncode == 2 and "No space left" in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
@pytest.mark.parametrize("redirection,said", [(">/dev/full", "stdout: No space left on device"), (">&-", "stdout: Bad file descriptor")])
@pytest.mark.parametrize("command", ["cpips models", "cpips models --json", "cpips --version", "cpips --help", "bapps_eval datasets"])
def test_a_stdout_that_takes_nothing_is_an_error(command, redirection, said):
    done = subprocess.run(f"{sys.executable} -m {command} {redirection}", shell=True, capture_output=True, text=True,
                          env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"})
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of Unix")
def test_no_file_gets_the_number_of_a_stream_that_was_closed(tmp_path):
    code = ("import os, sys; from cpips._utils import program\n"
            "with program._closed_streams(): print(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT) > 2, file=open(sys.argv[2], 'w'))")
    subprocess.run(f"{sys.executable} -c \"{code}\" {tmp_path}/a {tmp_path}/told >&- 2>&-", shell=True, check=True)
    assert (tmp_path / "told").read_text() == "True\n"


def test_a_full_disk_names_the_journal(tmp_path, monkeypatch):
    """Closing a buffered file tries once more to write what could not be written, and its error names no file."""
    from cpips._utils import journal

    class Full(io.BytesIO):
        def flush(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            super().close()
            self.flush()

        def fileno(self):
            raise OSError

    monkeypatch.setattr(journal, "open_to_append", lambda path: Full())
    monkeypatch.setattr(journal, "take_lock", lambda stream: True)
    with pytest.raises(OSError, match="No space left on device: .*scores.csv.journal.jsonl"):
        journal.Journal(tmp_path / "scores.csv.journal.jsonl", {"rows": 1}, dict)


# ---- settings and tensors -------------------------------------------------------------------------------------------


def test_a_metric_that_was_made_in_inference_mode_has_gradients(pair):
    from cpips.losses import PerceptualLoss

    made = {}
    with torch.inference_mode():
        made["cpips"] = cpips.CPIPS("random", scales=2)
        for name in ("ssim", "ms-ssim", "haarpsi"):
            made[name] = cpips.create_metric(name)
        made["lpips"] = cpips.create_metric("lpips-alex", trunk="random", heads="ones")
        made["loss"] = PerceptualLoss("random")
    for name, metric in made.items():
        x = torch.rand(1, 3, 200, 180, requires_grad=True)
        metric(x, torch.rand(1, 3, 200, 180)).sum().backward()
        assert x.grad.isfinite().all() and not any(buffer.is_inference() for buffer in metric.buffers()), name


def test_other_default_devices(pair):
    expected = cpips.CPIPS("random", scales=2)(*pair)
    torch.set_default_device("meta")
    try:
        metric = cpips.CPIPS("random", scales=2)
        distances, maps = metric(*pair), metric.map(*pair)
    finally:
        torch.set_default_device(None)
    assert metric.device.type == "cpu" and torch.equal(distances, expected)
    assert torch.allclose(maps.mean((1, 2, 3)), expected)


@pytest.mark.parametrize("name", ["quantize", "root", "persistent", "checkpoint"])
@pytest.mark.parametrize("value", ["no", 1, None])
def test_switches_are_true_or_false(name, value):
    with pytest.raises(ModelError, match=f"{name} is {value!r}: expected True or False"):
        cpips.CPIPS("random", **{name: value})


@pytest.mark.parametrize("scales", [100, 11, True, 0, 2.0])
def test_scales_that_cannot_be(scales):
    with pytest.raises(ModelError, match="expected an integer from 1 to 10"):
        cpips.CPIPS("random", scales=scales)


@pytest.mark.parametrize("weight", [3e38, 1e-40])
def test_masks_that_overflow_or_vanish(pair, weight):
    metric = cpips.CPIPS("random")
    with pytest.raises(ImageError, match="divide the mask by its largest weight"):
        metric(*pair, mask=torch.full((70, 45), weight))
    one = metric(*pair, mask=torch.ones(70, 45))
    assert torch.allclose(metric(*pair, mask=torch.full((70, 45), 1e15)), one)


def test_weights_that_overflow(tmp_path):
    channels = cpips.CPIPS("random").encoder.channels["y"]
    with pytest.raises(ModelError, match="distances overflow"):
        cpips.CPIPS("random", weights={"y": torch.full((channels,), 3e38)})
    state = state_of() | {"head.latent.y": torch.full((1, 6), 3e38)}
    save_file(state, tmp_path / "head.safetensors")
    with pytest.raises(cpips.CpipsError, match="overflow"):
        cpips.CPIPS(tmp_path / "head.safetensors")


def test_encoders_that_see_nothing():
    state = state_of()
    for key in ("g_a.0.weight", "g_a.6.weight"):
        with pytest.raises(WeightsError, match="same latent"):
            cpips.CPIPS({**state, key: torch.zeros_like(state[key])})
    with pytest.raises(WeightsError, match="overflow"):
        cpips.CPIPS({**state, "g_a.6.weight": torch.full_like(state["g_a.6.weight"], 3e38)})
    assert cpips.CPIPS(state).name == "custom"
