"""Scores of stored distances: everything that a table or a report prints, for one metric or several."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from . import opinions, scores, significance, statistics
from .distances import Distances, DistancesError
from .scores import MEANS_2AFC, MEANS_JND

FEW_REFERENCES = 10  # below it a bootstrap over references says nothing, and intervals resample items


def score(distances: Distances, resamples: int = statistics.RESAMPLES) -> dict[str, Any]:
    """Scores of one metric on one data set, as plain numbers in a dict that JSON can hold.

    Keys: ``dataset metric run task headline ties`` and

    - 2afc: ``families`` (name to ``score interval items ties``), ``means`` (Distortions, Real, All: unweighted means
      over families, None where a family is absent), ``likelihood`` (bits per judgment), ``ceilings`` (human, majority,
      likelihood; like ``families`` and ``means``), ``intervals`` of the means;
    - jnd: ``families``, ``means``, ``intervals`` likewise;
    - mos: ``srcc krcc plcc rmse plcc5 rmse5``, ``pwrc outlier_ratio z_rmse`` and ``sigma`` (item or set: standard errors
      that these three were taken with), ``interval`` of the SRCC and ``resampled`` (reference or item), ``bands`` (per
      quality band: items, range, SRCC, RMSE), ``groups`` and ``per_reference`` (SRCC of those with 6 items or more).

    ``headline`` is the number by which metrics are ranked, with its interval: in [0,1], or SRCC.

    Raises:
        ScoreError, DistancesError: NaN, or human ratings that no score can be made of.

    Example:
        >>> import numpy as np
        >>> from bapps_eval import Distances, score
        >>> ratings = np.linspace(1, 5, 40)
        >>> def run(name, noise):
        ...     values = 6 - ratings + np.random.default_rng(0).normal(0, noise, 40)
        ...     return Distances([str(i) for i in range(40)], np.full(40, "blur"), np.full(40, "ref"), ratings, values[:, None],
        ...                      {"name": "toy", "task": "mos", "higher_is_better": True, "resize": "none", "missing": [], "notes": [],
        ...                        "digest": "0" * 64, "items": 40, "root": ""},
        ...                      {"name": name, "signature": name, "lower_is_better": True})
        ...
        >>> round(score(run('exact', 0.0), resamples=100)['srcc'], 6)
        1.0
    """
    return _scored([distances], resamples)[0][0]


def _scored(runs: Sequence[Distances], resamples: int) -> list[tuple[dict[str, Any], NDArray[Any]]]:
    """What :func:`score` gives of each run, and the bootstrap samples of its headline; all are of one data set."""
    first = runs[0]
    if any(not np.array_equal(run.opinions, first.opinions) or list(run.ids) != list(first.ids) for run in runs):
        return [each for run in runs for each in _scored([run], resamples)]
    if first.task == "2afc":
        calls = [partial(_two_afc, run, resamples) for run in runs]
    elif first.task == "jnd":
        families = _jnd_samples(runs, resamples)
        calls = [partial(_jnd, run, {family: samples[i] for family, samples in families.items()}) for i, run in enumerate(runs)]
    else:
        by = "reference" if len(set(first.references.tolist())) >= FEW_REFERENCES else "item"
        drawn = statistics.bootstrap_srccs([run.closeness[:, 0] for run in runs], first.quality,
                                           first.references if by == "reference" else first.ids, resamples, _seed(first))
        calls = [partial(_mos, run, samples, by) for run, samples in zip(runs, drawn)]
    with ThreadPoolExecutor(min(len(runs), os.cpu_count() or 1)) as pool:  # numpy and scipy leave the interpreter to others
        found = list(pool.map(lambda call: call(), calls))
    return [({"dataset": run.dataset, "metric": run.metric, "run": run.run, "task": run.task, **facts}, samples)
            for run, (facts, samples) in zip(runs, found)]


def compare(runs: Sequence[Distances], resamples: int = statistics.RESAMPLES,
            subject: str | None = None) -> dict[str, Any]:
    """Scores of several metrics on one data set, best first, and paired tests against the best.

    Args:
        subject: a metric that is tested against each of the others, too.

    Returns:
        ``scores``: what :func:`score` gives, each with ``against_best``: ``difference interval p tied``; None for the
        best itself. ``tied`` says that the paired confidence interval includes 0 (not corrected for the number of metrics);
        ``p_holm`` is ``p`` corrected for all of the comparisons (Holm). MOS sets add ``mrr``: ``z p p_holm`` of the test
        by Meng, Rosenthal and Rubin, None where a correlation is perfect.
        ``duels``, with a subject: the same of it against each other metric, by their names.

    Raises:
        DistancesError: the runs are of different data sets, two of one metric, or none of the subject.

    Example:
        >>> import numpy as np
        >>> from bapps_eval import Distances, compare
        >>> ratings = np.linspace(1, 5, 40)
        >>> def run(name, noise):
        ...     values = 6 - ratings + np.random.default_rng(0).normal(0, noise, 40)
        ...     return Distances([str(i) for i in range(40)], np.full(40, "blur"), np.full(40, "ref"), ratings, values[:, None],
        ...                      {"name": "toy", "task": "mos", "higher_is_better": True, "resize": "none", "missing": [], "notes": [],
        ...                        "digest": "0" * 64, "items": 40, "root": ""},
        ...                      {"name": name, "signature": name, "lower_is_better": True})
        ...
        >>> compare([run('noisy', 2.0), run('exact', 0.0)], resamples=100)['best']
        'exact'
    """
    first = runs[0]
    for other in runs[1:]:
        for key in ("digest", "resize", "task"):
            if other.dataset[key] != first.dataset[key]:
                raise DistancesError(f"{other.metric['name']} was run on another data set than {first.metric['name']} "
                                     f"({key} differs: {other.dataset[key]} and {first.dataset[key]}): "
                                     "scores of one table must come from the same items, resized alike")
    names = [run.metric["name"] for run in runs]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DistancesError(f"{', '.join(twice)} was given twice for {first.dataset['name']}: leave one of the runs out")
    found = sorted(((run, *each) for run, each in zip(runs, _scored(runs, resamples))), key=lambda each: -each[1]["headline"]["score"])
    best = found[0]
    best[1]["against_best"] = None
    for one in found[1:]:
        one[1]["against_best"] = _against(one, best, resamples)
    _correct([one[1]["against_best"] for one in found[1:]])
    facts = {"dataset": first.dataset, "task": first.task, "best": best[1]["metric"]["name"],
             "scores": [entry for _, entry, _ in found]}
    if subject is None:
        return facts
    if not (mine := [one for one in found if one[1]["metric"]["name"] == subject]):
        raise DistancesError(f"{subject} was not run on {first.dataset['name']}: got {', '.join(names)}")
    duels = {one[1]["metric"]["name"]: _against(mine[0], one, resamples) for one in found if one is not mine[0]}
    _correct(list(duels.values()))
    return facts | {"duels": duels}


_Scored = tuple[Distances, dict[str, Any], NDArray[Any]]


def _against(one: _Scored, other: _Scored, resamples: int) -> dict[str, Any]:
    """The paired difference of two headlines, and whether it is significant."""
    (run, entry, drawn), (other_run, other_entry, other_drawn) = one, other
    # triplets are not drawn alike for all metrics: two of them are drawn together, once more
    apart = _paired_credits(run, other_run, resamples) if run.task == "2afc" else drawn - other_drawn
    interval = statistics.Interval.of(apart)
    facts = {"difference": entry["headline"]["score"] - other_entry["headline"]["score"],
             "interval": [interval.low, interval.high], "p": statistics.p_value(apart), "tied": 0 in interval}
    if run.task == "mos":
        test = significance.compare_srcc(run.closeness[:, 0], other_run.closeness[:, 0], run.quality) if len(run.ids) > 3 else None
        facts["mrr"] = None if test is None else {"z": test.z, "p": test.p}
    return facts


def _correct(comparisons: Sequence[dict[str, Any]]) -> None:
    """Add the p-values that are corrected for all of these comparisons."""
    tests = [test for test in (each.get("mrr") for each in comparisons) if test is not None]
    for family in (comparisons, tests):
        for each, p in zip(family, significance.holm([each["p"] for each in family]) if family else ()):
            each["p_holm"] = float(p)


def same_items(runs: Sequence[Distances]) -> list[list[Distances]]:
    """Runs that can be compared, together: of the same items, resized alike."""
    found: dict[tuple[str, str], list[Distances]] = {}
    for run in runs:
        found.setdefault((run.dataset["digest"], run.dataset["resize"]), []).append(run)
    return list(found.values())


# ---- 2AFC -----------------------------------------------------------------------------------------------------------


def _two_afc(run: Distances, resamples: int) -> tuple[dict[str, Any], NDArray[Any]]:
    (d0, d1), judge, groups = run.closeness.T, run.opinions, run.groups
    credits = _credits(run)
    families = sorted(set(groups.tolist()), key=_paper_order(MEANS_2AFC["All"]))
    in_family = {family: groups == family for family in families}
    samples = statistics.bootstrap_means(credits[:, None], groups, resamples, _seed(run))
    samples = {family: drawn[:, 0] for family, drawn in samples.items()}
    points = {family: scores.mean(credits[mine]) for family, mine in in_family.items()}
    drawn = np.mean(list(samples.values()), 0)

    def over(function: Callable[..., float | None], *arrays: NDArray[Any]) -> dict[str, Any]:
        found = {f: function(*(a[mine] for a in arrays)) for f, mine in in_family.items()}
        return {"families": found, "means": _means(found, MEANS_2AFC)}

    def bits(d0: NDArray[Any], d1: NDArray[Any], judge: NDArray[Any]) -> float | None:
        return scores.two_afc_likelihood(d0, d1, judge) if len(judge) >= 100 else None

    return {
        "families": {f: {"score": points[f], "interval": _interval(samples[f]), "items": int(mine.sum()),
                         "ties": int((d0 == d1)[mine].sum())} for f, mine in in_family.items()},
        "means": _means(points, MEANS_2AFC),
        "intervals": {name: None if value is None else _interval(value)
                      for name, value in _means(samples, MEANS_2AFC).items()},
        "headline": {"name": "All", "score": float(np.mean(list(points.values()))),
                     "interval": _interval(drawn), "complete": _have(points, MEANS_2AFC["All"])},
        "ties": int((d0 == d1).sum()),
        "likelihood": over(bits, d0, d1, judge),
        "ceilings": {"human": over(scores.human_ceiling, judge), "majority": over(scores.majority_ceiling, judge),
                     "likelihood": over(scores.likelihood_ceiling, judge)},
    }, drawn


def _paired_credits(run: Distances, other: Distances, resamples: int) -> NDArray[Any]:
    """Bootstrap samples of the difference of two headlines."""
    credits = np.stack([_credits(run), _credits(other)], 1)
    samples = statistics.bootstrap_means(credits, run.groups, resamples, _seed(run))
    return np.mean([a[:, 0] - a[:, 1] for a in samples.values()], 0)


def _credits(run: Distances) -> NDArray[Any]:
    d0, d1 = run.closeness.T
    return scores.two_afc_credits(d0, d1, run.opinions)


# ---- JND ------------------------------------------------------------------------------------------------------------


def _jnd_samples(runs: Sequence[Distances], resamples: int) -> dict[str, NDArray[Any]]:
    """Per family ``(runs,resamples)`` average precisions."""
    first, found = runs[0], {}
    for family in sorted(set(first.groups.tolist()), key=_paper_order(MEANS_2AFC["All"])):
        mine = first.groups == family
        found[family] = statistics.bootstrap_average_precisions(
            [run.closeness[mine, 0] for run in runs], first.opinions[mine], np.asarray(first.ids)[mine], resamples, _seed(first))
    return found


def _jnd(run: Distances, samples: dict[str, NDArray[Any]]) -> tuple[dict[str, Any], NDArray[Any]]:
    d, same, groups = run.closeness[:, 0], run.opinions, run.groups
    points, facts = {}, {}
    for family in samples:
        mine = groups == family
        points[family] = scores.jnd_average_precision(d[mine], same[mine])
        facts[family] = {"score": points[family], "interval": _interval(samples[family]), "items": int(mine.sum()),
                         "ties": _ties(d[mine])}
    drawn = np.mean(list(samples.values()), 0)
    return {"families": facts, "means": _means(points, MEANS_JND),
            "intervals": {name: None if value is None else _interval(value)
                          for name, value in _means(samples, MEANS_JND).items()},
            "headline": {"name": "mean", "score": float(np.mean(list(points.values()))),
                         "interval": _interval(drawn), "complete": _have(points, MEANS_JND["mean"])},
            "ties": sum(family["ties"] for family in facts.values())}, drawn


# ---- MOS ------------------------------------------------------------------------------------------------------------


def _mos(run: Distances, drawn: NDArray[Any], by: str) -> tuple[dict[str, Any], NDArray[Any]]:
    d, quality = run.closeness[:, 0], run.quality
    rank = scores.srcc(d, quality)
    found: dict[str, Any] = {"srcc": rank, "krcc": scores.krcc(d, quality), "pwrc": opinions.pwrc(d, quality, run.sigma),
                             "sigma": "set" if run.sigma is None else "item"}
    order = np.lexsort((quality, d))
    sorted_d, sorted_quality = d[order], quality[order]
    finite, fitted = bool(np.isfinite(d).all()), None
    for parameters, suffix in ((5, "5"), (4, "")):
        fitted = scores.logistic_fit(sorted_d, sorted_quality, parameters) if finite else None
        correlation, error = (None, None) if fitted is None else scores.agreement_of_fit(fitted, sorted_quality)
        found |= {f"plcc{suffix}": correlation, f"rmse{suffix}": error}
    errors = None if fitted is None else opinions.standardized_errors(
        sorted_d, sorted_quality, None if run.sigma is None else run.sigma[order], fitted)
    found |= {"outlier_ratio": None if errors is None else float(np.mean(np.abs(errors) > opinions.NORMAL_95)),
              "z_rmse": None if errors is None else float(np.sqrt(np.mean(errors**2)))}
    interval = _interval(drawn)
    return {**found, "interval": interval, "resampled": by, "bands": _bands(run, sorted_d, sorted_quality, fitted),
            "groups": _per(run, run.groups), "per_reference": _per(run, run.references),
            "headline": {"name": "srcc", "score": rank, "interval": interval, "complete": not run.dataset["missing"]},
            "ties": _ties(d)}, drawn


def _bands(run: Distances, d: NDArray[Any], quality: NDArray[Any], fitted: NDArray[Any] | None) -> dict[str, dict[str, Any]]:
    """:func:`~bapps_eval.opinions.band_scores`, with ranges in units of the opinions."""
    found = opinions.band_scores(d, quality, fitted)
    if not run.dataset["higher_is_better"]:
        for band in found.values():
            band["range"] = [-value for value in band["range"]]
    return found


def _per(run: Distances, labels: NDArray[Any]) -> dict[str, float | None]:
    """SRCC within each label; None where there are too few items, or all alike."""
    names, member = np.unique(labels, return_inverse=True)
    parts = np.split(np.argsort(member, kind="stable"), np.cumsum(np.bincount(member))[:-1])
    found: dict[str, float | None] = {}
    for label, mine in zip(names.tolist(), parts):
        d, quality = run.closeness[mine, 0], run.quality[mine]
        enough = len(mine) >= 6 and len(set(d.tolist())) > 1 and len(set(quality.tolist())) > 1
        found[label] = scores.srcc(d, quality) if enough else None
    return found


# ---- shared ---------------------------------------------------------------------------------------------------------


def _seed(run: Distances) -> int:
    """The same for every metric on a data set."""
    return int(run.dataset["digest"][:8], 16)


def _means(values: dict[str, Any], means: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Unweighted means over families, of numbers or of bootstrap samples; None where a family is absent."""
    return {name: np.mean([values[f] for f in families], 0) if _have(values, families) else None
            for name, families in means.items()}


def _have(values: dict[str, Any], families: Sequence[str]) -> bool:
    return all(values.get(family) is not None for family in families)


def _paper_order(families: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    return lambda family: (families.index(family) if family in families else len(families), family)


def _interval(samples: NDArray[Any]) -> list[float]:
    interval = statistics.Interval.of(samples)
    return [interval.low, interval.high]


def _ties(values: NDArray[Any]) -> int:
    """Items that share their distance with another."""
    _, counts = np.unique(values, return_counts=True)
    return int(counts[counts > 1].sum())
