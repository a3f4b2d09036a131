"""The JavaScript module and the page that compares dropped images, in Chromium, against Python."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import re
import shutil
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import visit
from PIL import Image
from safetensors.torch import load as load_tensors
from test_cli import call, error_of, gallery  # noqa: F401  (fixtures)
from test_view import content, media

import cpips
from cpips import CPIPS, ModelError, browser
from cpips.encoders import ALIGNED, HYPERPRIOR, AnalysisTransform
from cpips.viz import Picture, compare_page, write_compare_page, write_page

# width and height: single pixels, odd sides, cells that reach out, whole cells
SIZES = [(1, 1), (7, 1), (3, 5), (16, 16), (65, 33), (45, 70), (200, 129), (256, 192)]


def pair(width: int, height: int, seed: int = 0) -> tuple[Image.Image, Image.Image]:
    rng = np.random.default_rng(seed + width * height)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8))
    first = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    second = np.clip(first + rng.normal(0, 12, first.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(first), Image.fromarray(second)


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


@pytest.fixture(scope="module")
def metric() -> CPIPS:
    return CPIPS()


# ---- what is shipped --------------------------------------------------------------------------------------------------


def test_the_shipped_weights_are_those_of_the_default_model(metric):
    """After a change of the default model: `python -m cpips.browser`."""
    assert (browser.FOLDER / "weights.js").read_text(encoding="utf-8") == browser.weights_module(metric)
    found = load_tensors(browser.weights(metric))
    assert "g_a.4.weight" not in found and found["g_a.0.weight"].dtype == torch.float16
    torch.testing.assert_close(found["g_a.1.gamma"], metric.encoder.g_a[1].gamma[:, :, 0, 0], rtol=0, atol=0)
    assert metric.digest in browser.weights(metric).decode("latin-1")


def test_the_kernel_is_compiled_from_its_source():
    """After a change of kernel.c: `python -m cpips.browser --kernel`, with clang and wasm-ld."""
    digest = hashlib.sha256((browser.FOLDER / "kernel.c").read_bytes()).hexdigest()
    text = (browser.FOLDER / "kernel.js").read_text(encoding="utf-8")
    assert digest in text and base64.b64decode(re.search(r'"([^"]+)"', text)[1]).startswith(b"\0asm")


def test_the_package_names_what_the_module_has():
    package = json.loads((browser.FOLDER / "package.json").read_text(encoding="utf-8"))
    assert package["name"] == "cpips" and package["version"] == cpips.__version__ and package["type"] == "module"
    assert all((browser.FOLDER / name).is_file() for name in package["files"]) and "dependencies" not in package
    exported = {kind: set(re.findall(r"^export (?:async )?(?:class|function) (\w+)", (browser.FOLDER / f"index.{kind}").read_text("utf-8"), flags=re.M))
                for kind in ("js", "d.ts")}
    assert exported["js"] == exported["d.ts"] == {"CPIPS", "ImageError", "WeightsError", "words", "visibility", "readImage"}
    assert sum((browser.FOLDER / name).stat().st_size for name in ("index.js", "kernel.js", "weights.js")) < 250_000


@pytest.mark.parametrize("model", ["random", "psnr", "rounded", "details"])
def test_other_metrics_are_refused(model):
    made = {"random": lambda: CPIPS("random"), "details": lambda: CPIPS("cpips-base"), "psnr": lambda: cpips.create_metric("psnr"), "rounded": lambda: CPIPS(root=True, form="contrast")}
    with pytest.raises(ModelError, match="cannot be used in a browser"):
        browser.weights(made[model]())


# ---- the module -------------------------------------------------------------------------------------------------------


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def module(chromium, tmp_path_factory):
    """Evaluates JavaScript in a page that has imported the module from a server of static files."""
    folder = tmp_path_factory.mktemp("module")
    shutil.copytree(browser.FOLDER, folder / "npm")
    (folder / "index.html").write_text(
        "<!DOCTYPE html><link rel=icon href='data:,'><script type='module'>import * as cpips from './npm/index.js'; "
        "const metric = await cpips.CPIPS.load(); window.cpips = cpips; window.metric = metric;"
        "window.blob = (text, type = 'image/png', name = 'a.png') => new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name, { type });"
        "document.body.dataset.ready = '';</script><body></body>")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/index.html"

    def run(script: str, *arguments):
        from selenium.webdriver.support.wait import WebDriverWait

        if chromium.current_url != address:
            chromium.get(address)
            chromium.set_script_timeout(120)
            WebDriverWait(chromium, 60).until(lambda b: b.execute_script("return 'ready' in (document.body ?? document.head).dataset"))
        given = [base64.b64encode(each).decode() if isinstance(each, bytes) else each for each in arguments]
        found = chromium.execute_async_script(
            f"const done = arguments[arguments.length - 1]; (async (...given) => {{ {script} }})(...[...arguments].slice(0, -1)).then(done, "
            "(error) => done({ error: `${error.name}: ${error.message}` }))", *given)
        return found

    yield run
    server.shutdown()
    thread.join()
    server.server_close()


COMPARE = ("const { map, ...found } = await (given[2] ? await cpips.CPIPS.load({ backend: given[2] }) : metric).compare(blob(given[0]), blob(given[1]));"
           "return { ...found, map: [...map.data], width: map.width, height: map.height };")


def check(found: dict, metric: CPIPS, x: Image.Image, y: Image.Image) -> None:
    """The module's numbers are those of Python."""
    distance = metric(x, y)
    quality = metric.quality(x, y).item()
    assert found["distance"] == pytest.approx(distance.item(), rel=1e-5, abs=1e-6)
    assert found["quality"] == pytest.approx(quality, abs=1e-5) and found["words"] == cpips.opinion.words(quality)
    assert found["visibility"] == pytest.approx(metric.visibility(x, y).item(), abs=1e-5)
    values = metric.map(x, y)[0, 0]
    assert (found["height"], found["width"]) == tuple(values.shape)
    np.testing.assert_allclose(np.reshape(found["map"], values.shape), values, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
def test_the_numbers_are_those_of_python(module, metric, size):
    x, y = pair(*size)
    check(module(COMPARE, encoded(x), encoded(y)), metric, x, y)
    assert module("return metric.distance(blob(given[0]), blob(given[0]))", encoded(x)) == 0


@pytest.mark.slow
def test_without_webassembly_the_numbers_are_the_same(module, metric):
    x, y = pair(45, 33)
    check(module(COMPARE, encoded(x), encoded(y), "plain"), metric, x, y)
    check(module(COMPARE, encoded(x), encoded(y), "wasm"), metric, x, y)


@pytest.mark.slow
def test_bands_of_rows_leave_no_seam(module, metric):
    """A wide image is encoded in bands; the last one is cut."""
    x, y = pair(17000, 36)
    found = module("const { distance, map } = await metric.compare(blob(given[0]), blob(given[1]));"
                   "return [distance, [...map.data.filter((_, i) => i % 97 === 0)]]", encoded(x), encoded(y))
    assert found[0] == pytest.approx(metric(x, y).item(), rel=1e-5)
    np.testing.assert_allclose(found[1], metric.map(x, y).flatten()[::97], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.shared_data
def test_real_photographs(module, metric, shared_data):
    paths = sorted((shared_data / "images" / "kodak").glob("*.png"))[:3]
    for path in paths:
        x = Image.open(path).convert("RGB").crop((100, 60, 500, 360))
        y = Image.open(io.BytesIO(encoded(x, "JPEG", quality=20))).convert("RGB")
        check(module(COMPARE, encoded(x), encoded(y)), metric, x, y)


@pytest.mark.slow
def test_other_models_of_the_form(module):
    for architecture in (ALIGNED, HYPERPRIOR):
        other = CPIPS(AnalysisTransform.random(N=12, M=9, architecture=architecture), form="contrast", scales=2)
        x, y = pair(50, 37)
        found = module("const made = await cpips.CPIPS.load({ weights: new Uint8Array(await blob(given[2]).arrayBuffer()) });"
                       "return [await made.distance(blob(given[0]), blob(given[1])), made.signature, made.hasQuality]",
                       encoded(x), encoded(y), browser.weights(other))
        assert found == [pytest.approx(other(x, y).item(), rel=1e-5), f"{other.signature}|JavaScript", False]


@pytest.mark.slow
def test_embeddings_are_plain_data_and_every_kind_of_input_is_the_same(module, metric):
    x, y = pair(40, 30)
    expected = metric(x, y).item()
    found = module("""
        const [a, b] = [blob(given[0]), blob(given[1])];
        const [x, y] = [structuredClone(await metric.embed(a)), await metric.embed(b)];
        const image = Object.assign(new Image(), { src: URL.createObjectURL(b) });
        await image.decode();
        const bitmap = await createImageBitmap(b);
        const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
        const pen = canvas.getContext("2d");
        pen.drawImage(bitmap, 0, 0);
        const pixels = pen.getImageData(0, 0, bitmap.width, bitmap.height);
        const floats = { ...await cpips.readImage(b), channels: undefined };
        floats.data = Float32Array.from(floats.data, (value) => value / 255);
        const kinds = [y, b, image, bitmap, canvas, pixels, floats];
        return Promise.all(kinds.map((each) => metric.distance(x, each)));
    """, encoded(x), encoded(y))
    assert found == [pytest.approx(expected, rel=1e-5)] * 7


@pytest.mark.slow
def test_orientation_and_transparency_are_as_in_python(module, metric):
    x, y = pair(48, 32)
    turned = Image.Exif()
    turned[0x0112] = 6
    photo = encoded(x, "JPEG", quality=95, exif=turned)
    size = module("const { width, height } = await cpips.readImage(blob(given[0], 'image/jpeg')); return [width, height]", photo)
    assert size == [32, 48]
    upright = cpips.load_image(_saved(photo))
    pixels = module("const { data, channels } = await cpips.readImage(blob(given[0], 'image/jpeg'));"
                    "return [...data].filter((_, i) => channels === 3 || i % 4 < 3)", photo)
    assert np.abs(np.reshape(pixels, (48, 32, 3)) - 255 * upright[0].permute(1, 2, 0).numpy()).max() <= 3  # another decoder
    rgba = np.dstack([np.asarray(y), np.random.default_rng(0).integers(0, 256, (32, 48), dtype=np.uint8)])
    composited = cpips.images.composite(torch.from_numpy(rgba).permute(2, 0, 1), "#ff8000")[None]
    expected = metric(torch.from_numpy(np.asarray(x).copy()).permute(2, 0, 1)[None], composited).item()
    found = module("const over = await cpips.CPIPS.load({ background: '#ff8000' });"
                   "const pixels = { data: Uint8Array.from(given[2]), width: 48, height: 32 };"
                   "return [await over.distance(blob(given[0]), pixels), await over.distance(blob(given[0]), blob(given[1]))]",
                   encoded(x), encoded(Image.fromarray(rgba)), rgba.flatten().tolist())
    assert found[0] == pytest.approx(expected, rel=1e-5)
    assert found[1] == pytest.approx(expected, rel=0.02)  # a canvas rounds to 8 bits


def _saved(content: bytes) -> str:
    Path("photo.jpg").write_bytes(content)
    return "photo.jpg"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


BAD = {
    "no image": ("blob(btoa('no image'))", "is not an image that this browser can read (8 bytes)"),
    "cut short": ("blob(given[0].slice(0, 4 * Math.floor(given[0].length / 8)))", "damaged or truncated"),
    "other size": ("{ data: new Uint8Array(3), width: 1, height: 1 }",
                   "the images have different sizes, 40x30 and 1x1 px (width x height): crop or resize"),
    "alpha": ("{ data: new Uint8Array(4), width: 1, height: 1 }", "has an alpha channel, and a distance needs opaque pixels"),
    "gray": ("{ data: new Uint8Array(4), width: 2, height: 2 }", "gray images are compared as RGB"),
    "range": ("{ data: Float32Array.of(0, 255, 3), width: 1, height: 1 }", "it looks like 0..255"),
    "signed": ("{ data: Float32Array.of(0, -1, 1), width: 1, height: 1 }", "it looks like [-1,1]"),
    "NaN": ("{ data: Float32Array.of(0, NaN, 1), width: 1, height: 1 }", "holds NaN"),
    "type": ("{ data: new Int16Array(3), width: 1, height: 1 }", "pixels of type Int16Array"),
    "empty": ("{ data: new Uint8Array(0), width: 0, height: 1 }", "no pixels"),
    "too large": ("{ data: new Uint8Array(3), width: 10000, height: 10000 }", "too large (10000x10000 px, more than 89478485 pixels)"),
    "null": ("null", "is a null: expected a Blob"),
    "text": ("'a.png'", "is a String: expected a Blob"),
    "other metric": ("{ kind: 'cpips embedding', key: 'other' }", "made by another metric"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_other_input_is_refused(module, name):
    given, said = BAD[name]
    found = module(f"await metric.distance(blob(given[0]), {given})", encoded(pair(40, 30)[0]))
    assert found["error"].startswith("ImageError: ") and said in found["error"], found


@pytest.mark.slow
def test_animations_and_other_weights_are_refused(module, metric):
    frames = [each.convert("P") for each in pair(20, 20)]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert "has 2 frames" in module("await metric.embed(blob(given[0], 'image/gif'))", moving)["error"]
    load = "await cpips.CPIPS.load({ weights: new Uint8Array(await blob(given[0]).arrayBuffer()) })"
    shipped = (cpips.pretrained.weights_dir() / "cpips-lite.safetensors").read_bytes()
    assert "not exported for the browser" in module(load, shipped)["error"]
    assert "damaged" in module(load, b"nothing of the kind")["error"]
    strange = browser.weights(metric).replace(b"head.contrast.gdn1.power", b"head.contrast.gdn1.pover")
    assert re.search("WeightsError: .*(missing|does not know)", module(load, strange)["error"])


def test_words_and_visibility_are_those_of_python(module):
    grades = [1.0, 1.4999, 1.5, 2.49, 3.1, 4.4999, 4.5, 4.62, 5.0]
    found = module("return given[0].map((q) => [cpips.words(q), cpips.visibility(q)])", grades)
    assert [words for words, _ in found] == [cpips.opinion.words(grade) for grade in grades]
    expected = cpips.opinion.visibility(torch.tensor(grades, dtype=torch.float64))
    np.testing.assert_allclose([share for _, share in found], expected, atol=1e-6)


# ---- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "page.html"
    assert write_compare_page(out) == out.stat().st_size < 1_000_000
    return out


@pytest.fixture
def opened(chromium, page):
    """The page, open from its file."""
    from selenium.webdriver.support.wait import WebDriverWait

    media(chromium)
    visit(chromium, page)
    WebDriverWait(chromium, 60).until(lambda b: b.execute_script("return 'ready' in document.body.dataset"))
    chromium.get_log("browser")
    yield chromium
    chromium.switch_to.default_content()
    loaded = chromium.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith(("data:", "blob:")) for name in loaded), loaded
    assert chromium.get_log("browser") == []


def choose(driver, slot: str, *paths: Path) -> None:
    driver.find_element("css selector", f"#{slot} input").send_keys("\n".join(map(str, paths)))


def result(driver) -> dict:
    """What the page has found, or its error."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(driver, 90).until(lambda b: b.execute_script(
        "return 'shown' in document.body.dataset || !document.getElementById('error').hidden"))
    return driver.execute_script("return { ...document.body.dataset, error: document.getElementById('error').textContent,"
                                 "said: document.getElementById('status').textContent }")


def test_the_page_loads_and_sends_nothing(page):
    text = page.read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data: blob:;") and "unsafe-inline" not in policy and "connect-src" not in policy
    assert not re.search(r"https?://|@import|url\((?!data:)|srcset| on\w+=\"", text) and list(page.parent.iterdir()) == [page]
    assert text == compare_page() and text.count("</script") == 3


@pytest.mark.slow
def test_dropped_images_are_measured_and_shown_as_by_cpips_view(opened, metric, tmp_path):
    x, y = pair(240, 176)
    name = "<b>&'x'.png"
    x.save(tmp_path / "ref.png"), y.save(tmp_path / name), x.save(tmp_path / "same.png")
    choose(opened, "reference", tmp_path / "ref.png")
    choose(opened, "images", tmp_path / name, tmp_path / "same.png")
    found = result(opened)
    assert float(found["distance"]) == pytest.approx(metric(x, y).item(), rel=1e-4) and found["error"] == ""
    assert found["words"] == cpips.opinion.words(metric.quality(x, y).item())
    assert f"of 100 people see a difference in {name}, 0 in same.png." in found["said"]
    assert re.search(r"240 × 176 px, computed in \d+\.\d\d s", found["said"])

    saved = tmp_path / "view.html"
    saved.write_text(opened.execute_script("return page"), encoding="utf-8")
    by_python = tmp_path / "python.html"
    pixels = [torch.from_numpy(np.asarray(each).copy()).permute(2, 0, 1) / 255 for each in (x, y)]
    write_page(Picture("ref.png", pixels[0]), [Picture(name, pixels[1]), Picture("same.png", pixels[0])], by_python, [metric])
    mine, theirs = content(saved), content(by_python)
    assert mine.keys() == theirs.keys() and {key: mine[key] for key in ("width", "height", "cell", "palette", "version")} == {
        key: theirs[key] for key in ("width", "height", "cell", "palette", "version")}
    assert mine["metrics"][0]["vmax"] == pytest.approx(theirs["metrics"][0]["vmax"], rel=1e-4)
    for one, other in zip(mine["images"], theirs["images"]):
        assert one.keys() == other.keys() and (one["name"], one["grade"], one["values"]) == (other["name"], other["grade"], other["values"])
        heat, expected = one["maps"][0], other["maps"][0]
        assert heat["columns"] == expected["columns"]
        np.testing.assert_allclose(heat["cells"], expected["cells"], rtol=6e-3, atol=1e-5)  # of three digits
        assert [(peak["x"], peak["y"]) for peak in heat["peaks"]] == [(peak["x"], peak["y"]) for peak in expected["peaks"]]
    for one, image in zip([mine["reference"], *mine["images"]], (x, y, x)):
        shown = Image.open(io.BytesIO(base64.b64decode(one["uri"].split(",")[1]))).convert("RGB")
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(image))

    opened.switch_to.frame(opened.find_element("tag name", "iframe"))
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(opened, 60).until(lambda b: b.execute_script("return 'ready' in document.body.dataset"))
    assert opened.find_element("id", "image-name").text == name and "imperceptible" not in opened.find_element("id", "headline").text
    opened.find_element("css selector", "#heat").click()
    assert opened.execute_script("return view.heat")


@pytest.mark.slow
def test_images_that_cannot_be_compared_are_refused_on_the_page(opened, tmp_path):
    x, _ = pair(40, 30)
    x.save(tmp_path / "ref.png"), x.crop((0, 0, 20, 30)).save(tmp_path / "small.png"), x.putalpha(100)
    x.save(tmp_path / "alpha.png")
    (tmp_path / "text.png").write_text("no image")
    choose(opened, "reference", tmp_path / "ref.png")
    for name, said in (("small.png", "different sizes, 40x30 and 20x30 px"), ("text.png", "text.png is not an image"), ("alpha.png", "alpha channel")):
        choose(opened, "images", tmp_path / name)
        assert said in result(opened)["error"]
    opened.find_element("css selector", "#background option[value='white']").click()
    found = result(opened)
    assert found["error"] == "" and float(found["distance"]) > 0
    opened.find_element("id", "clear").click()
    assert opened.execute_script("return [document.getElementById('result').hidden, document.getElementById('error').hidden]") == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("width,scheme", [(1200, "light"), (420, "dark")])
def test_the_page_fits_its_window_in_both_color_schemes(opened, tmp_path, width, scheme):
    media(opened, scheme)
    opened.set_window_size(width, 900)
    fits = "return document.documentElement.scrollWidth <= innerWidth"
    assert opened.execute_script(fits)
    for name, image in zip("ab", pair(60, 40)):
        image.save(tmp_path / f"{name}.png")
    choose(opened, "reference", tmp_path / "a.png")
    choose(opened, "images", tmp_path / "b.png")
    assert "shown" in result(opened) and opened.execute_script(fits)


# ---- the command ------------------------------------------------------------------------------------------------------


def test_view_without_images_writes_the_page(call, tmp_path):  # noqa: F811
    out = tmp_path / "compare.html"
    found = json.loads(call("view", "-o", out, "--json").stdout)
    assert found["bytes"] == out.stat().st_size and found["metrics"][0]["signature"] == CPIPS().signature
    assert out.read_text("utf-8") == compare_page()
    assert "exists" in error_of(call("view", "-o", out, code=2))


@pytest.mark.parametrize("options,said", [
    (["-m", "psnr"], "cannot measure in a browser"), (["-m", "random"], "cannot be used in a browser"), (["-m", "psnr", "-m", "mse"], "one metric"),
    (["--background", "white"], "belongs to images"), (["--no-icc"], "belongs to images")])
def test_view_without_images_refuses_what_needs_them(call, tmp_path, options, said):  # noqa: F811
    assert said in error_of(call("view", "-o", tmp_path / "a.html", *options, code=2))
    assert not (tmp_path / "a.html").exists()
