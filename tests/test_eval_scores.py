"""bapps_eval's scores and statistics, against published numbers, by-hand values and slow independent versions."""

import math

import numpy as np
import pytest
from scipy import stats

import bapps_eval
from bapps_eval import distances, scores, scoring, statistics
from bapps_eval.distances import Distances, DistancesError
from bapps_eval.scores import MEANS_2AFC, ScoreError

FAMILIES = MEANS_2AFC["All"]


@pytest.fixture(scope="module")
def published(shared_data):
    return np.load(shared_data / "bapps_scores" / "bapps_2afc_val_scores.npz")


def published_run(file, model):
    """The published distances of a network, as if `bapps-eval run` had written them."""
    families = sorted(FAMILIES)
    ids = [f"{family}/{i:06d}" for family in families for i in file[f"{family}__index"]]
    join = lambda key: np.concatenate([file[f"{family}__{key}"] for family in families])
    groups = np.array([i.split("/")[0] for i in ids])
    values = np.stack([join(f"{model}__d0"), join(f"{model}__d1")], 1)
    return make_run("2afc", model, ids, groups, join("judge_p1"), values)


def make_run(task, name, ids, groups, opinions, values, *, references=None, lower=True, higher_is_better=True):
    dataset = {"name": f"set-{task}", "task": task, "higher_is_better": higher_is_better, "resize": "none",
               "missing": [], "notes": [], "digest": "0123456789abcdef" * 4, "items": len(ids), "root": ""}
    references = np.array(ids if references is None else references)
    values = np.asarray(values, dtype=float).reshape(len(ids), -1)
    return Distances(ids, np.asarray(groups), references, np.asarray(opinions, dtype=float), values, dataset,
                     {"name": name, "signature": name, "lower_is_better": lower}, {"seconds": 1.0})


def random_triplets(n=400, seed=0):
    rng = np.random.default_rng(seed)
    d0, d1 = rng.random((2, n)).round(2)
    return d0, d1, rng.binomial(5, 1 / (1 + np.exp(-4 * (d0 - d1)))) / 5


# ---- 2AFC -----------------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
@pytest.mark.parametrize("model, expected, mean", [
    ("alex_vanilla", [77.48, 82.87, 71.19, 61.04, 65.23, 62.43], 70.04),
    ("vgg_shift_tolerant", [78.83, 83.53, 71.07, 61.20, 64.58, 63.03], 70.37),
])
def test_the_published_distances_give_the_published_scores(published, model, expected, mean):
    found = scoring.score(published_run(published, model), resamples=200)
    assert [found["families"][family]["score"] * 100 for family in FAMILIES] == pytest.approx(expected, abs=0.005)
    assert found["means"]["All"] * 100 == pytest.approx(mean, abs=0.005)
    assert found["means"]["Distortions"] == pytest.approx(np.mean([found["families"][f]["score"] for f in FAMILIES[:2]]))
    assert sum(family["items"] for family in found["families"].values()) == 36344
    assert found["headline"]["complete"]


@pytest.mark.shared_data
def test_the_published_votes_give_the_human_ceiling(published):
    human = scoring.score(published_run(published, "alex_vanilla"), resamples=200)["ceilings"]["human"]
    expected = [80.84, 84.35, 73.60, 66.09, 68.83, 68.61]
    assert [human["families"][family] * 100 for family in FAMILIES] == pytest.approx(expected, abs=0.005)
    assert human["means"]["All"] * 100 == pytest.approx(73.72, abs=0.005)


def test_two_afc_by_hand():
    assert bapps_eval.two_afc([1, 2, 3, 3], [2, 1, 3, 3], [0.2, 0.2, 1, 0]) == pytest.approx((0.8 + 0.2 + 0.5 + 0.5) / 4)
    assert bapps_eval.human_ceiling([0.2, 0.5]) == pytest.approx((0.68 + 0.5) / 2)
    assert bapps_eval.majority_ceiling([0.2, 0.5]) == pytest.approx((0.8 + 0.5) / 2)
    assert bapps_eval.two_afc([0], [math.inf], [0]) == 1  # an infinite distance has an order


def test_two_afc_turns_over_with_the_metric_and_with_the_sides():
    d0, d1, judge = random_triplets()
    score = bapps_eval.two_afc(d0, d1, judge)
    assert bapps_eval.two_afc(-d0, -d1, judge) == pytest.approx(1 - score)
    assert bapps_eval.two_afc(d1, d0, 1 - judge) == pytest.approx(score)
    assert score <= bapps_eval.majority_ceiling(judge)


# ---- likelihood -----------------------------------------------------------------------------------------------------


def test_likelihood_finds_what_the_votes_hold():
    """Votes drawn from a known probability: the estimate comes near its entropy, which nothing can beat on average."""
    rng = np.random.default_rng(0)
    d0, d1 = rng.random((2, 20000))
    p = 1 / (1 + np.exp(-6 * (d0 - d1)))
    judge = rng.binomial(5, p) / 5
    best = np.mean(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    found = bapps_eval.two_afc_likelihood(d0, d1, judge)
    assert best - 0.02 < found < best + 0.005
    assert -1.02 < bapps_eval.two_afc_likelihood(*rng.random((2, 20000)), judge) < -0.99
    assert scores.likelihood_ceiling(judge) > found
    assert scores.likelihood_ceiling([0.5, 1.0]) == pytest.approx(-0.5)


def test_likelihood_knows_no_units_and_no_sides():
    d0, d1, judge = random_triplets(2000)
    found = bapps_eval.two_afc_likelihood(d0, d1, judge)
    assert bapps_eval.two_afc_likelihood(np.exp(3 * d0), np.exp(3 * d1), judge) == found
    assert bapps_eval.two_afc_likelihood(d0 * 1e9, d1 * 1e9, judge) == found
    assert bapps_eval.two_afc_likelihood(d1, d0, 1 - judge) == pytest.approx(found, abs=2e-3)  # other folds


def slow_likelihood(d0, d1, judge, cells, width, folds):
    """Triplet by triplet, pair of triplets by pair of triplets."""
    items = sorted(zip(d0, d1, judge))
    values = sorted([*d0, *d1])
    sigma, n = width * cells, len(items)

    def cell(value):
        rank = np.mean([i + 1 for i, other in enumerate(values) if other == value])
        return int((rank - 0.5) / (2 * n) * cells)

    def kernel(a, b):
        reach = int(6 * sigma + 0.5)
        bell = lambda k: math.exp(-0.5 * (k / sigma) ** 2) if abs(k) <= reach else 0.0
        return math.prod(bell(i - j) / sum(bell(k) for k in range(-reach, reach + 1)) for i, j in zip(a, b))

    places, total = [(cell(a), cell(b)) for a, b, _ in items], 0.0
    for i, (_, _, share) in enumerate(items):
        chosen, votes = 0.1 / cells, 0.2 / cells
        for j, (_, _, other) in enumerate(items):
            if i % folds != j % folds:
                there, mirrored = kernel(places[i], places[j]), kernel(places[i], places[j][::-1])
                chosen, votes = chosen + there * other + mirrored * (1 - other), votes + there + mirrored
        total += share * math.log2(chosen / votes) + (1 - share) * math.log2(1 - chosen / votes)
    return total / n


@pytest.mark.parametrize("cells, width, folds", [(8, 0.05, 5), (16, 0.1, 2), (5, 0.3, 3)])
def test_likelihood_equals_the_slow_way(cells, width, folds):
    triplets = random_triplets(24)
    found = bapps_eval.two_afc_likelihood(*triplets, cells=cells, width=width, folds=folds)
    assert found == pytest.approx(slow_likelihood(*triplets, cells, width, folds), abs=1e-9)
    assert bapps_eval.two_afc_likelihood(*(values[:2 * folds] for values in triplets), folds=folds) < 0  # enough
    plain = bapps_eval.two_afc_likelihood(*triplets)
    assert plain == bapps_eval.two_afc_likelihood(*triplets, cells=64, width=0.03, folds=5)


# ---- JND ------------------------------------------------------------------------------------------------------------


def slow_average_precision(d, same):
    """Interpolated precision over every recall that a threshold can reach, one threshold after the other."""
    points = []
    for threshold in sorted(set(d)):
        taken = [s for x, s in zip(d, same) if x <= threshold]
        points.append((sum(taken) / sum(same), sum(taken) / len(taken)))
    area, before = 0.0, 0.0
    for i, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[i:])
        before = recall
    return area


@pytest.mark.parametrize("digits", [1, 2, 9])
def test_jnd_equals_the_slow_way_with_and_without_ties(digits):
    rng = np.random.default_rng(digits)
    d = rng.random(150).round(digits)
    same = rng.integers(0, 4, 150) / 3
    assert bapps_eval.jnd_average_precision(d, same) == pytest.approx(slow_average_precision(d, same), abs=1e-12)


def test_jnd_by_hand():
    assert bapps_eval.jnd_average_precision([1, 2, 3, 4], [1, 1, 0, 0]) == 1
    assert bapps_eval.jnd_average_precision([1, 2], [0, 1]) == 0.5
    assert bapps_eval.jnd_average_precision([7, 7, 7, 7], [1, 0, 1, 0]) == 0.5  # one threshold takes all
    assert bapps_eval.jnd_average_precision([3], [0.25]) == 0.25
    with pytest.raises(ScoreError, match="^nobody calls any pair the same: there is no recall to speak of$"):
        bapps_eval.jnd_average_precision([1, 2], [0, 0])


# ---- MOS ------------------------------------------------------------------------------------------------------------


def test_correlations_have_the_sign_of_agreement():
    d = np.array([0.1, 0.2, 0.3, 0.9, 1.5, 2.0])
    assert bapps_eval.srcc(d, -d) == pytest.approx(1) and bapps_eval.krcc(d, -d) == pytest.approx(1)
    assert bapps_eval.srcc(d, d) == pytest.approx(-1)
    # one of six pairs of items is tied on one side; of the others all agree, then all but one
    tied, quality = [1, 2, 3, 3], [4, 3, 1, 2]
    assert bapps_eval.krcc(tied, quality) == pytest.approx(5 / math.sqrt(5 * 6))
    assert bapps_eval.krcc([1, 2, 3, 3], [3, 4, 1, 2]) == pytest.approx(3 / math.sqrt(5 * 6))


@pytest.mark.parametrize("parameters", [4, 5])
def test_plcc_sees_through_a_logistic_and_rmse_has_the_units_of_the_opinions(parameters):
    rng = np.random.default_rng(0)
    d = rng.random(500) * 40
    clean = 2 + 6 / (1 + np.exp((d - 15) / 4))
    assert bapps_eval.plcc(d, clean, parameters) == pytest.approx(1, abs=1e-6)
    noisy = clean + rng.normal(size=500) * 0.3
    assert bapps_eval.rmse(d, noisy, parameters) == pytest.approx(0.3, rel=0.1)
    assert bapps_eval.plcc(d, noisy, parameters) > abs(stats.pearsonr(d, noisy).statistic)
    assert bapps_eval.plcc(d * 1e-9 + 5, noisy, parameters) == pytest.approx(bapps_eval.plcc(d, noisy, parameters), abs=1e-4)


@pytest.mark.parametrize("sign", [-1, 1])
def test_logistic_fits_find_the_curve_that_made_the_opinions(sign):
    d = np.linspace(0, 9, 30)
    four = 3 + sign * 2 / (1 + np.exp(-(d - 4) / 0.7))
    five = sign * (2 * (0.5 - 1 / (1 + np.exp(1.5 * (d - 4)))) + 0.3 * d) + 1
    assert scores.logistic_fit(d, four) == pytest.approx(four, abs=1e-6)  # 4 is the default
    assert scores.logistic_fit(d, five, 5) == pytest.approx(five, abs=1e-6)
    assert np.abs(scores.logistic_fit(d, five) - five).max() > 0.05
    assert scores.logistic_curve(d, four)([-50, 4, 50]) == pytest.approx([3, 3 + sign, 3 + sign * 2], abs=1e-3)
    for score in (bapps_eval.plcc, bapps_eval.rmse, scores.fit_quality):
        assert np.all(score(d, five) == score(d, five, 4))
    assert np.array_equal(scores.logistic_curve(d, five)(d), scores.logistic_fit(d, five))
    assert bapps_eval.rmse(d, five, 5) < 1e-6 < 0.01 < bapps_eval.rmse(d, five)
    assert bapps_eval.plcc(d, five, 5) > bapps_eval.plcc(d, five) + 1e-5
    correlation, error = scores.fit_quality(d, five)
    assert (correlation, error) == (bapps_eval.plcc(d, five), bapps_eval.rmse(d, five)) and 0.9 < correlation < 0.9999
    fitted = scores.logistic_fit(d, five)
    assert correlation == pytest.approx(stats.pearsonr(fitted, five).statistic)
    assert error == pytest.approx(math.sqrt(((fitted - five) ** 2).mean()))
    assert scores.fit_quality(d, five / 1000) == pytest.approx((correlation, error / 1000))  # in any units of opinion


def test_the_logistic_function():
    found = scores._sigmoid(np.array([-1e4, -math.log(3), 0, math.log(3), 1e4]))
    assert found == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_a_fit_that_is_level_correlates_with_nothing(monkeypatch):
    monkeypatch.setattr(scores, "logistic_fit", lambda d, quality, parameters: np.full(len(d), 2.0))
    assert scores.fit_quality([1, 2, 3], [1, 2, 3]) == (0.0, pytest.approx(math.sqrt(2 / 3)))


def test_six_items_are_enough_for_a_fit():
    assert len(scores.logistic_fit([1, 2, 3, 4, 5, 6], [6, 5, 5, 3, 2, 2])) == 6
    with pytest.raises(ScoreError, match="^5 items are too few for a logistic fit: expected 6 or more$"):
        scores.logistic_fit([1, 2, 3, 4, 5], [6, 5, 4, 3, 2])


def test_what_cannot_be_correlated_is_told():
    with pytest.raises(ScoreError, match="^all values of d are equal: there is nothing to correlate$"):
        bapps_eval.srcc([1, 1, 1], [1, 2, 3])
    with pytest.raises(ScoreError, match="^all values of quality are equal"):
        bapps_eval.krcc([1, 2, 3], [2, 2, 2])
    with pytest.raises(ScoreError, match="^quality holds NaN, first at item 1"):
        bapps_eval.srcc([1, 2, 3], [2, math.nan, 2])
    with pytest.raises(ScoreError, match=r"^a distance is infinite \(PSNR of equal images\?\): no curve passes there; leave such "
                                         "items out$"):
        bapps_eval.plcc([1, 2, 3, 4, 5, math.inf], [1, 2, 3, 4, 5, 6])
    with pytest.raises(ScoreError, match="too few"):
        bapps_eval.plcc([1, 2, 3], [3, 2, 1])


# ---- every score ----------------------------------------------------------------------------------------------------

SCORES = {
    "two_afc": lambda a, b, c: bapps_eval.two_afc(a, b, c),
    "likelihood": lambda a, b, c: bapps_eval.two_afc_likelihood(a, b, c),
    "jnd": lambda a, b, c: bapps_eval.jnd_average_precision(a, c),
    "human": lambda a, b, c: bapps_eval.human_ceiling(c),
    "majority": lambda a, b, c: bapps_eval.majority_ceiling(c),
    "srcc": lambda a, b, c: bapps_eval.srcc(a, c + b),
    "krcc": lambda a, b, c: bapps_eval.krcc(a, c + b),
    "plcc": lambda a, b, c: bapps_eval.plcc(a, c + b),
    "rmse5": lambda a, b, c: bapps_eval.rmse(a, c + b, 5),
}


@pytest.mark.parametrize("name", SCORES)
def test_a_permuted_data_set_has_the_same_score_to_the_last_bit(name):
    arrays = random_triplets()
    expected = SCORES[name](*arrays)
    rng = np.random.default_rng(1)
    for _ in range(3):
        order = rng.permutation(len(arrays[0]))
        assert SCORES[name](*(array[order] for array in arrays)) == expected


@pytest.mark.parametrize("name", ["two_afc", "likelihood", "jnd", "srcc", "krcc", "plcc"])
def test_nan_is_an_error(name):
    d0, d1, judge = random_triplets()
    d0[17] = math.nan
    with pytest.raises(ScoreError, match="NaN, first at item 17"):
        SCORES[name](d0, d1, judge)


@pytest.mark.parametrize("arrays, said", [
    (([1, 2], [1], [0, 1]), "^lengths differ: d0 2, d1 1, judge 2$"),
    (([[1], [2]], [1, 2], [0, 1]), r"^d0 has shape \(2, 1\): expected one axis \(flatten it, as in lpips' \(N,1,1,1\)\)$"),
    (([], [], []), "^d0 is empty$"),
    (([1, 2], [2, 1], [0, 1.2]), r"^judge is 1.2 at item 1: expected a share of people, in \[0,1\]$"),
    (([1, 2], [2, 1], [-0.5, 2]), "^judge is -0.5 at item 0"),
    (([1, 2], [2, math.nan], [0, math.nan]), r"^d1 holds NaN, first at item 1 \(1 in all\): a metric that fails must not "
                                             "count as one that disagrees$"),
    (([1, 2], [2, 1], [math.nan, math.nan]), r"^judge holds NaN, first at item 0 \(2 in all\)"),
])
def test_arrays_that_cannot_be_scored(arrays, said):
    with pytest.raises(ScoreError, match=said):
        bapps_eval.two_afc(*arrays)


# ---- statistics -----------------------------------------------------------------------------------------------------


def test_bootstrap_means_are_those_of_drawing_items():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, 500) / 5
    fast = statistics.bootstrap_means(values[:, None], np.repeat("a", 500), 20000)["a"][:, 0]
    slow = rng.choice(values, (20000, 500)).mean(1)
    assert fast.mean() == pytest.approx(values.mean(), abs=3e-4)
    assert fast.std() == pytest.approx(slow.std(), rel=0.03)
    assert np.quantile(fast, 0.025) == pytest.approx(np.quantile(slow, 0.025), abs=2e-3)


def test_bootstrap_srcc_is_that_of_repeating_items():
    rng = np.random.default_rng(0)
    d, quality, clusters = rng.random(90).round(1), rng.random(90).round(1), np.repeat(list("abcdefghi"), 10)
    for labels in (np.arange(90), clusters):
        found = statistics.bootstrap_srcc(d, quality, labels, 7, seed=3)
        counts = np.concatenate(list(statistics.resample_counts(labels, 7, seed=3))).astype(int)
        slow = [stats.spearmanr(np.repeat(-d, c), np.repeat(quality, c)).statistic for c in counts]
        assert found == pytest.approx(slow, abs=1e-12)
    assert (counts.reshape(7, 9, 10) == counts.reshape(7, 9, 10)[:, :, :1]).all()  # whole clusters


def test_bootstrap_average_precision_is_that_of_repeating_items():
    rng = np.random.default_rng(0)
    d, same = rng.random(60).round(1), rng.integers(0, 4, 60) / 3
    found = statistics.bootstrap_average_precision(d, same, np.arange(60), 7, seed=3)
    counts = np.concatenate(list(statistics.resample_counts(np.arange(60), 7, seed=3))).astype(int)
    slow = [bapps_eval.jnd_average_precision(np.repeat(d, c), np.repeat(same, c)) for c in counts]
    assert found == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("clusters", [None, 150])
@pytest.mark.parametrize("ties", [False, True])
def test_metrics_share_the_resamples(ties, clusters):
    """Several metrics at once, some of which tie items, over more than one chunk of resamples: each as alone, and as by hand."""
    rng = np.random.default_rng(0)
    n = 600
    quality = rng.uniform(1, 5, n).round(1 if ties else 9)
    distances = [-quality + rng.normal(0, 1, n), (-quality + rng.normal(0, 1, n)).round(), rng.random(n)]
    labels = np.arange(n) if clusters is None else rng.integers(0, clusters, n)
    found = statistics.bootstrap_srccs(distances, quality, labels, 400, seed=3)
    counts = np.concatenate(list(statistics.resample_counts(labels, 400, seed=3))).astype(int)
    assert found.shape == (3, 400) and len(list(statistics.resample_counts(labels, 400, seed=3))) > 1
    for d, drawn in zip(distances, found):
        assert (statistics.bootstrap_srcc(d, quality, labels, 400, seed=3) == drawn).all()
        for i in (0, 1, 199, 399):
            slow = stats.spearmanr(np.repeat(-d, counts[i]), np.repeat(quality, counts[i])).statistic
            assert drawn[i] == pytest.approx(slow, abs=1e-12)
    same = rng.integers(0, 4, n) / 3
    found = statistics.bootstrap_average_precisions(distances, same, labels, 400, seed=3)
    for d, drawn in zip(distances, found):
        assert (statistics.bootstrap_average_precision(d, same, labels, 400, seed=3) == drawn).all()
        for i in (0, 1, 199, 399):
            slow = bapps_eval.jnd_average_precision(np.repeat(d, counts[i]), np.repeat(same, counts[i]))
            assert drawn[i] == pytest.approx(slow, abs=1e-12)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        credits = rng.random(60) < 0.7
        drawn = statistics.bootstrap_means(credits[:, None], np.repeat("a", 60), 400, seed=trial)["a"][:, 0]
        held += 0.7 in statistics.Interval.of(drawn)
    assert 0.88 < held / 200 < 0.99


def mos_run(name, noise, seed=0, lower=True, references=12):
    rng = np.random.default_rng(seed)
    n = 240
    quality = np.random.default_rng(99).random(n)
    d = -quality + noise * rng.normal(size=n)
    return make_run("mos", name, [f"{i:04d}" for i in range(n)], np.arange(n) % 4, quality, d if lower else -d,
                    references=[f"r{i % references}" for i in range(n)], lower=lower)


def test_metrics_are_ranked_and_tied_ones_are_marked():
    found = scoring.compare([mos_run("bad", 2.0), mos_run("good", 0.2), mos_run("twin", 0.2001, seed=0)], resamples=500)
    assert [entry["metric"]["name"] for entry in found["scores"]] == ["good", "twin", "bad"] and found["best"] == "good"
    good, twin, bad = (entry["against_best"] for entry in found["scores"])
    assert good is None and twin["tied"] and not bad["tied"]
    assert bad["difference"] < 0 and bad["p"] < 0.01 < twin["p"] and bad["interval"][1] < 0
    again = scoring.compare([mos_run("good", 0.2), mos_run("bad", 2.0), mos_run("twin", 0.2001, seed=0)], resamples=500)
    assert again == found


def test_a_similarity_scores_as_its_distance_does():
    distance, similarity = (scoring.score(mos_run("m", 0.3, lower=lower), 200) for lower in (True, False))
    for key in ("srcc", "krcc", "interval", "groups"):
        assert distance[key] == similarity[key]
    assert distance["plcc"] == pytest.approx(similarity["plcc"], abs=1e-6)


def test_dmos_is_turned_round():
    up = mos_run("m", 0.3)
    down = make_run("mos", "m", up.ids, up.groups, -up.opinions, up.values, references=up.references,
                    higher_is_better=False)
    assert scoring.score(down, 200)["srcc"] == scoring.score(up, 200)["srcc"] > 0.5


def test_intervals_resample_references_where_there_are_enough():
    assert scoring.score(mos_run("m", 0.3), 200)["resampled"] == "reference"
    assert scoring.score(mos_run("m", 0.3, references=9), 200)["resampled"] == "item"


def two_afc_run(name, flip, seed=5, families=FAMILIES):
    d0, d1, judge = random_triplets(1200, seed)
    rng = np.random.default_rng(int(flip * 100))
    swap = rng.random(1200) < flip
    values = np.stack([np.where(swap, d1, d0), np.where(swap, d0, d1)], 1)
    return make_run("2afc", name, [f"{i:04d}" for i in range(1200)], np.array(families)[np.arange(1200) % len(families)],
                    judge, values)


def test_paired_2afc_differences():
    found = scoring.compare([two_afc_run("noisy", 0.3), two_afc_run("clean", 0.0)], resamples=500)
    noisy = found["scores"][1]
    assert found["best"] == "clean" and not noisy["against_best"]["tied"]
    told = noisy["headline"]["score"] - found["scores"][0]["headline"]["score"]
    assert noisy["against_best"]["difference"] == pytest.approx(told)
    assert noisy["likelihood"]["means"]["All"] < found["scores"][0]["likelihood"]["means"]["All"]


def test_means_over_absent_families_are_not_made_up():
    found = scoring.score(two_afc_run("m", 0.0, families=("cnn", "traditional", "color")), 200)
    assert found["means"]["Distortions"] is not None
    assert found["means"]["Real"] is None and found["means"]["All"] is None and found["intervals"]["All"] is None
    assert not found["headline"]["complete"]


def test_ties_are_counted():
    run = two_afc_run("m", 0.0)
    found = scoring.score(run, 200)
    assert found["ties"] == int((run.values[:, 0] == run.values[:, 1]).sum()) > 0
    assert found["ties"] == sum(family["ties"] for family in found["families"].values())


def test_the_digest_of_distances_is_that_of_whole_columns(tmp_path, monkeypatch):
    """However many rows are digested at a time: files of earlier versions stay valid."""
    monkeypatch.setattr(distances, "_DIGESTED", 10**6)
    distances.write(mos_run("a", 0.2), tmp_path / "a.parquet")
    monkeypatch.setattr(distances, "_DIGESTED", 7)
    assert list(distances.read(tmp_path / "a.parquet").ids) == list(mos_run("a", 0.2).ids)


def test_only_runs_of_the_same_items_are_compared():
    one, other = mos_run("a", 0.2), mos_run("b", 0.2)
    for key, value in (("digest", "f" * 64), ("resize", "pil-bilinear-64")):
        changed = make_run("mos", "b", other.ids, other.groups, other.opinions, other.values)
        changed.dataset[key] = value
        with pytest.raises(DistancesError, match=f"another data set.*{key}"):
            scoring.compare([one, changed])
        assert len(scoring.same_items([one, changed])) == 2
    with pytest.raises(DistancesError, match="a was given twice"):
        scoring.compare([one, mos_run("a", 0.3)])


@pytest.mark.parametrize("score, name", [
    (lambda share: bapps_eval.two_afc_likelihood([0.0] * 10, [1.0] * 10, share), "judge"),
    (lambda share: bapps_eval.jnd_average_precision([0.0] * 10, share), "same"),
], ids=["likelihood", "jnd"])
def test_shares_are_refused_by_their_name(score, name):
    with pytest.raises(ScoreError, match=rf"^{name} is 1\.5 at item 9: expected a share of people, in \[0,1\]$"):
        score([0.5] * 9 + [1.5])


@pytest.mark.parametrize("ceiling", [bapps_eval.human_ceiling, bapps_eval.majority_ceiling, scores.likelihood_ceiling])
def test_ceilings_refuse_what_is_no_share(ceiling):
    with pytest.raises(ScoreError, match=r"^judge is 1\.2 at item 1"):
        ceiling([0.5, 1.2])
    with pytest.raises(ScoreError, match="^judge holds NaN, first at item 0"):
        ceiling([float("nan"), 0.5])


def test_settings_that_no_score_has_are_refused():
    with pytest.raises(ScoreError, match="^3 triplets are too few for 5 folds: expected 10 or more"):
        scores.two_afc_likelihood([0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.5, 1, 0])
    with pytest.raises(ScoreError, match="^a logistic fit has 4 or 5 parameters, not 3"):
        scores.logistic_fit([1.0, 2, 3, 4, 5, 6], [6.0, 5, 4, 3, 2, 1], parameters=3)


@pytest.mark.parametrize("ties", [False, True])
def test_resampled_references_give_the_same_numbers_either_way(ties, monkeypatch):
    """Sums over triples of clusters, and ranks that are built for each resample: to the last bit."""
    from bapps_eval import cluster_ranks

    rng = np.random.default_rng(0)
    quality = rng.uniform(1, 5, 700)
    d, clusters = -quality + rng.normal(0, 1, 700), rng.integers(0, 23, 700).astype(str)
    if ties:
        quality, d = quality.round(), d.round()
    fast = statistics.bootstrap_srcc(d, quality, clusters, 300, 5)
    monkeypatch.setattr(cluster_ranks, "MOST_CLUSTERS", 0)
    slow = statistics.bootstrap_srcc(d, quality, clusters, 300, 5)
    assert fast.tolist() == slow.tolist() and fast.std() > 0


def test_a_resample_of_one_value_has_no_order_in_clusters_either():
    d, quality = np.repeat([0.0, 1.0], 40), np.repeat([1.0, 0.0], 40)
    found = statistics.bootstrap_srcc(d, quality, np.repeat(["a", "b"], 40), 200, 1)
    assert set(found.tolist()) == {0.0, 1.0}
