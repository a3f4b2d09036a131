"""The reports of bapps_eval: tables say what compare() says; the page works in a browser, with any names."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest

from bapps_eval import distances, scoring
from bapps_eval.dataset import Dataset
from bapps_eval.distances import Distances, DistancesError
from bapps_eval.report import frame, overview, table, write_report
from bapps_eval.report import gallery, plots, tables
from bapps_eval.scores import MEANS_2AFC
from helpers import luminance, visit

EVIL = "<img src=x onerror=alert(1)>|&_%\\ $x^2$ </script>"
RESAMPLES = 200
FAMILIES = MEANS_2AFC["All"]


def dataset(task: str, *, n: int, missing=(), name: str | None = None, families=FAMILIES) -> Dataset:
    """Small images, and opinions that follow how strong a distortion is."""
    rng = np.random.default_rng([n, len(task)])
    order = sorted((families[i % len(families)], i) for i in range(n))
    strength = rng.uniform(0, 1, (n, 2))
    size = (12, 14) if task != "mos" else (30, 40)
    opinions = {"2afc": np.round(4 * np.clip(0.5 + strength[:, 0] - strength[:, 1], 0, 1)) / 4,
                "jnd": np.round(3 * (1 - strength[:, 0])) / 3, "mos": 9 - 8 * strength[:, 0]}[task]

    def load(i: int) -> tuple[np.ndarray, ...]:
        pixels = np.random.default_rng(i)
        reference = pixels.integers(0, 256, (*size, 3), dtype=np.uint8)
        changed = [np.clip(reference + pixels.normal(0, 60 * s, reference.shape), 0, 255).astype(np.uint8)
                   for s in strength[i]]
        return (reference, *changed) if task == "2afc" else (reference, changed[0])

    return Dataset(name or f"small-{task}", task, [f"{family}/{i:04d}" for family, i in order], [f for f, _ in order],
                   [f"ref{i % 12}" if task == "mos" else f"{i}" for _, i in order], opinions, load,
                   resize="pil-bilinear-64", missing=missing, notes=["labels of <b>a test</b>"])


def run(data: Dataset, name: str, noise: float, *, lower: bool = True, **about) -> Distances:
    """A metric that knows the opinions but for ``noise``."""
    rng = np.random.default_rng([len(name), len(data)])
    if data.task == "2afc":
        d = 1 + np.stack([data.opinions, 1 - data.opinions], 1) + rng.normal(0, noise, (len(data), 2))
    else:
        d = (10 - data.opinions * (1 if data.task == "mos" else 9))[:, None] + rng.normal(0, 4 * noise, (len(data), 1))
    return Distances(data.ids, np.array(data.groups), np.array(data.references), data.opinions, d if lower else 50 - d,
                     distances.describe(data),
                     {"name": name, "signature": f"{name}|w:0123|v1", "lower_is_better": lower},
                     {"seconds": 0.01 * len(data) * (1 + noise), "device": "cpu", "hardware": "A", **about})


def metrics(data: Dataset) -> list[Distances]:
    """Four, of which two can hardly be told apart."""
    near = run(data, EVIL, 0.3)
    near.values[:] = run(data, "cpips", 0.3).values + np.random.default_rng(0).normal(0, 0.05, near.values.shape)
    return [run(data, "lpips-alex", 0.6), run(data, "cpips", 0.3), near,
            run(data, "psnr", 1.5, lower=False, hardware="B", seconds=0.02)]


@pytest.fixture(scope="module")
def sets() -> list[Dataset]:
    return [dataset("2afc", n=720), dataset("jnd", n=160, families=("traditional", "cnn")),
            dataset("mos", n=144, families=("blur", "noise", "jpeg"), missing=["2 of 14 references"])]


@pytest.fixture(scope="module")
def comparisons(sets) -> list[dict]:
    return [scoring.compare(metrics(data), RESAMPLES) for data in sets]


@pytest.fixture(scope="module")
def page(sets, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report([one for data in sets for one in metrics(data)], out, images=sets, resamples=RESAMPLES, gallery=4,
                 maps=lambda name, a, b: None if name == "psnr" else np.abs(a.astype(float) - b).mean(-1))
    return out


def cells_of(markdown: str) -> dict[str, list[str]]:
    """Rows of the first Markdown table by their first cell."""
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1, "a name broke the table"
    return {row[0]: row[1:] for row in rows}


def row_of(rows: dict[str, list[str]], score: dict) -> list[str]:
    return rows[tables.escape_markdown(score["metric"]["name"]) + r" \*" * tables.tied(score)]


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_a_2afc_table_holds_the_scores_in_percent(comparisons):
    rows = cells_of(table(comparisons[:1], format="markdown"))
    assert rows["Metric"] == [*FAMILIES, "Distortions", "Real", "All", "Likelihood", "Ties"]
    best = comparisons[0]["scores"][0]
    told = [cell.replace("*", "") for cell in row_of(rows, best)]
    low, high = best["headline"]["interval"]
    assert told[:6] == [f"{100 * best['families'][f]['score']:.2f}" for f in FAMILIES]
    assert told[6:8] == [f"{100 * best['means'][m]:.2f}" for m in ("Distortions", "Real")]
    assert told[8] == f"{100 * best['headline']['score']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
    assert told[9] == f"{best['likelihood']['means']['All']:.3f}" and told[10] == str(best["ties"])
    ceilings = best["ceilings"]
    assert rows["*Human*"][8] == f"{100 * ceilings['human']['means']['All']:.2f}"
    assert rows["*Majority*"][0] == f"{100 * ceilings['majority']['families']['traditional']:.2f}"
    assert rows["*Known shares*"][9] == f"{ceilings['likelihood']['means']['All']:.3f}"


def test_jnd_and_mos_tables_hold_the_scores(comparisons):
    rows, best = cells_of(table(comparisons[1:2], format="markdown")), comparisons[1]["scores"][0]
    assert rows["Metric"] == ["traditional", "cnn", "Mean", "Ties"]
    assert f"{100 * best['headline']['score']:.2f}" in row_of(rows, best)[2]
    rows, scores = cells_of(table(comparisons[2:], format="markdown")), comparisons[2]["scores"]
    assert rows["Metric"] == ["SRCC", "KRCC", "PLCC", "RMSE", "PWRC", "OR", "Z-RMSE", "Ties"]
    for score in scores:
        told = [cell.replace("*", "").split(" ")[0] for cell in row_of(rows, score)]
        keys = ("srcc", "krcc", "plcc", "rmse", "pwrc", "outlier_ratio", "z_rmse")
        assert told == [*(f"{score[key]:.3f}" for key in keys), str(score["ties"])]
    assert any(row[3] == f"**{min(s['rmse'] for s in scores):.3f}**" for row in rows.values())  # less is better


@pytest.mark.parametrize("format", ["text", "markdown", "latex"])
def test_rows_are_best_first_and_ties_are_marked_and_explained(comparisons, format):
    told = table(comparisons[:1], format=format)
    names = [s["metric"]["name"] for s in comparisons[0]["scores"]]
    assert set(names[:2]) == {"cpips", EVIL} and [tables.tied(s) for s in comparisons[0]["scores"]] == [0, 1, 0, 0]
    assert told.index("cpips") < told.index("lpips-alex") < told.index("psnr")
    tied = next(line for line in told.splitlines() if ("cpips" if names[1] == "cpips" else "onerror") in line)
    assert {"text": "*", "markdown": r"\* |", "latex": "$^{*}$"}[format] in tied
    for what in ("not corrected for multiple comparisons", "within their family", "720 items", "pil-bilinear-64"):
        assert what in told


@pytest.mark.parametrize("format", tables.FORMATS)
def test_a_partial_set_is_named_partial(comparisons, format):
    assert "small-mos (partial)" in table(comparisons[2:], format=format)
    assert "small-mos (partial)" in overview(comparisons, format=format)
    assert "(partial)" not in table(comparisons[:2], format=format)


def test_csv_is_tidy_exact_and_whole(comparisons):
    rows = list(csv.DictReader(io.StringIO(table(comparisons, format="csv"))))
    assert list(rows[0]) == ["dataset", "metric", "quantity", "group", "value", "low", "high"]
    found = {(r["dataset"], r["metric"], r["quantity"], r["group"]): r for r in rows}
    assert len(found) == len(rows)
    best, mos = comparisons[0]["scores"][0], comparisons[2]["scores"][0]
    headline = found["small-2afc", best["metric"]["name"], "headline", "All"]
    assert float(headline["value"]) == best["headline"]["score"]  # every bit
    assert [float(headline["low"]), float(headline["high"])] == best["headline"]["interval"]
    human = best["ceilings"]["human"]["means"]["Real"]
    assert float(found["small-2afc", "", "human_ceiling", "Real"]["value"]) == human
    for group, value in mos["groups"].items():
        assert float(found["small-mos (partial)", mos["metric"]["name"], "srcc_of_group", group]["value"]) == value
    assert float(found["small-2afc", "psnr", "difference_to_best", ""]["value"]) < 0
    assert {r["metric"] for r in rows} == {"", "cpips", "lpips-alex", "psnr", EVIL}
    tidy = frame(comparisons)
    wide = tidy[(tidy.quantity == "headline") & (tidy.dataset == "small-2afc")].set_index("metric")["value"]
    assert wide[best["metric"]["name"]] == best["headline"]["score"] and wide.idxmax() == best["metric"]["name"]
    assert tidy.low.isna().sum() == sum(not row["low"] for row in rows) > 0


def test_latex_escapes_and_balances(comparisons):
    told = table(comparisons, format="latex")
    assert (r"\textless{}img src=x onerror=alert(1)\textgreater{}\textbar{}\&\_\%\textbackslash{} "
            r"\$x\textasciicircum{}2\$") in told
    bare = re.sub(r"\\[{}%&$#_\\]", "", told)
    assert bare.count("{") == bare.count("}") and "<" not in bare and "_" not in bare and "#" not in bare
    assert not re.search(r"(?<!\\)%", told)  # a comment would swallow the line
    for line in (line for line in told.splitlines() if line.endswith(r" \\") and " & " in line):
        assert len(re.findall(r"(?<!\\)&", line)) in (3, 4, 8, 11)
    for begun in ("table", "tabular", "minipage"):
        assert told.count(rf"\begin{{{begun}}}") == told.count(rf"\end{{{begun}}}") == 4
    assert tables.escape_latex("[a]") == "{}[a]"  # after \\ it would be read as a length


def test_names_cannot_break_a_table():
    data = dataset("jnd", n=20, families=("a|b\nc", "*d*"))
    found = [scoring.compare([run(data, "x\n| y |", 0.3), run(data, "z\ty", 1.0)], 100)]
    cells_of(table(found, format="markdown"))
    assert all("| y |" in line or "y" not in line for line in table(found, format="text").splitlines()[4:5])
    assert len(list(csv.reader(io.StringIO(table(found, format="csv"))))[1]) == 7


def test_the_overview_has_a_column_for_each_set_and_a_dash_where_a_metric_is_absent(comparisons, sets):
    fewer = [*comparisons[:2], scoring.compare(metrics(sets[2])[:2], RESAMPLES)]
    rows = cells_of(overview(fewer, format="markdown"))
    assert [name.split(",")[0] for name in rows["Metric"]] == ["small-2afc", "small-jnd", "small-mos (partial)"]
    assert rows["psnr"][2] == rows[tables.escape_markdown(EVIL)][2] == "–"
    assert list(rows)[2:4] == ["cpips", "lpips-alex"]  # those of all sets first
    best = [rows[name][0] for name in ("cpips", tables.escape_markdown(EVIL))]
    assert all("[" in cell for cell in best) and sum(r"\*" in cell for cell in best) == 1
    assert table(fewer, format="markdown").startswith(overview(fewer, format="markdown"))


def test_a_mean_over_fewer_families_is_not_called_all():
    found = scoring.compare(metrics(dataset("2afc", n=60, families=("cnn", "deblur"))), 100)
    rows = cells_of(table([found], format="markdown"))
    assert rows["Metric"] == ["cnn", "deblur", "Mean of 2 families", "Likelihood", "Ties"]
    assert rows["psnr"][3] == "–" and rows["*Human*"][2] != "–"  # too few triplets for a likelihood


def test_an_unknown_format_names_the_formats(comparisons):
    for function in (table, overview):
        with pytest.raises(ValueError, match="text, markdown, latex, csv"):
            function(comparisons, format="word")


# ---- gallery --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["2afc", "jnd", "mos"])
def test_disagreement_is_free_of_scales_and_within_0_and_1(task):
    data = dataset(task, n=80, families=("cnn", "traditional"))
    a, b = run(data, "a", 0.3), run(data, "bb", 1.0)
    values = gallery.disagreement(a, b)
    assert 0 <= values.min() and values.max() <= 1 and values.std() > 0
    other = Distances(**{**b.__dict__, "values": 700 - 3 * b.values, "metric": {**b.metric, "lower_is_better": False}})
    np.testing.assert_array_equal(gallery.disagreement(a, other), values)
    np.testing.assert_array_equal(gallery.disagreement(b, a), values)
    assert gallery.most(a, a, 5) == []  # a metric agrees with itself


def test_the_triplet_on_which_metrics_are_surest_of_opposite_sides_comes_first():
    data = dataset("2afc", n=60)
    a, b = run(data, "a", 0.1), run(data, "bb", 0.1)
    a.values[17], b.values[17] = (0.0, 9.0), (9.0, 0.0)
    assert gallery.most(a, b, 3)[0] == 17 and gallery.disagreement(a, b)[17] == 1.0


def test_infinite_values_have_no_preference_among_themselves():
    data = dataset("2afc", n=30)
    psnr = run(data, "psnr", 0.5, lower=False)
    psnr.values[3], psnr.values[4] = (np.inf, np.inf), (np.inf, 30.0)
    sure = gallery.preferences(psnr)
    assert sure[3] == 0 and sure[4] == -1.0  # p0 equals the reference


# ---- plots ----------------------------------------------------------------------------------------------------------


def figure(plot: str) -> dict:
    return json.loads(re.search(r"<script[^>]*>(.*)</script>", plot, re.DOTALL)[1])


MARKS = [plots.Mark(EVIL, 71.0, 69.5, 72.0, "71.00", True), plots.Mark("psnr", 48.0, 47.0, 50.0, "48.00", False)]


def test_bars_reach_from_the_base_to_the_score_with_their_interval_and_ceilings():
    told = figure(plots.bars("All", MARKS, (45, 80), base=50, ceilings={"human": 75.0}, number="{:.1f}".format))
    bar, human = told["data"]
    assert [bar["base"] + x for x in bar["x"]] == [71.0, 48.0] and told["layout"]["xaxis"]["range"] == [45, 80]
    assert (bar["error_x"]["array"], bar["error_x"]["arrayminus"]) == ([1.0, 2.0], [1.5, 1.0])
    assert bar["hovertext"][1] == "psnr<br>48.00 [47.0, 50.0]<br>human 75.0" and human["x"] == [75.0, 75.0]
    assert [note["text"] for note in told["layout"]["annotations"]][2:] == ["psnr", "48.00"]


@pytest.mark.parametrize("costs", [(1.0, 1.1), (0.1, 7.0), (1.0, 3e5)])
def test_cost_is_on_a_log_axis_with_a_few_ticks_and_the_human_ceiling(costs):
    told = figure(plots.cost(list(zip(costs, MARKS)), unit="psnr", up="agreement", ceilings={"human": 75.0},
                             number="{:.1f}".format))
    axis, points = told["layout"]["xaxis"], told["data"][0]
    low, high = (10**v for v in axis["range"])
    assert axis["type"] == "log" and low < min(costs) and max(costs) < high
    assert 1 <= sum(low <= tick <= high for tick in axis["tickvals"]) <= 8
    assert points["x"] == list(costs) and points["hovertext"][1].endswith(f"{plots.factor(costs[1])} the time")
    assert told["layout"]["shapes"][0]["y0"] == 75.0 < told["layout"]["yaxis"]["range"][1]
    assert "<img" not in points["hovertext"][0] + points["text"][0]  # plotly reads some HTML


# ---- page: what is written ------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags in their order, and what can be read between them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.cdata_elem is None:  # neither a script nor a style
            self.text.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def parsed(page) -> Page:
    return Page(page.read_text("utf-8"))


def test_the_page_loads_nothing_and_may_not(page, parsed):
    from plotly.offline import get_plotlyjs

    text, library = page.read_text("utf-8"), get_plotlyjs()
    assert text.count(library) == 1  # the browser tests see that it asks for nothing
    own = text.replace(library, "")
    assert not re.search(r"https?://|@import|url\(|<link rel=.stylesheet|srcset", own)
    assert all(image["src"].startswith("data:image/webp;base64,") for image in parsed.all("img"))
    policy = next(meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert policy.count("sha256-") == 3 and "http" not in policy and "unsafe-eval" not in policy
    assert len(own) < 1_000_000 and page.stat().st_size < 6_500_000 and os.listdir(page.parent) == ["report.html"]


def test_names_are_text_wherever_they_stand(page, parsed):
    text = page.read_text("utf-8")
    assert "onerror=alert(1)&gt;" in text and "<img src=x" not in text and "<b>a test" not in text
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert len(re.findall(r"</script>", text)) == 3 + text.count('type="application/json"')


def test_the_page_can_be_read_without_seeing_it(parsed):
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    assert len(parsed.all("table")) == len(parsed.all("caption"))
    assert parsed.all("img") and all(image["alt"] for image in parsed.all("img"))
    plotted = [div for div in parsed.all("div") if "plot" in div.get("class", "").split()]
    assert len(plotted) == (7 + 3 + 1) + 3 + 4  # bars, costs, scatter plots
    assert all(div["role"] == "img" and div["aria-label"] for div in plotted)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {each["for"] for each in parsed.all("label")} == {each["id"] for each in parsed.all("select")} <= set(ids)
    assert {link["href"][1:] for link in parsed.all("a") if link["href"].startswith("#")} <= set(ids)


def test_the_page_holds_the_scores_the_circumstances_and_the_warnings(parsed, comparisons):
    told = re.sub(r"\s+", " ", "".join(parsed.text))
    for comparison in comparisons:
        for score in comparison["scores"]:
            low, high = map(tables.printed(comparison["task"]), score["headline"]["interval"])
            assert f"{tables.printed(comparison['task'])(score['headline']['score'])}" in told
            assert f"[{low},\xa0{high}]".replace("\xa0", " ") in told.replace("\xa0", " ")
        assert comparison["dataset"]["digest"] in told
    for what in ("cpips|w:0123|v1", "labels of <b>a test</b>", "missing: 2 of 14 references", "hardware A",
                 "These were not", f"{RESAMPLES} resamples", "not significantly different", "per item (lpips-alex)"):
        assert what in told


def test_the_same_runs_make_the_same_page(sets, tmp_path):
    runs = metrics(sets[1])
    first, second = (write_report(runs, tmp_path / name, images=sets, resamples=100).read_bytes() for name in "ab")
    assert first == second


def test_a_failed_report_leaves_the_old_one(sets, tmp_path):
    out = tmp_path / "report.html"
    out.write_text("old")
    with pytest.raises(ValueError, match=r"map of cpips .* has shape \(2, 2\): expected \(H,W\)"):
        write_report(metrics(sets[0]), out, images=sets, resamples=100, maps=lambda *_: np.ones((2, 2)))
    with pytest.raises(DistancesError, match="no runs"):
        write_report([], out)
    assert out.read_text() == "old" and os.listdir(tmp_path) == ["report.html"]


def test_without_pictures_the_gallery_lists_items_and_says_how_to_get_them(sets, tmp_path):
    told = write_report(metrics(sets[0]), tmp_path / "a", resamples=100, gallery=2).read_text("utf-8")
    assert "--data DATA" in told and "<img" not in told and told.count('class="card 2afc"') == 2 * 3
    other = write_report(metrics(sets[0]), tmp_path / "b", images=sets[1:], resamples=100).read_text("utf-8")
    assert "none of the given data sets" in other
    assert "Where metrics disagree" not in write_report(
        metrics(sets[0]), tmp_path / "c", resamples=100, gallery=0).read_text("utf-8")


def test_one_metric_without_a_time_and_an_infinite_distance_is_a_report_too(tmp_path):
    data = dataset("mos", n=30, families=("blur",))
    psnr = run(data, "psnr", 0.3, lower=False, seconds=None)
    psnr.values[4] = np.inf
    told = write_report([psnr], tmp_path / "a", resamples=100).read_text("utf-8")
    assert "1 item of infinite distance" in told and "against cost" not in told and "disagree" not in told


def test_large_pictures_stay_within_the_room(sets, tmp_path, monkeypatch):
    from bapps_eval.report import page as pages

    monkeypatch.setattr(pages, "PICTURES", 1)
    told = write_report(metrics(sets[1]), tmp_path / "a", images=sets, resamples=100, gallery=9).read_text("utf-8")
    assert told.count('class="card jnd"') == 3 * gallery.FEWEST


# ---- page: in a browser ---------------------------------------------------------------------------------------------


@pytest.fixture
def opened(chromium, page):
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    visit(chromium, page)
    yield chromium
    assert chromium.get_log("browser") == []


def drawn(browser) -> None:
    """Draw what a reader has not scrolled to."""
    browser.execute_script("for (const name of ['beforeprint', 'afterprint']) dispatchEvent(new Event(name))")


def column(browser, index: int) -> list[str]:
    """Sort keys of a column of the first data set's table, as the rows stand."""
    return browser.execute_script(
        "const rows = [...document.querySelector('#set0 table.sortable').tBodies[0].rows];"
        "return rows.map(row => row.cells[arguments[0]].dataset.value)", index)


@pytest.mark.slow
def test_headers_sort_by_click_and_by_key(opened):
    from selenium.webdriver.common.keys import Keys

    header = lambda i: opened.execute_script(
        "return document.querySelector('#set0 table.sortable').tHead.rows[0].cells[arguments[0]]", i)
    button = lambda i: opened.execute_script("return arguments[0].querySelector('button')", header(i))
    assert header(1).get_attribute("aria-sort") == "descending"
    first = [float(v) for v in column(opened, 1)]
    assert first == sorted(first, reverse=True)
    button(1).click()
    assert header(1).get_attribute("aria-sort") == "ascending"
    assert [float(v) for v in column(opened, 1)] == sorted(first)
    button(2).click()  # the best has no difference to itself: below, whatever the order
    assert column(opened, 2)[-1] is None and header(1).get_attribute("aria-sort") is None
    opened.execute_script("arguments[0].focus()", button(2))
    opened.switch_to.active_element.send_keys(Keys.TAB)
    assert opened.switch_to.active_element == button(3)
    opened.switch_to.active_element.send_keys(Keys.ENTER)
    assert header(3).get_attribute("aria-sort") == "descending"
    values = [float(v) for v in column(opened, 3)]
    assert values == sorted(values, reverse=True)
    button(0).click()
    assert column(opened, 0) == sorted(column(opened, 0), key=str.lower)


@pytest.mark.slow
def test_pairs_metrics_and_groups_can_be_chosen(opened):
    from selenium.webdriver.support.select import Select

    shown = lambda id: opened.execute_script(
        "return [...document.getElementById(arguments[0]).children].map(e => e.checkVisibility())", id)
    assert shown("set0-pairs") == [True, False, False]
    Select(opened.find_element("id", "set0-pair")).select_by_index(2)
    assert shown("set0-pairs") == [False, False, True]
    Select(opened.find_element("id", "set2-scatter")).select_by_index(1)
    assert shown("set2-scatter-panels") == [False, True, False, False]
    button = opened.find_elements("css selector", "#set2 .legend button")[1]
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    drawn(opened)
    faded = opened.execute_script("return document.querySelector('#set2-scatter-panels figure:not([hidden]) .plot')"
                                  ".data.map(trace => trace.opacity ?? 1)")
    assert faded[:3] == [0.1, 1, 0.1]


@pytest.mark.slow
def test_points_tell_their_names(opened, sets):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.wait import WebDriverWait

    drawn(opened)
    told = lambda css: opened.execute_script("""
        return [...document.querySelectorAll(arguments[0] + ' .hovertext text')].filter(text => text.textContent)
            .map(text => [...text.querySelectorAll('tspan')].map(line => line.textContent))""", css)
    opened.execute_script("""
        document.querySelector('#set2 .legend button[data-group="2"]').click();
        Plotly.Fx.hover(document.querySelector('#set2 .scatter-figure .plot'), [{curveNumber: 2, pointNumber: 0}])""")
    found = told("#set2 .scatter-figure")[0]
    assert found[0] in sets[2].ids and found[0].startswith("noise/") and found[1] == "noise"
    ActionChains(opened).move_to_element(opened.find_element("css selector", "#set0 .cost .point")).perform()
    found = WebDriverWait(opened, 10).until(lambda _: told("#set0 .cost"))[0]
    assert found[0] in ("cpips", EVIL, "lpips-alex", "psnr") and found[2].endswith("× the time")


@pytest.mark.slow
def test_plots_are_images_with_buttons_that_ask_for_nothing_and_paper_is_light(opened):
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia",
                           {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    drawn(opened)
    images = opened.execute_script("return [...document.querySelectorAll('.js-plotly-plot')].map(plot => "
                                   "[plot.querySelector('.main-svg[role=img]').ariaLabel, plot.role, "
                                   "plot.querySelectorAll('button[aria-label]').length])")
    assert images and all(label and role is None and count >= 2 for label, role, count in images), images
    ink = lambda: luminance(opened.execute_script("return getComputedStyle(document.querySelector('.plot text')).fill"))
    assert ink() > 0.3
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert ink() < 0.2
    opened.execute_script("dispatchEvent(new Event('afterprint'))")
    assert ink() > 0.3
    saved = opened.execute_async_script("""
        const [done] = [...arguments].slice(-1), plot = document.querySelector('#set0 .cost .plot');
        const click = HTMLAnchorElement.prototype.click;
        HTMLAnchorElement.prototype.click = function() {
            HTMLAnchorElement.prototype.click = click;
            done([this.download, this.href]);
        };
        plot.querySelector('button[data-title*=PNG]').click();""")
    assert saved[0].endswith(".png") and saved[1].startswith(("blob:", "data:image/png"))
    loaded = opened.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith(("data:", "blob:")) for name in loaded), loaded


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read_and_a_phone_does_not_scroll_sideways(opened, scheme):
    other = {"light": "dark", "dark": "light"}[scheme]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia",
                           {"features": [{"name": "prefers-color-scheme", "value": other}]})
    drawn(opened)  # in the other scheme at first: the change reaches them
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia",
                           {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    deadline = time.monotonic() + 30
    while True:  # the plots take the scheme's colours after the event, not with it
        colours = opened.execute_script("""
            const of = (selector, property) => getComputedStyle(document.querySelector(selector))[property];
            return [of('body', 'backgroundColor'), of('body', 'color'), of('.interval', 'color'), of('a', 'color'),
                    of('.with', 'color'), of('.against', 'color'),
                    ...[...document.querySelectorAll('.plot text')].map(text => getComputedStyle(text).fill)]""")
        paper, *inks = [luminance(colour) for colour in colours]
        contrast = [(max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) for ink in inks]
        if min(contrast) >= 4.5 or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert len(colours) > 100
    assert (paper < 0.05) == (scheme == "dark")
    assert min(contrast) >= 4.5, dict(zip(colours[1:], contrast))  # WCAG AA
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                           {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True})
    try:
        drawn(opened)
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 360
        assert opened.execute_script("""
            return [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
                const {left, right} = plot.getBoundingClientRect();
                return [...plot.querySelectorAll('text')].filter(text => {
                    const box = text.getBoundingClientRect();
                    return box.width && (box.left < left - 1 || box.right > right + 1);
                }).map(text => text.textContent);
            })""") == []  # no label is cut
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


# ---- a metric in focus ------------------------------------------------------------------------------------------------


def test_a_metric_in_focus_is_compared_with_each_other(sets, tmp_path):
    runs = metrics(sets[2])
    path = write_report(runs, tmp_path / "focus.html", resamples=RESAMPLES, gallery=2, images=[sets[2]], focus="lpips-alex")
    page = path.read_text()
    assert "lpips-alex minus it" in page and "To the best" not in page
    comparison = scoring.compare(runs, RESAMPLES, "lpips-alex")
    for other, duel in comparison["duels"].items():
        assert tables.printed("mos")(duel["difference"]) in page, other
    assert set(comparison["duels"]) == {run.metric["name"] for run in runs} - {"lpips-alex"}
    plain = write_report(runs, tmp_path / "plain.html", resamples=RESAMPLES).read_text()
    assert "To the best" in plain and "minus it" not in plain


def test_a_focus_that_was_not_run_is_refused(sets, tmp_path):
    with pytest.raises(DistancesError, match="no run of my_metric.*lpips-alex"):
        write_report(metrics(sets[2]), tmp_path / "page.html", resamples=RESAMPLES, focus="my_metric")
    assert not (tmp_path / "page.html").exists()


def test_what_a_data_set_lacks_is_one_note():
    lacking = dataset("mos", n=144, families=("blur", "noise", "jpeg"), missing=["2 of 14 references.", "traditional: 5 of 9"])
    notes = tables.notes(scoring.compare(metrics(lacking), RESAMPLES))
    assert [note for note in notes if "PARTIAL" in note] == ["PARTIAL data set: 2 of 14 references; traditional: 5 of 9."]
