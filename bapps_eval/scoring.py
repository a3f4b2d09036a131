"""From distances to scores: everything that a table or a report prints, for one metric or for several side by side."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from . import scores, statistics
from .distances import Distances, DistancesError
from .scores import MEANS_2AFC, MEANS_JND

FEW_REFERENCES = 10  # below it a bootstrap over references says nothing, and intervals resample items

HEADLINES = {"2afc": ("All", "2AFC agreement"), "jnd": ("mean", "JND average precision"), "mos": ("srcc", "SRCC")}


def score(distances: Distances, resamples: int = statistics.RESAMPLES) -> dict[str, Any]:
    """Scores of one metric on one data set, as plain numbers in a dict that JSON can hold.

    Keys: ``dataset metric run task headline ties`` and

    - 2afc: ``families`` (name to ``score interval items ties``), ``means`` (Distortions, Real, All: unweighted means
      over families, None where a family is absent), ``likelihood`` (bits per judgement), ``ceilings`` (human, majority,
      likelihood; like ``families`` and ``means``), ``intervals`` of the means;
    - jnd: ``families``, ``means``, ``intervals`` likewise;
    - mos: ``srcc krcc plcc rmse plcc5 rmse5``, ``interval`` of the SRCC and ``resampled`` (reference or item),
      ``groups`` and ``per_reference`` (SRCC of those with 6 items or more).

    ``headline`` is the number by which metrics are ranked, with its interval: in [0,1], or SRCC.

    Raises:
        ScoreError, DistancesError: NaN, or opinions that no score can be made of.
    """
    return {"dataset": distances.dataset, "metric": distances.metric, "run": distances.run, "task": distances.task,
            **{"2afc": _two_afc, "jnd": _jnd, "mos": _mos}[distances.task](distances, resamples)}


def compare(runs: Sequence[Distances], resamples: int = statistics.RESAMPLES) -> dict[str, Any]:
    """Scores of several metrics on one data set, best first, and paired tests against the best.

    Returns:
        ``scores``: what :func:`score` gives, each with ``against_best``: ``difference interval p tied``; None for the
        best itself. ``tied`` says that the paired interval holds zero (not corrected for the number of metrics).

    Raises:
        DistancesError: the runs are of different data sets, or two of one metric.
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
        raise DistancesError(f"{', '.join(twice)} came twice for {first.dataset['name']}: leave one of the runs out")
    found = sorted(((score(run, resamples), run) for run in runs), key=lambda pair: -pair[0]["headline"]["score"])
    best, best_run = found[0]
    for entry, run in found:
        entry["against_best"] = None if run is best_run else _against(run, best_run, resamples)
    return {"dataset": first.dataset, "task": first.task, "best": best["metric"]["name"],
            "scores": [entry for entry, _ in found]}


def same_items(runs: Sequence[Distances]) -> list[list[Distances]]:
    """Runs that can be compared, together: of the same items, resized alike."""
    found: dict[tuple[str, str], list[Distances]] = {}
    for run in runs:
        found.setdefault((run.dataset["digest"], run.dataset["resize"]), []).append(run)
    return list(found.values())


def _against(run: Distances, best: Distances, resamples: int) -> dict[str, Any]:
    seed = _seed(run)
    if run.task == "2afc":
        credits = np.stack([_credits(run), _credits(best)], 1)
        samples = statistics.bootstrap_means(credits, run.groups, resamples, seed)
        drawn = np.mean([a[:, 0] - a[:, 1] for a in samples.values()], 0)
        told = np.mean([_mean_of(credits[run.groups == g, 0]) - _mean_of(credits[run.groups == g, 1]) for g in samples])
    else:
        sampled = _srcc_samples if run.task == "mos" else _jnd_samples
        drawn = sampled(run, resamples) - sampled(best, resamples)
        told = _headline_score(run) - _headline_score(best)
    interval = statistics.Interval.of(drawn)
    return {"difference": float(told), "interval": [interval.low, interval.high],
            "p": statistics.p_value(drawn), "tied": 0 in interval}


# ---- 2AFC -----------------------------------------------------------------------------------------------------------


def _two_afc(run: Distances, resamples: int) -> dict[str, Any]:
    (d0, d1), judge, groups = run.closeness.T, run.opinions, run.groups
    credits = _credits(run)
    families = sorted(set(groups.tolist()), key=_paper_order(MEANS_2AFC["All"]))
    in_family = {family: groups == family for family in families}
    samples = statistics.bootstrap_means(credits[:, None], groups, resamples, _seed(run))
    samples = {family: drawn[:, 0] for family, drawn in samples.items()}
    points = {family: _mean_of(credits[mine]) for family, mine in in_family.items()}

    def over(function, *arrays: np.ndarray) -> dict[str, Any]:
        found = {f: function(*(a[mine] for a in arrays)) for f, mine in in_family.items()}
        return {"families": found, "means": _means(found, MEANS_2AFC)}

    def bits(d0: np.ndarray, d1: np.ndarray, judge: np.ndarray) -> float | None:
        return scores.two_afc_likelihood(d0, d1, judge) if len(judge) >= 100 else None

    return {
        "families": {f: {"score": points[f], "interval": _interval(samples[f]), "items": int(mine.sum()),
                         "ties": int((d0 == d1)[mine].sum())} for f, mine in in_family.items()},
        "means": _means(points, MEANS_2AFC),
        "intervals": {name: None if value is None else _interval(value)
                      for name, value in _means(samples, MEANS_2AFC).items()},
        "headline": {"name": "All", "score": float(np.mean(list(points.values()))),
                     "interval": _interval(np.mean(list(samples.values()), 0)), "complete": _all_there(points)},
        "ties": int((d0 == d1).sum()),
        "likelihood": over(bits, d0, d1, judge),
        "ceilings": {"human": over(scores.human_ceiling, judge), "majority": over(scores.majority_ceiling, judge),
                     "likelihood": over(scores.likelihood_ceiling, judge)},
    }


def _credits(run: Distances) -> np.ndarray:
    return scores.two_afc_credits(*run.closeness.T, run.opinions)


# ---- JND ------------------------------------------------------------------------------------------------------------


def _jnd(run: Distances, resamples: int) -> dict[str, Any]:
    d, same, groups = run.closeness[:, 0], run.opinions, run.groups
    families = sorted(set(groups.tolist()), key=_paper_order(MEANS_2AFC["All"]))
    points, samples, told = {}, {}, {}
    for family in families:
        mine = groups == family
        points[family] = scores.jnd_average_precision(d[mine], same[mine])
        samples[family] = _jnd_family_samples(run, family, resamples)
        told[family] = {"score": points[family], "interval": _interval(samples[family]), "items": int(mine.sum()),
                        "ties": _ties(d[mine])}
    return {"families": told, "means": _means(points, MEANS_JND),
            "intervals": {name: None if value is None else _interval(value)
                          for name, value in _means(samples, MEANS_JND).items()},
            "headline": {"name": "mean", "score": float(np.mean(list(points.values()))),
                         "interval": _interval(np.mean(list(samples.values()), 0)),
                         "complete": all(family in points for family in MEANS_JND["mean"])},
            "ties": sum(family["ties"] for family in told.values())}


def _jnd_family_samples(run: Distances, family: str, resamples: int) -> np.ndarray:
    mine = run.groups == family
    return statistics.bootstrap_average_precision(
        run.closeness[mine, 0], run.opinions[mine], np.asarray(run.ids)[mine], resamples, _seed(run))


def _jnd_samples(run: Distances, resamples: int) -> np.ndarray:
    return np.mean([_jnd_family_samples(run, f, resamples) for f in sorted(set(run.groups.tolist()))], 0)


# ---- MOS ------------------------------------------------------------------------------------------------------------


def _mos(run: Distances, resamples: int) -> dict[str, Any]:
    d, quality = run.closeness[:, 0], run.quality
    rank = scores.srcc(d, quality)
    found: dict[str, Any] = {"srcc": rank, "krcc": scores.krcc(d, quality)}
    for parameters, suffix in ((4, ""), (5, "5")):
        finite = np.isfinite(d).all()
        correlation, error = scores.fit_quality(d, quality, parameters) if finite else (None, None)
        found |= {f"plcc{suffix}": correlation, f"rmse{suffix}": error}
    interval = _interval(_srcc_samples(run, resamples))
    return {**found, "interval": interval, "resampled": _resampled(run),
            "groups": _per(run, run.groups), "per_reference": _per(run, run.references),
            "headline": {"name": "srcc", "score": rank, "interval": interval, "complete": not run.dataset["missing"]},
            "ties": _ties(d)}


def _per(run: Distances, labels: np.ndarray) -> dict[str, float | None]:
    """SRCC within each label; None where there are too few items, or all alike."""
    found: dict[str, float | None] = {}
    for label in sorted(set(labels.tolist())):
        mine = labels == label
        d, quality = run.closeness[mine, 0], run.quality[mine]
        enough = mine.sum() >= 6 and len(set(d.tolist())) > 1 and len(set(quality.tolist())) > 1
        found[label] = scores.srcc(d, quality) if enough else None
    return found


def _resampled(run: Distances) -> str:
    return "reference" if len(set(run.references.tolist())) >= FEW_REFERENCES else "item"


def _srcc_samples(run: Distances, resamples: int) -> np.ndarray:
    clusters = run.references if _resampled(run) == "reference" else run.ids
    return statistics.bootstrap_srcc(run.closeness[:, 0], run.quality, clusters, resamples, _seed(run))


# ---- shared ---------------------------------------------------------------------------------------------------------


def _headline_score(run: Distances) -> float:
    if run.task == "mos":
        return scores.srcc(run.closeness[:, 0], run.quality)
    return float(np.mean([scores.jnd_average_precision(run.closeness[run.groups == f, 0], run.opinions[run.groups == f])
                          for f in sorted(set(run.groups.tolist()))]))


def _seed(run: Distances) -> int:
    """The same for every metric on a data set."""
    return int(run.dataset["digest"][:8], 16)


def _means(values: dict[str, Any], means: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Unweighted means over families, of numbers or of bootstrap samples; None where a family is absent."""
    return {name: np.mean([values[f] for f in families], 0) if _have(values, families) else None
            for name, families in means.items()}


def _have(values: dict[str, Any], families: Sequence[str]) -> bool:
    return all(values.get(family) is not None for family in families)


def _all_there(values: dict[str, Any]) -> bool:
    return _have(values, MEANS_2AFC["All"])


def _paper_order(families: Sequence[str]):
    return lambda family: (families.index(family) if family in families else len(families), family)


def _mean_of(credits: np.ndarray) -> float:
    return float(np.sort(credits).mean())


def _interval(samples: np.ndarray) -> list[float]:
    interval = statistics.Interval.of(samples)
    return [interval.low, interval.high]


def _ties(values: np.ndarray) -> int:
    """Items that share their distance with another."""
    _, counts = np.unique(values, return_counts=True)
    return int(counts[counts > 1].sum())
