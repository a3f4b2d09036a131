"""Outlier ratio, Z-RMSE, PWRC, quality bands, and the tests of differences, against computations by other ways."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from bapps_eval import (Distances, ScoreError, band_scores, compare, holm, meng_rosenthal_rubin, outlier_ratio, plcc, pwrc,
                        quality_bands, rmse, score, srcc, z_rmse)
from bapps_eval.opinions import standardized_errors
from bapps_eval.scores import logistic_fit
from bapps_eval.significance import compare_srcc


def opinions_of(n: int = 60, seed: int = 0, noise: float = 0.6, coarse: bool = False):
    rng = np.random.default_rng(seed)
    quality = rng.uniform(1, 5, n)
    d = -quality + rng.normal(0, noise, n)
    if coarse:  # many ties on both sides
        quality, d = quality.round(), d.round()
    return d, quality, rng.uniform(0.05, 0.4, n)


def run_of(values, quality, name: str = "m", sigma=None, higher: bool = True) -> Distances:
    n = len(quality)
    dataset = {"name": "set", "task": "mos", "higher_is_better": higher, "resize": "none", "missing": [], "notes": [],
               "digest": "ab" * 32, "items": n, "root": ""}
    return Distances([f"i{i:03d}" for i in range(n)], np.array([f"g{i % 3}" for i in range(n)]),
                     np.array([f"r{i % 12:02d}" for i in range(n)]), np.asarray(quality), np.asarray(values)[:, None], dataset,
                     {"name": name, "signature": name, "lower_is_better": True}, {}, sigma)


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_outlier_ratio_and_z_rmse_by_hand():
    d, quality, sigma = opinions_of()
    errors = logistic_fit(d, quality) - quality
    assert outlier_ratio(d, quality, sigma) == np.mean(np.abs(errors) > 1.96 * sigma)
    assert z_rmse(d, quality, sigma) == pytest.approx(np.sqrt(np.mean((errors / sigma) ** 2)), rel=1e-12)
    assert z_rmse(d, quality) == pytest.approx(rmse(d, quality) / quality.std(), rel=1e-9)
    assert outlier_ratio(d, quality) == np.mean(np.abs(errors) > 1.96 * quality.std())


def test_z_rmse_without_sigma_follows_from_plcc():
    """A least-squares fit explains plcc² of the variance."""
    d, quality, _ = opinions_of(400)
    assert z_rmse(d, quality) == pytest.approx(np.sqrt(1 - plcc(d, quality) ** 2), abs=1e-4)


def test_errors_of_people_themselves_give_the_nominal_ratio():
    """Predictions that are as far off as the confidence intervals say: 5 % outliers, Z-RMSE 1."""
    rng = np.random.default_rng(1)
    truth = np.linspace(1, 5, 20_000)
    sigma = rng.uniform(0.1, 0.3, len(truth))
    errors = standardized_errors(-truth, truth + sigma * rng.normal(size=len(truth)), sigma, fitted=truth)
    assert np.mean(np.abs(errors) > 1.96) == pytest.approx(0.05, abs=0.006) and np.std(errors) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("function", [outlier_ratio, z_rmse])
def test_sigma_must_be_positive(function):
    d, quality, sigma = opinions_of(12)
    sigma[3] = 0
    with pytest.raises(ScoreError, match="sigma is 0 at item 3.*positive standard error"):
        function(d, quality, sigma)
    with pytest.raises(ScoreError, match="lengths differ"):
        function(d, quality, sigma[:5])


# ---- PWRC -----------------------------------------------------------------------------------------------------------


def pwrc_by_pairs(d, quality, sigma=None, weighted=True) -> float:
    """Every pair at every threshold, as the paper's equations read."""
    n, theirs, mine = len(d), stats.rankdata(quality), stats.rankdata(-np.asarray(d))
    low, high = (0, np.ptp(quality)) if sigma is None else (2 * min(sigma), 2 * max(sigma))
    curve = []
    for threshold in np.linspace(low, high, 32):
        gained = weight = 0.0
        for i in range(n):
            for j in range(i):
                if abs(quality[i] - quality[j]) > threshold:
                    level = (max(theirs[i], theirs[j]) - 1) / (n - 1)
                    moved = (abs(theirs[i] - mine[i]) + abs(theirs[j] - mine[j])) / (2 * (n - 1))
                    m = np.exp(level) + np.exp(moved) - 2 if weighted else 1
                    gained += m * np.sign(quality[i] - quality[j]) * np.sign(d[j] - d[i])
                    weight += m
        curve.append(gained / weight if weight else curve[-1])
    return float(np.trapz(curve, dx=1 / 31))


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("with_sigma", [False, True])
def test_pwrc_is_that_of_all_pairs(coarse, weighted, with_sigma):
    d, quality, sigma = opinions_of(41, 3, 1.5, coarse)
    sigma = sigma if with_sigma else None
    assert pwrc(d, quality, sigma, weighted=weighted) == pytest.approx(pwrc_by_pairs(d, quality, sigma, weighted), abs=1e-12)


def test_unweighted_pwrc_is_the_area_of_the_sorting_accuracy_of_zenstats():
    """Its ``pwrc_sa_st_auc`` (Rust), read and written again: share of pairs sorted right, pairs beyond the threshold."""
    d, quality, _ = opinions_of(80, 5, 1.0)
    i, j = np.triu_indices(len(d), 1)
    gap, right = np.abs(quality[i] - quality[j]), (quality[i] > quality[j]) == (d[i] < d[j])
    thresholds = np.linspace(0, gap.max(), 128)
    curve = [right[gap > t].mean() if (gap > t).any() else None for t in thresholds]
    curve[-1] = curve[-2]
    assert (1 + pwrc(d, quality, weighted=False)) / 2 == pytest.approx(np.trapz(curve, thresholds) / gap.max(), abs=3e-3)


def test_pwrc_rewards_the_order_of_good_images():
    quality = np.arange(20.0)
    wrong_low, wrong_high = -quality.copy(), -quality.copy()
    wrong_low[[0, 1, 2]], wrong_high[[17, 18, 19]] = wrong_low[[2, 1, 0]], wrong_high[[19, 18, 17]]
    assert srcc(wrong_low, quality) == pytest.approx(srcc(wrong_high, quality))
    assert pwrc(wrong_high, quality) < pwrc(wrong_low, quality) < 1
    assert pwrc(wrong_high, quality, weighted=False) == pytest.approx(pwrc(wrong_low, quality, weighted=False))


def test_pwrc_where_no_pair_can_be_told():
    with pytest.raises(ScoreError, match="no two opinion scores differ by more than 20"):
        pwrc([3, 2, 1], [1, 2, 3], [10, 10, 10])
    assert pwrc([3, 2, 1], [1, 2, 3], [0.1, 0.1, 0.1]) == 1  # one threshold


@pytest.mark.parametrize("function", [outlier_ratio, z_rmse, pwrc])
def test_the_order_of_items_changes_no_bit(function):
    d, quality, sigma = opinions_of(90, 7, coarse=True)
    order = np.random.default_rng(0).permutation(90)
    sigma = np.full(90, 0.3)
    assert function(d, quality, sigma) == function(d[order], quality[order], sigma)
    assert function(d, quality) == function(d[order], quality[order])


# ---- bands ----------------------------------------------------------------------------------------------------------


def test_bands_are_the_quarters():
    d, quality, _ = opinions_of(80)
    member = quality_bands(quality)
    assert np.bincount(member).tolist() == [20] * 4 and (np.diff(member[np.argsort(quality)]) >= 0).all()
    found = band_scores(d, quality, logistic_fit(d, quality))
    assert list(found) == ["lowest", "low", "high", "highest"]
    mine = np.argsort(quality)[60:]
    assert found["highest"]["srcc"] == pytest.approx(stats.spearmanr(-d[mine], quality[mine]).statistic, abs=1e-12)
    errors = (logistic_fit(d, quality) - quality)[mine]
    assert found["highest"]["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-12)
    assert found["highest"]["range"] == [quality[mine].min(), quality[mine].max()]


def test_bands_keep_equal_scores_together():
    quality = np.array([1.0] * 30 + [2, 3, 4, 5, 6, 7, 8, 9])
    found = band_scores(np.arange(38.0), quality)
    assert found["lowest"]["items"] == 30 and found["lowest"]["srcc"] is None and found["lowest"]["rmse"] is None
    assert sum(band["items"] for band in found.values()) == 38


# ---- tests of differences -------------------------------------------------------------------------------------------


def test_meng_rosenthal_rubin_is_the_papers_example():
    """Psychological Bulletin 111(1), 1992, page 173: r = .63 and -.03, between them -.19, N = 15 give Z = 1.68, p = .047
    one-tailed."""
    test = meng_rosenthal_rubin(0.63, -0.03, -0.19, 15)
    assert test.z == pytest.approx(1.68, abs=0.005) and test.p / 2 == pytest.approx(0.047, abs=0.0005)
    assert meng_rosenthal_rubin(-0.03, 0.63, -0.19, 15).z == -test.z


def test_meng_rosenthal_rubin_holds_its_level():
    """Two metrics that are equally good, 4,000 times: some 5 % are called different."""
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):
        quality, shared = rng.normal(size=(2, 100))
        a, b = quality + shared + 0.5 * rng.normal(size=(2, 100))
        r = np.corrcoef([a, b, quality])
        found.append(meng_rosenthal_rubin(r[0, 2], r[1, 2], r[0, 1], 100).p < 0.05)
    assert np.mean(found) == pytest.approx(0.05, abs=0.012)


def test_compare_srcc_uses_rank_correlations():
    d, quality, _ = opinions_of(50)
    other = -quality + np.random.default_rng(9).normal(0, 1.5, 50)
    found = compare_srcc(d, other, quality)
    r = [stats.spearmanr(a, b).statistic for a, b in ((-d, quality), (-other, quality), (d, other))]
    assert (found.z, found.p) == pytest.approx((meng_rosenthal_rubin(*r, 50).z, meng_rosenthal_rubin(*r, 50).p), rel=1e-9)
    assert found.z > 2 and found.p == 2 * stats.norm.sf(found.z)
    assert compare_srcc(d, d**3, quality).p == 1  # a monotone function of the first
    assert compare_srcc(-quality, d, quality) is None  # a perfect correlation


@pytest.mark.parametrize("r, match", [((1, 0.2, 0.3), "first is 1"), ((0.2, -1.5, 0.3), "second is -1.5"),
                                      ((0.1, 0.2, float("nan")), "between is nan")])
def test_correlations_that_cannot_be_tested(r, match):
    with pytest.raises(ScoreError, match=match):
        meng_rosenthal_rubin(*r, 30)
    with pytest.raises(ScoreError, match="3 items are too few"):
        meng_rosenthal_rubin(0.1, 0.2, 0.3, 3)


def test_holm_is_that_of_statsmodels():
    """``multipletests(p, method="holm")`` of statsmodels 0.15.0."""
    p = [0.001, 0.04, 0.03, 0.2, 0.012, 0.5, 0.049]
    assert holm(p) == pytest.approx([0.007, 0.16, 0.15, 0.4, 0.072, 0.5, 0.16], abs=1e-12)
    assert holm([0.03]).tolist() == [0.03] and holm([0.9, 0.8]).tolist() == [1, 1]
    with pytest.raises(ScoreError, match="p is 1.2 at item 1"):
        holm([0.1, 1.2])


# ---- in the comparison ----------------------------------------------------------------------------------------------


def test_a_score_has_them_all():
    d, quality, sigma = opinions_of(120)
    found = score(run_of(d, quality, sigma=sigma), 200)
    assert found["sigma"] == "item" and found["outlier_ratio"] == outlier_ratio(d, quality, sigma)
    assert found["z_rmse"] == z_rmse(d, quality, sigma) and found["pwrc"] == pwrc(d, quality, sigma)
    assert found["plcc"] == plcc(d, quality) and found["rmse"] == rmse(d, quality)
    assert found["bands"] == band_scores(d, quality, logistic_fit(d, quality))
    assert score(run_of(d, quality), 200)["sigma"] == "set"


def test_bands_of_dmos_are_told_in_its_units():
    d, quality, _ = opinions_of(80)
    found = score(run_of(d, -quality, higher=False), 200)
    assert found["bands"]["highest"]["range"] == pytest.approx([-v for v in band_scores(d, quality)["highest"]["range"]])


def test_infinite_distances_leave_out_what_needs_a_fit():
    d, quality, _ = opinions_of(40)
    d[7] = -np.inf
    found = score(run_of(d, quality), 200)
    assert found["outlier_ratio"] is found["z_rmse"] is found["bands"]["low"]["rmse"] is None and found["pwrc"] > 0.5


def test_comparisons_are_corrected_for_their_number():
    _, quality, _ = opinions_of(90)
    rng = np.random.default_rng(2)
    runs = [run_of(-quality + rng.normal(0, noise, 90), quality, f"m{noise}") for noise in (0.3, 0.5, 0.6, 0.7, 1.2)]
    found = compare(runs, 500, subject="m0.6")
    for family in ([s["against_best"] for s in found["scores"][1:]], list(found["duels"].values())):
        assert len(family) == 4
        assert [each["p_holm"] for each in family] == holm([each["p"] for each in family]).tolist()
        assert [each["mrr"]["p_holm"] for each in family] == holm([each["mrr"]["p"] for each in family]).tolist()
    best, last = runs[0], runs[-1]
    test = compare_srcc(last.values[:, 0], best.values[:, 0], quality)
    assert found["scores"][-1]["against_best"]["mrr"]["z"] == test.z < 0
    assert found["scores"][0]["against_best"] is None


def test_standard_errors_survive_the_file(tmp_path):
    from bapps_eval import distances

    d, quality, sigma = opinions_of(30)
    for run in (run_of(d, quality, sigma=sigma), run_of(d, quality)):
        distances.write(run, tmp_path / "a.parquet")
        back = distances.read(tmp_path / "a.parquet")
        assert (back.sigma is None) == (run.sigma is None)
        assert back.sigma is None or back.sigma.tolist() == sigma.tolist()
    assert dataclasses.replace(run_of(d, quality), sigma=sigma).sigma is sigma
