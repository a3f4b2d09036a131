"""``cpips view``: the page holds what the metrics saw, works under mouse, keys and fingers, and asks for nothing."""

from __future__ import annotations

import base64
import io
import json
import re
import webbrowser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import luminance, visit
from PIL import Image
from test_cli import call, error_of, gallery  # noqa: F401  (fixtures)

import cpips
from cpips.cli import view as command
from cpips.errors import ImageError
from cpips.viz import Peak, Picture, largest, write_page

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202e&\".png"
HEIGHT, WIDTH = 240, 320
STRONG, WEAK = (208, 48), (56, 168)  # x and y amid the two patches that differ
METRICS = ("cpips-lite", "random", "psnr")


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """A reference, and an image that differs in a strong and in a weak patch."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(40, 216, (12, 16, 3), dtype=np.uint8))
    reference = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    image = reference.astype(float)
    for (x, y), sigma in ((STRONG, 60), (WEAK, 25)):
        image[y - 24 : y + 24, x - 24 : x + 24] += rng.normal(0, sigma, (48, 48, 3))
    return reference, np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def page(arrays, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("view") / "page.html"
    reference, image = map(as_tensor, arrays)
    write_page(Picture("ref & <i>.png", reference), [Picture(EVIL, image), Picture("equal.png", reference)], out,
               [cpips.create_metric(name) for name in METRICS])
    return out


def content(page: Path) -> dict:
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"))
    return json.loads(text)


def decoded(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/webp;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


# ---- the largest differences ----------------------------------------------------------------------------------------


def test_largest_finds_planted_cells_and_nothing_beside_them():
    values = np.zeros((200, 330), np.float32)
    for (row, column), value in (((2, 3), 1.0), ((3, 4), 0.9), ((10, 15), 0.5), ((12, 20), 0.3), ((0, 18), 0.05)):
        values[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = value
    found = largest(values)
    assert found == [Peak(56, 40, 1.0), Peak(248, 168, 0.5), Peak(325, 196, pytest.approx(0.3))]  # cut cells: their middle
    assert largest(values, count=1) == found[:1]
    assert largest(np.zeros((40, 40))) == []
    assert largest(np.full((1, 1), 0.2)) == [Peak(0, 0, pytest.approx(0.2))]


# ---- what the page holds --------------------------------------------------------------------------------------------


def test_the_page_holds_the_pixels_the_numbers_and_the_places(page, arrays):
    data = content(page)
    assert (data["width"], data["height"]) == (WIDTH, HEIGHT)
    for uri, array in zip((data["reference"]["uri"], *(each["uri"] for each in data["images"])), (*arrays, arrays[0])):
        np.testing.assert_array_equal(decoded(uri), array)
    x, y = (as_tensor(array)[None] for array in arrays)
    for i, name in enumerate(METRICS):
        metric = cpips.create_metric(name)
        assert data["metrics"][i]["signature"] == metric.signature and data["metrics"][i]["lower"] == (name != "psnr")
        assert data["images"][0]["order"][i] == pytest.approx(metric(x, y).item(), rel=1e-4)
    assert data["images"][1]["values"] == ["0.000", "0.000", "∞"] and data["images"][1]["order"][2] == "Infinity"
    heat = data["images"][0]["maps"][0]
    values = cpips.create_metric("cpips-lite").map(x, y)[0, 0].numpy()
    assert heat["columns"] == 20 and len(heat["cells"]) == 20 * 15 and data["images"][0]["maps"][2] is None
    assert heat["cells"][3 * 20 + 12] == pytest.approx(values[48:64, 192:208].mean(), rel=5e-3)
    first = heat["peaks"][0]
    assert max(abs(first["x"] - STRONG[0]), abs(first["y"] - STRONG[1])) <= 24
    assert any(max(abs(p["x"] - WEAK[0]), abs(p["y"] - WEAK[1])) <= 24 for p in heat["peaks"])
    assert data["images"][1]["maps"][0]["peaks"] == []


def test_names_are_text_and_nothing_is_loaded(page):
    text = page.read_text("utf-8")
    assert len(re.findall(r"</script", text)) == 2 and "alert(1)</script>" not in text and "<img" not in text
    assert "<title>ref &amp; &lt;i&gt;.png" in text and "\u202e" not in text and "?&" in content(page)["images"][0]["name"]
    assert not re.search(r"https?://|@import|url\(|srcset| on\w+=\"", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy
    assert list(page.parent.iterdir()) == [page]
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_pictures_of_different_sizes_are_refused(tmp_path):
    metric = cpips.create_metric("psnr")
    with pytest.raises(ImageError, match=r"b.png and a.png: .*different sizes, 20x10 and 10x20 px .*crop or resize"):
        write_page(Picture("a.png", torch.zeros(3, 10, 20)), [Picture("b.png", torch.zeros(3, 20, 10))],
                   tmp_path / "x.html", [metric])
    with pytest.raises(ImageError, match="nothing to show"):
        write_page(Picture("a.png", torch.zeros(3, 10, 20)), [], tmp_path / "x.html", [metric])
    assert not list(tmp_path.iterdir())


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def browsed(monkeypatch) -> list[str]:
    """The addresses that were opened."""
    found: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: found.append(address) or len(found) == 1)
    return found


def test_view_writes_a_page_and_opens_it_on_request(call, browsed, tmp_path):  # noqa: F811
    out = tmp_path / "my page.html"
    done = call("view", "ref.png", "near.png", "far.png", "-o", out)
    assert done.stdout == f"{out}\n" and browsed == []  # no terminal
    data = content(out)
    assert data["reference"]["name"] == "ref.png" and [each["name"] for each in data["images"]] == ["near.png", "far.png"]
    assert [metric["name"] for metric in data["metrics"]] == [cpips.CPIPS().name, "psnr"]
    found = json.loads(call("view", "ref.png", "near.png", "-o", out, "-m", "mse", "-m", "random", "--json", "--open", "--force").stdout)
    assert browsed == [out.as_uri()] and "%20" in browsed[0]
    assert found["bytes"] == out.stat().st_size and [metric["metric"] for metric in found["metrics"]] == ["mse", "random"]
    [row] = found["results"]
    assert row["distances"]["mse"] == pytest.approx(cpips.create_metric("mse")("ref.png", "near.png").item(), rel=1e-4)
    assert set(row["largest"]) == {"mse", "random"} and {"x", "y", "value"} == set(row["largest"]["random"][0])
    assert "no browser was found" in call("view", "ref.png", "near.png", "-o", out, "-m", "mse", "--open", "--force").stderr


def test_view_refuses_what_cannot_be_seen(call, gallery, browsed, tmp_path):  # noqa: F811
    before = (gallery / "far.png").read_bytes()
    for args, said in [
        (["ref.png", "small.png"], "small.png and ref.png: the images have different sizes"),
        (["ref.png", "near.png", "alpha.png"], "alpha"), (["ref.png", "absent.png"], "absent.png"),
        (["ref.png", "broken.png"], "broken.png"), (["ref.png", "near.png", "-m", "lpips-alx"], "did you mean"),
        (["ref.png", "far.png", "-o", "far.png"], "is an input"), (["ref.png"], "IMG"),
    ]:
        options = [] if "-o" in args else ["-o", tmp_path / "a.html"]
        assert said in error_of(call("view", *args, *options, "--open", code=2))
    assert not list(tmp_path.iterdir()) and browsed == [] and (gallery / "far.png").read_bytes() == before
    call("view", "ref.png", "alpha.png", "--background", "white", "-m", "mse", "-o", tmp_path / "a.html")


def test_a_heavy_page_is_told_and_names_keep_folders_where_they_must(call, monkeypatch, gallery, tmp_path):  # noqa: F811
    monkeypatch.setattr(command, "HEAVY", 1000)
    (tmp_path / "ref.png").write_bytes((gallery / "near.png").read_bytes())
    done = call("view", "ref.png", tmp_path / "ref.png", "-m", "mse", "-o", tmp_path / "a.html")
    assert "the page is large" in done.stderr and "crop" in done.stderr
    assert content(tmp_path / "a.html")["images"][0]["name"] == str(tmp_path / "ref.png")


def test_compressed_files_are_seen_as_they_decode(call, compressai, shipped_codecs, tmp_path):  # noqa: F811
    call("compress", "ref.png", "-o", tmp_path / "a.cpz", "--codec", "cpips-lite")
    call("decompress", tmp_path / "a.cpz", "-o", tmp_path / "a.png")
    call("view", "ref.png", tmp_path / "a.cpz", "-m", "mse", "-o", tmp_path / "a.html")
    expected = np.asarray(Image.open(tmp_path / "a.png"))
    np.testing.assert_array_equal(decoded(content(tmp_path / "a.html")["images"][0]["uri"]), expected)


# ---- in a browser ---------------------------------------------------------------------------------------------------


def media(browser, scheme: str = "light") -> None:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [
        {"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]})


def open_page(browser, page: Path):
    from selenium.webdriver.support.wait import WebDriverWait

    media(browser)
    visit(browser, page)
    WebDriverWait(browser, 60).until(lambda b: b.execute_script("return 'ready' in document.body.dataset"))
    settled(browser)
    return browser


@pytest.fixture
def opened(chromium, page):
    yield open_page(chromium, page)
    loaded = chromium.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith("data:") for name in loaded), loaded
    assert chromium.get_log("browser") == []


def settled(browser) -> None:
    """Wait until what was asked for is drawn."""
    browser.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))")


def pixel(browser, pane: str, x: float, y: float) -> list[int]:
    """Colour at CSS pixels of a pane."""
    settled(browser)
    return browser.execute_script("""
        const pen = canvasOf(1, 1).getContext('2d', { willReadFrequently: true });
        pen.drawImage(document.querySelector(`#${arguments[0]} canvas`), -Math.floor(arguments[1] * devicePixelRatio),
                      -Math.floor(arguments[2] * devicePixelRatio));
        return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3)
    """, pane, x, y)


def spot(browser, x: int, y: int) -> tuple[float, float]:
    """CSS pixels in a pane of the middle of an image pixel."""
    settled(browser)
    at = browser.execute_script("return toPane(arguments[0] + 0.5, arguments[1] + 0.5)", x, y)
    return at["x"], at["y"]


def text(browser, css: str) -> str:
    settled(browser)
    return browser.execute_script("return document.querySelector(arguments[0]).textContent", css)


def choose(browser, mode: str) -> None:
    browser.find_element("css selector", f'input[value="{mode}"]').click()
    settled(browser)


def press(browser, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()
    settled(browser)


def test_the_divider_follows_mouse_and_keys(opened, arrays):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    divider = opened.find_element("id", "divider")
    opened.execute_script("zoomTo(2, toPane(...arguments))", *STRONG)
    reference, image = ([*map(int, array[STRONG[1], STRONG[0]])] for array in arrays)
    x, y = spot(opened, *STRONG)
    assert reference != image and pixel(opened, "right", x, y) == image  # left of it the reference, right of it the image
    width = opened.execute_script("return box().width")
    ActionChains(opened).drag_and_drop_by_offset(divider, round(x + 30 - width / 2), 0).perform()
    assert pixel(opened, "right", x, y) == reference
    assert int(divider.get_attribute("aria-valuenow")) == pytest.approx(100 * (x + 30) / width, abs=1)
    divider.send_keys(Keys.HOME)
    assert pixel(opened, "right", x, y) == image and divider.get_attribute("aria-valuenow") == "0"
    divider.send_keys(Keys.ARROW_RIGHT)
    settled(opened)
    assert divider.get_attribute("aria-valuenow") == "2"
    divider.send_keys(Keys.END)
    assert pixel(opened, "right", x, y) == reference


@pytest.mark.parametrize("key", ["r", " "])
def test_a_held_key_shows_the_reference(opened, arrays, key):
    from selenium.webdriver.common.action_chains import ActionChains

    press(opened, "f")
    opened.execute_script("zoomTo(3, toPane(...arguments))", *STRONG)
    assert opened.find_element("css selector", 'input[value="flip"]').is_selected()
    reference, image = ([*map(int, array[STRONG[1], STRONG[0]])] for array in arrays)
    x, y = spot(opened, *STRONG)
    assert pixel(opened, "right", x, y) == image
    opened.find_element("css selector", "#right canvas").click()  # the focus leaves the radio, which space belongs to
    ActionChains(opened).key_down(key).perform()
    assert pixel(opened, "right", x, y) == reference and text(opened, "#right .tag") == "ref & <i>.png"
    ActionChains(opened).key_up(key).perform()
    assert pixel(opened, "right", x, y) == image
    button = opened.find_element("id", "hold")
    ActionChains(opened).click_and_hold(button).perform()
    assert pixel(opened, "right", x, y) == reference and button.get_attribute("aria-pressed") == "true"
    ActionChains(opened).release().perform()
    assert pixel(opened, "right", x, y) == image


def test_side_by_side_stays_in_step_and_the_loupe_tells_both_colours(opened, arrays):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    choose(opened, "beside")
    left, right = (opened.find_element("css selector", f"#{pane} canvas") for pane in ("left", "right"))
    x, y = spot(opened, *STRONG)
    w, h = left.size["width"], left.size["height"]
    before = opened.execute_script("return view.scale")
    ActionChains(opened).scroll_from_origin(ScrollOrigin.from_element(left, round(x - w / 2), round(y - h / 2)), 0, -900).perform()
    settled(opened)
    assert opened.execute_script("return view.scale") > 3 * before
    assert spot(opened, *STRONG) == pytest.approx((x, y), abs=6)  # what was beneath the wheel stays there
    ActionChains(opened).move_to_element_with_offset(right, 0, 0).click_and_hold().move_by_offset(-40, 30).release().perform()
    moved = spot(opened, *STRONG)
    assert moved == pytest.approx((x - 40, y + 30), abs=8)  # the first pixels tell a drag from a click
    ActionChains(opened).move_to_element_with_offset(right, round(moved[0] - w / 2), round(moved[1] - h / 2)).perform()
    column, row = map(int, re.findall(r"\d+", text(opened, "#place")))
    assert abs(column - STRONG[0]) <= 1 and abs(row - STRONG[1]) <= 1
    colours = [[*map(int, array[row, column])] for array in arrays]
    told = opened.execute_script("return [...document.querySelectorAll('.rgb tbody tr')].map(row => "
                                 "[...row.cells].slice(1).map(cell => Number(cell.textContent.replace('−', '-'))))")
    assert told == [*colours, [b - a for a, b in zip(*colours)]]
    assert [pixel(opened, pane, *spot(opened, column, row)) for pane in ("left", "right")] == colours
    lens = opened.execute_script("return [...document.querySelectorAll('.lenses canvas')].map(canvas => "
                                 "[...canvas.getContext('2d').getImageData(99, 99, 1, 1).data].slice(0, 3))")
    assert lens == colours


def test_a_click_on_a_difference_goes_there(opened):
    buttons = opened.find_elements("css selector", "#peaks button")
    peaks = opened.execute_script("return heat().peaks")
    assert len(buttons) == len(peaks) >= 2
    buttons[1].click()
    settled(opened)
    width, height = opened.execute_script("return [box().width, box().height]")
    x, y = spot(opened, peaks[1]["x"], peaks[1]["y"])
    assert 0 < x < width and 0 < y < height and opened.execute_script("return view.scale > 1.5 * fitScale()")
    assert text(opened, "#place") == f"x {peaks[1]['x']}, y {peaks[1]['y']}"
    assert buttons[1].get_attribute("aria-current") == "true" and "Difference 2 of" in text(opened, "#status")
    press(opened, "n", "p", "p")
    assert [b.get_attribute("aria-current") for b in buttons[:2]] == ["true", "false"]
    assert abs(opened.execute_script("return view.x") - STRONG[0]) < 60
    press(opened, "]")
    assert opened.find_elements("css selector", "#peaks button") == [] and "equal" in text(opened, "#peaks-note")
    assert [cell.text for cell in opened.find_elements("css selector", "#values .best")] == ["0.000", "0.000", "∞"]
    assert "∞" in text(opened, "#status") and text(opened, "#headline b") == "0.000"


def test_heat_covers_the_image_alone_as_strongly_as_asked(opened):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    choose(opened, "beside")
    place = spot(opened, *STRONG)
    bare = [pixel(opened, pane, *place) for pane in ("left", "right")]
    press(opened, "h")
    hot = [pixel(opened, pane, *place) for pane in ("left", "right")]
    assert hot[0] == bare[0] and hot[1] != bare[1] and opened.find_element("id", "heat").is_selected()
    opened.find_element("id", "opacity").send_keys(Keys.HOME)
    assert pixel(opened, "right", *place) == bare[1]
    opened.find_element("id", "opacity").send_keys(Keys.END)
    strongest = pixel(opened, "right", *place)
    assert strongest != hot[1]
    cold = pixel(opened, "right", *spot(opened, 160, 120))
    assert max(cold) - min(cold) < 60 and sum(cold) < sum(strongest)  # dim and nearly grey
    Select(opened.find_element("id", "heat-metric")).select_by_visible_text("random")
    assert "random" in text(opened, "#peaks-note") and "random" in text(opened, "#heat-here")


def test_fingers_pinch_drag_and_tap(opened, arrays):
    touch = lambda kind, *points: opened.execute_cdp_cmd("Input.dispatchTouchEvent", {
        "type": kind, "touchPoints": [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]})
    opened.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    try:
        left, top, width, height = opened.execute_script("const b = box(); return [b.left, b.top, b.width, b.height]")
        x, y = left + width / 4, top + height / 2
        scale = opened.execute_script("return view.scale")
        touch("touchStart", (x - 40, y), (x + 40, y))
        for reach in (60, 90, 120):
            touch("touchMove", (x - reach, y), (x + reach, y))
        touch("touchEnd")
        settled(opened)
        assert opened.execute_script("return view.scale") == pytest.approx(3 * scale, rel=0.05)
        before = opened.execute_script("return [view.x, view.y]")
        touch("touchStart", (x, y))
        for step in range(1, 5):
            touch("touchMove", (x - 20 * step, y - 10 * step))
        touch("touchEnd")
        settled(opened)
        after = opened.execute_script("return [view.x, view.y]")
        assert after[0] - before[0] == pytest.approx(80 / 3 / scale, abs=6) and after[1] > before[1]
        touch("touchStart", (x, y))
        touch("touchEnd")
        column, row = map(int, re.findall(r"\d+", text(opened, "#place")))
        at = spot(opened, column, row)
        assert at == pytest.approx((x - left, y - top), abs=3 * scale)
        told = opened.execute_script("return [...document.querySelector('.rgb tbody tr').cells].slice(1).map(c => Number(c.textContent))")
        assert told == [*map(int, arrays[0][row, column])]
        choose(opened, "flip")
        button = opened.execute_script("const b = $('hold').getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]")
        touch("touchStart", button)
        assert text(opened, "#right .tag") == "ref & <i>.png"
        touch("touchEnd")
        assert text(opened, "#right .tag").startswith("</script>")
    finally:
        opened.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_zoom_by_keys_and_double_click_and_keys_can_be_off(opened):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    scale = lambda: opened.execute_script("return view.scale")
    canvas = opened.find_element("css selector", "#right canvas")
    fitted = scale()

    def double_click():
        before = scale()
        for _ in range(10):  # on a busy machine the two clicks may be too far apart
            ActionChains(opened).move_to_element_with_offset(canvas, 120, 0).double_click().perform()
            settled(opened)
            if scale() != before:
                break

    double_click()
    assert scale() == pytest.approx(4 * fitted)
    x = opened.execute_script("return view.x")
    press(opened, Keys.ARROW_RIGHT)
    assert opened.execute_script("return view.x") > x
    double_click()
    assert scale() == pytest.approx(fitted)
    press(opened, "1")
    assert scale() == 1 and text(opened, "#scale").startswith("100")
    press(opened, "+", "+", "-")
    assert scale() == pytest.approx(1.25)
    press(opened, "0")
    assert scale() == pytest.approx(fitted)
    opened.execute_script("$('help').open = true; $('shortcuts').click()")
    press(opened, "1", "h")
    assert scale() == pytest.approx(fitted) and not opened.find_element("id", "heat").is_selected()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read_and_a_phone_does_not_scroll_sideways(opened, scheme):
    media(opened, scheme)
    opened.execute_script("$('help').open = true; for (const each of document.querySelectorAll('details')) each.open = true")
    poor = opened.execute_script("""
        const ground = (element) => {
            for (let at = element; at; at = at.parentElement) {
                const colour = getComputedStyle(at).backgroundColor;
                if (!/, 0\\)$|\\/ 0\\)$/.test(colour)) return colour;
            }
        };
        return [...document.querySelectorAll('h1, h2, p, th, td, dt, dd, button, li, .segments span, output, kbd, a.keys')]
            .filter(each => each.checkVisibility() && each.textContent.trim() && !each.closest('.stage, .unseen'))
            .map(each => [each.textContent.slice(0, 30), getComputedStyle(each).color, ground(each)])""")
    assert len(poor) > 60
    for said, ink, paper in poor:
        if "color(" in paper or "oklab" in paper:  # the chosen row's tint
            continue
        a, b = sorted((luminance(ink), luminance(paper)))
        assert (b + 0.05) / (a + 0.05) >= 4.5, (said, ink, paper)  # WCAG AA
    assert (luminance(opened.execute_script("return getComputedStyle(document.body).backgroundColor")) < 0.05) == (scheme == "dark")
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True})
    try:
        settled(opened)
        for mode in ("slider", "flip", "beside"):
            opened.execute_script("choose(arguments[0])", mode)
            settled(opened)
            assert opened.execute_script("return document.documentElement.scrollWidth") <= 390
            assert opened.execute_script("return box().width * box().height") > 390 * 200
        assert opened.execute_script("return $('stage').classList.contains('stacked')")
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_control_and_picture_has_a_name(opened):
    for element in opened.find_elements("css selector", "button, input, select, [role=slider], [role=img], summary, [role=region]"):
        if element.is_displayed():
            assert element.accessible_name.strip(), element.get_attribute("outerHTML")
    assert opened.execute_script("return [...document.querySelectorAll('table')].every(t => t.caption.textContent)")
    assert text(opened, "#image-name").startswith("</script>") and opened.execute_script("return document.images.length") == 0


def test_without_a_map_there_is_neither_heat_nor_places(chromium, tmp_path):
    """And a file of one metric and image, as small as they come, is a page too."""
    out = tmp_path / "page.html"
    write_page(Picture("a.png", torch.zeros(3, 1, 1)), [Picture("b.png", torch.ones(3, 1, 1))], out, [cpips.create_metric("psnr")])
    shown = open_page(chromium, out)
    assert not shown.find_element("id", "heat-tools").is_displayed() and not shown.find_element("id", "peaks-card").is_displayed()
    press(shown, "h", "n", "]", "f")
    assert text(shown, "#headline b") == "0.000" and text(shown, "#place") == "x 0, y 0"
    assert pixel(shown, "right", *spot(shown, 0, 0)) == [255, 255, 255]
    assert chromium.get_log("browser") == []
