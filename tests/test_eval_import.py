"""Published per-image scores as runs, and what a subset says of its whole set."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from eval_trees import bapps_tree, live_tree, tid2013_tree
from scipy import stats
from typer.testing import CliRunner

from bapps_eval import Dataset, DistancesError, ScoreError, compare, distances, score
from bapps_eval.cli import app, compared, read_runs
from bapps_eval.importing import ScoresTableError, as_runs, read_table, write_runs
from bapps_eval.layouts import open_datasets
from bapps_eval.report.tables import table
from bapps_eval.run import run
from bapps_eval.whole import WholeSetLine, attach, fit_whole
from cpips.registry import create_metric

SOURCE = {"source": "someone/scores@1234abcd, MIT", "label": "Someone"}


def write_scores(path, dataset: Dataset, seed: int = 0, names=None, opinion=None, **columns):
    """A table with a metric ``good`` and one ``reversed``, in another order than the data set's."""
    rng = np.random.default_rng(seed)
    quality = dataset.opinions * (1 if dataset.higher_is_better else -1)
    found = {"dis": names or [f"{name.upper()}.bmp" for name in dataset.ids],
             "ref": [f"{name}.BMP" for name in dataset.references],
             "mos": dataset.opinions if opinion is None else opinion,
             "good": -quality + rng.normal(0, 0.1, len(dataset)), "reversed": quality + rng.normal(0, 0.1, len(dataset))} | columns
    order = rng.permutation(len(dataset))
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([name for name, column in found.items() if column is not None])
        writer.writerows([[column[i] for column in found.values() if column is not None] for i in order])
    return path


@pytest.fixture
def tid(tmp_path) -> Dataset:
    (dataset,) = open_datasets(tid2013_tree(tmp_path / "tid", kinds=(1, 2, 8, 24), levels=(1, 2, 5)))
    return dataset


# ---- reading and matching -------------------------------------------------------------------------------------------


def test_scores_are_matched_by_file_name(tid, tmp_path):
    path = write_scores(tmp_path / "scores.csv", tid)
    good, reversed_ = as_runs(read_table(path), tid, higher=["reversed"], **SOURCE)
    assert good.metric == {"name": "good (Someone)", "lower_is_better": True, "signature": good.metric["signature"]}
    assert good.run["imported"]["source"] == SOURCE["source"] and good.run["imported"]["matched_by"] == "file name"
    assert good.dataset["digest"] == tid.digest and list(good.ids) == list(tid.ids)
    with path.open() as stream:
        expected = {row["dis"].lower()[:-4]: float(row["good"]) for row in csv.DictReader(stream)}
    assert good.values[:, 0].tolist() == [expected[name] for name in tid.ids]
    assert score(good, 100)["srcc"] > 0.9 < score(reversed_, 100)["srcc"]
    assert not reversed_.metric["lower_is_better"]


def test_own_numbers_come_back_as_they_were(tid, tmp_path):
    """The same metric as a run and as a file that is imported gives the same scores, to the last bit."""
    own, _ = run(tid, create_metric("mse"), tmp_path / "own")
    path = write_scores(tmp_path / "own.csv", tid, good=None, reversed=None,
                        mse=[repr(value) for value in own.values[:, 0].tolist()])
    (imported,) = as_runs(read_table(path), tid, **SOURCE)
    assert imported.values.tolist() == own.values.tolist()
    mine, theirs = score(own, 200), score(imported, 200)
    assert {k: v for k, v in mine.items() if k not in ("metric", "run")} == {k: v for k, v in theirs.items() if k not in ("metric", "run")}
    both = compare([own, imported], 200)
    assert both["scores"][1]["against_best"]["difference"] == 0 and both["scores"][1]["against_best"]["mrr"]["p"] == 1


def test_a_table_alone_is_a_data_set(tid, tmp_path):
    found = as_runs(read_table(write_scores(tmp_path / "a.csv", tid), set_name="tid2013"), set_name="tid2013",
                    higher=["reversed"], **SOURCE)
    dataset = found[0].dataset
    assert (dataset["name"], dataset["task"], dataset["items"]) == ("tid2013", "mos", len(tid))
    assert dataset["missing"] == [f"{len(tid)} of 3000 images, 2 of 25 references"]
    assert sorted(set(found[0].groups)) == sorted(set(tid.groups)) and dataset["higher_is_better"]


def test_the_scale_of_the_opinions_may_differ(tid, tmp_path):
    """One table has 100 - MOS and calls it mos."""
    path = write_scores(tmp_path / "a.csv", tid, opinion=100 - tid.opinions)
    good, _ = as_runs(read_table(path), tid, higher=["reversed"], **SOURCE)
    assert good.opinions.tolist() == tid.opinions.tolist()
    alone, _ = as_runs(read_table(path), lower_opinions=True, higher=["reversed"], **SOURCE)
    assert score(alone, 100)["srcc"] == pytest.approx(score(good, 100)["srcc"], abs=1e-12)
    with pytest.raises(ScoresTableError, match="good has the rank correlation -0.9.*--lower-opinions"):
        as_runs(read_table(path), **SOURCE)


def test_live_gets_its_folders_back_and_a_subset_is_matched_by_opinion(tmp_path):
    (live,) = open_datasets(live_tree(tmp_path / "live", numbers=(1, 2)))
    names = [name.split("/")[1] + ".bmp" for name in live.ids]
    folders = [name.split("/")[0] for name in live.ids]
    order = [i for f in ("jp2k", "jpeg", "wn", "gblur", "fastfading") for i in range(len(names)) if folders[i] == f]
    path = tmp_path / "live.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["dis", "ref", "mos", "good"])
        writer.writerows([[names[i], live.references[i] + ".bmp", live.opinions[i], live.opinions[i]] for i in order])
    found = read_table(path, set_name="live")
    assert found.ids == [live.ids[i] for i in order] and found.groups == [folders[i] for i in order]
    with pytest.raises(ScoresTableError, match="two rows for img1.*--set"):
        read_table(path)
    other = Dataset("live-subset", "mos", [f"a{i:02d}" for i in range(len(live))], live.groups, live.references, live.opinions,
                    live.load, higher_is_better=False)
    (one,) = as_runs(found, other, **SOURCE)
    assert one.run["imported"]["matched_by"] == "reference and opinion score" and one.values[:, 0].tolist() == live.opinions.tolist()


def test_triplets_as_csv_and_npz(tmp_path):
    (bapps,) = [d for d in open_datasets(bapps_tree(tmp_path / "bapps", count=4)) if d.task == "2afc"]
    rng = np.random.default_rng(0)
    values = rng.random((len(bapps), 2))
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["id", "judge", "net.d0", "net.d1"],
                                      *([name, share, *row] for name, share, row in zip(bapps.ids, bapps.opinions, values.tolist()))])
    (of_csv,) = as_runs(read_table(path), bapps, **SOURCE)
    arrays = {}
    for family in sorted(set(bapps.groups)):
        mine = [i for i, group in enumerate(bapps.groups) if group == family]
        arrays |= {f"{family}__index": np.arange(len(mine)), f"{family}__judge_p1": bapps.opinions[mine],
                   f"{family}__net__d0": values[mine, 0], f"{family}__net__d1": values[mine, 1]}
    np.savez(tmp_path / "a.npz", **arrays)
    (of_npz,) = as_runs(read_table(tmp_path / "a.npz"), bapps, **SOURCE)
    assert of_csv.values.tolist() == of_npz.values.tolist() == values.tolist()
    (alone,) = as_runs(read_table(tmp_path / "a.npz"), set_name="bapps-2afc-val", **SOURCE)
    assert alone.dataset["digest"] == bapps.digest and alone.dataset["resize"] == bapps.resize  # one set, with or without images


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_a_shuffled_label_is_refused_by_name(tid, tmp_path):
    opinions = tid.opinions.copy()
    opinions[[3, 9]] = opinions[[9, 3]]
    path = write_scores(tmp_path / "a.csv", tid, opinion=opinions)
    with pytest.raises(ScoresTableError, match=rf"mos of ({tid.ids[3]}|{tid.ids[9]}) is .*does not fit.*label is wrong"):
        as_runs(read_table(path), tid, **SOURCE)


def test_a_missing_a_double_and_a_nan_row_are_refused_by_name(tid, tmp_path):
    lines = write_scores(tmp_path / "a.csv", tid).read_text().splitlines()
    name = lines[5].split(",")[0].lower()[:-4]
    (tmp_path / "b.csv").write_text("\n".join(lines[:5] + lines[6:]))
    with pytest.raises(ScoresTableError, match=f"no row for {name} of tid2013 \\(1 of {len(tid)}"):
        as_runs(read_table(tmp_path / "b.csv"), tid, **SOURCE)
    (tmp_path / "c.csv").write_text("\n".join([*lines, lines[5]]))
    with pytest.raises(ScoresTableError, match=f"two rows for {name}"):
        read_table(tmp_path / "c.csv")
    for cell in ("nan", ""):
        broken = lines[5].rsplit(",", 1)[0] + f",{cell}"
        (tmp_path / "d.csv").write_text("\n".join([*lines[:5], broken, *lines[6:]]))
        with pytest.raises(ScoresTableError, match=f"reversed is (nan|None) for {name}"):
            read_table(tmp_path / "d.csv")


def test_what_is_no_table_of_scores_is_refused(tid, tmp_path):
    cases = {"a.csv": ("x,y\n1,2\n", "columns x, y: expected one of image files"), "b.csv": ("img,note\na.png,hi\n", "no column of a metric"),
             "c.parquet": ("no", "not a table"), "d.csv": ("img,mos\n", "no rows"), "e.npz": ("no", "not an .npz")}
    for name, (text, match) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ScoresTableError, match=match):
            read_table(tmp_path / name)
    np.savez(tmp_path / "f.npz", a=np.arange(3))
    with pytest.raises(ScoresTableError, match="expected FAMILY__index"):
        read_table(tmp_path / "f.npz")
    found = read_table(write_scores(tmp_path / "g.csv", tid))
    with pytest.raises(ScoresTableError, match="no metric 'fsim': choose from good, reversed"):
        as_runs(found, tid, metrics=["fsim"], **SOURCE)
    with pytest.raises(ScoresTableError, match="reversed has the rank correlation -0.9.*--higher reversed"):
        as_runs(found, tid, **SOURCE)
    without = read_table(write_scores(tmp_path / "h.csv", tid, mos=None))
    with pytest.raises(ScoresTableError, match="no column of opinion scores.*--data"):
        as_runs(without, **SOURCE)


def test_another_run_is_not_overwritten(tid, tmp_path):
    path = write_scores(tmp_path / "a.csv", tid)
    settings = {"higher": ["reversed"], **SOURCE}
    paths = write_runs(path, tmp_path / "out", tid, **settings)
    assert [p.name for p in paths] == ["tid2013@good__Someone_.parquet", "tid2013@reversed__Someone_.parquet"]
    write_runs(path, tmp_path / "out", tid, **settings)  # the same again
    write_scores(path, tid, seed=1)
    with pytest.raises(ScoresTableError, match="holds another run"):
        write_runs(path, tmp_path / "out", tid, **settings)


# ---- the command, and the whole set ---------------------------------------------------------------------------------


def test_the_command(tid, tmp_path):
    path = write_scores(tmp_path / "a.csv", tid)
    result = CliRunner().invoke(app, ["import", str(path), "-o", str(tmp_path / "out"), "--source", "x", "--label", "X", "--data", tid.root,
                                      "--higher", "reversed", "-m", "reversed"])
    assert result.exit_code == 0, result.output
    (found,) = read_runs([tmp_path / "out"])
    assert found.metric["name"] == "reversed (X)" and not found.metric["lower_is_better"]


def test_the_line_is_the_least_squares_one_and_its_interval_that_of_the_textbook():
    rng = np.random.default_rng(0)
    x = rng.uniform(0.3, 0.9, 40)
    y = 0.05 + 0.9 * x + rng.normal(0, 0.04, 40)
    line = fit_whole({f"m{i}": v for i, v in enumerate(x)}, {f"m{i}": v for i, v in enumerate(y)})
    design = np.stack([np.ones(40), x], 1)
    beta, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    assert [line.intercept, line.slope] == pytest.approx(beta.tolist(), abs=1e-12)
    assert line.rmse == pytest.approx(np.sqrt(residual[0] / 40), rel=1e-9) and line.r == pytest.approx(np.corrcoef(x, y)[0, 1])
    at = np.array([1, 0.8])
    s = np.sqrt(residual[0] / 38 * (1 + at @ np.linalg.inv(design.T @ design) @ at))
    value, low, high = line.predict(0.8)
    assert (value, low, high) == pytest.approx((at @ beta, at @ beta - stats.t.ppf(0.975, 38) * s, at @ beta + stats.t.ppf(0.975, 38) * s))
    assert 0.85 <= line.covered <= 1


def test_prediction_intervals_cover():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        x = rng.uniform(0.2, 0.8, 15)
        y = 0.1 + 0.8 * x + rng.normal(0, 0.05, 15)
        line = fit_whole({str(i): v for i, v in enumerate(x[:-1])}, {str(i): v for i, v in enumerate(y[:-1])})
        hits += line.predict(x[-1])[1] <= y[-1] <= line.predict(x[-1])[2]
    assert hits / 200 == pytest.approx(0.95, abs=0.04)


def test_too_few_metrics_predict_nothing():
    with pytest.raises(ScoreError, match="2 metrics have scores on both"):
        fit_whole({"a": 0.1, "b": 0.2, "c": 1}, {"a": 0.3, "b": 0.4})
    with pytest.raises(ScoreError, match="all metrics have one score"):
        fit_whole({str(i): 0.5 for i in range(12)}, {str(i): 0.1 * i for i in range(12)})
    assert WholeSetLine(1, 0, 0.1, 1, 12, 0.5, 0.1).predict(0.99)[2] == 1  # no correlation beyond 1


@pytest.mark.shared_data
def test_the_published_scores_of_42_metrics(shared_data, tmp_path):
    """The field's whole-set SRCC on TID2013 come back, and the subset is calibrated by them."""
    path = shared_data / "peer_scores" / "zsiqa_tid2013.parquet"
    settings = {"source": "abhijay9/ZS-IQA@1d8c1ce9", "label": "ZS-IQA", "higher": ["psnr"], "lower_opinions": True}
    found = read_table(path, set_name="tid2013")
    whole = as_runs(found, set_name="tid2013", **settings)
    assert len(whole) == 42 and whole[0].dataset["items"] == 3000 and not whole[0].dataset["missing"]
    of_name = {each.metric["name"].split(" ")[0]: each for each in whole}
    from bapps_eval import srcc
    on_whole = {name: srcc(each.closeness[:, 0], each.quality) for name, each in of_name.items()}
    for name, expected, tolerance in (("dists", 0.708, 0.001), ("lpips_vgg", 0.670, 0.011), ("lpips", 0.757, 0.013), ("fsim", 0.825, 0.027),
                                      ("clip_vitb32_l2", 0.793, 0.001), ("dinov1_l2", 0.792, 0.001)):
        assert on_whole[name] == pytest.approx(expected, abs=tolerance), name
    (subset,) = open_datasets(shared_data / "human" / "tid2013")
    on_subset = {name: srcc(each.closeness[:, 0], each.quality)
                 for name, each in ((r.metric["name"].split(" ")[0], r) for r in as_runs(found, subset, **settings))}
    line = fit_whole(on_subset, on_whole)
    assert (line.intercept, line.slope, line.rmse, line.r) == pytest.approx((0.029, 0.969, 0.037, 0.94), abs=0.006)
    assert line.covered > 0.9


@pytest.mark.shared_data
def test_live_is_matched_through_its_opinions(shared_data):
    (subset,) = open_datasets(shared_data / "human" / "live")
    found = read_table(shared_data / "peer_scores" / "zsiqa_live.parquet", set_name="live")
    assert len(set(found.ids)) == 779 and found.ids[0] == "jp2k/img2"
    (one,) = as_runs(found, subset, metrics=["dists"], source="x", label="X", lower_opinions=True)
    assert one.run["imported"]["matched_by"] == "reference and opinion score" and len(one.ids) == 91
    (whole,) = as_runs(found, set_name="live", metrics=["dists"], source="x", label="X", lower_opinions=True)
    assert score(whole, 200)["srcc"] == pytest.approx(0.948, abs=0.001) and not whole.dataset["missing"]


def test_tables_show_what_the_whole_set_gives(tmp_path):
    """Twelve metrics on both, one on the subset alone: that one is predicted."""
    rng = np.random.default_rng(3)
    quality = rng.uniform(1, 5, 240)

    def made(name, n, metric, noise):
        dataset = {"name": name, "task": "mos", "higher_is_better": True, "resize": "none", "missing": [], "notes": [],
                   "digest": f"{n:064x}", "items": n, "root": ""}
        values = -quality[:n] + rng.normal(0, noise, n)
        return distances.Distances([f"{i:03d}" for i in range(n)], np.array(["a"] * n), np.array([f"r{i % 20}" for i in range(n)]),
                                   quality[:n], values[:, None], dataset,
                                   {"name": metric, "signature": metric, "lower_is_better": True}, {})

    runs = [made(name, n, f"m{i}", 0.2 + 0.3 * i) for i in range(12) for name, n in (("set-subset", 60), ("set", 240))]
    runs.append(made("set-subset", 60, "own", 0.9))
    found = compared(runs, 200)
    subset = next(c for c in found if c["dataset"]["name"] == "set-subset")
    whole = next(c for c in found if c["dataset"]["name"] == "set")
    told = subset["whole"]["scores"]
    assert not told["own"]["measured"] and told["own"]["interval"][0] < told["own"]["score"] < told["own"]["interval"][1]
    for s in whole["scores"]:
        assert told[s["metric"]["name"]] == {"score": s["srcc"], "interval": s["interval"], "measured": True}
    text = table([subset], format="text")
    assert "Whole set" in text and text.count("(pred.)") == 2 and "the line through 12 metrics" in text
    lines = list(csv.reader(table([subset], format="csv").splitlines()))
    assert [line[1] for line in lines if line[2] == "srcc_of_whole_set_predicted"] == ["own"]
    assert sum(line[2] == "srcc_of_whole_set" for line in lines) == 12
    alone = compare([r for r in runs if r.dataset["name"] == "set-subset"], 100)
    attach([alone])
    assert "whole" not in alone


def test_a_set_without_images_says_so(tid, tmp_path):
    from bapps_eval.importing import _as_dataset

    found = read_table(write_scores(tmp_path / "a.csv", tid))
    made = _as_dataset(found, sorted(range(len(tid)), key=found.ids.__getitem__), "x", False, None)
    with pytest.raises(ValueError, match="has scores and no images"):
        made.load(0)
    assert issubclass(ScoresTableError, DistancesError)
