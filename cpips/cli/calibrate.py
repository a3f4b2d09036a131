"""``cpips calibrate``: fit a model's channel weights to human ratings or to other metrics."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Callable, Iterator, Optional

import typer

from .._utils.console import (
    DataRootOption, DeviceOption, ForceOption, ThreadsOption, counting, number, print_table, say)
from .._utils.devices import open_device
from .._utils.optional import needing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bapps_eval import Dataset

    from ..metric import CPIPS
    from ..training.calibration.config import CalibrateConfig
    from ..training.calibration.fit import Fitted, Statistics

_TASKS = {"bapps": "2afc", "mos": "mos"}

# of a run: the weights, what they were fitted to, and how they agree with it
Outcome = tuple["Fitted", dict[str, Any], dict[str, Any]]


def calibrate(
    config: Annotated[Path, typer.Argument(
        metavar="CONFIG", show_default=False, help="A TOML file like configs/calibrate-*.toml.")],
    data_root: DataRootOption,
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="OUT", show_default=False,
        help="Folder for the weights, the report and the statistics.")],
    judged: Annotated[Optional[Path], typer.Option(
        metavar="DIR", show_default=False,
        help="Folder of the groups with teacher labels; missing ones are made. Default: the config's data.")] = None,
    weights: Annotated[Optional[Path], typer.Option(
        metavar="DIR", show_default=False,
        help="Folder with the teachers' weights (LPIPS, DISTS). Default: the cache.")] = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    force: ForceOption = False,
) -> None:
    """Fit the channel weights of a model with a frozen encoder to human ratings or to other metrics.

    Writes OUT/NAME.safetensors, for `cpips compare --metric OUT/NAME.safetensors`, and OUT/NAME.json, the report. After an
    interruption, the same command resumes.
    """
    from .._utils.io import check_run, exclusive
    from ..errors import CpipsError

    where = open_device(device, threads)
    with needing("calibrating", "calibrate,eval"):
        from ..training.calibration import fit
        from ..training.calibration.config import CalibrateConfig

        try:
            settings = CalibrateConfig.load(config)
        except ValueError as error:
            raise CpipsError(str(error)) from error
        if judged is not None and settings.judges != "teachers":
            raise CpipsError(f"--judged names a folder of groups for teachers, but {config} has judges = "
                             f"{settings.judges!r}")
        encoder = fit.encoder_tensors(settings.model)
        metric = fit.open_metric(settings.model, settings.form, settings.taps, settings.scales).to(where)
        check_run(output, [f"{settings.name}.safetensors", f"{settings.name}.json"], [config, settings.model],
                  begun=(output / f"{settings.name}.statistics").is_dir(), force=force)
        with exclusive(output):
            try:
                if settings.judges == "teachers":
                    outcome = _by_teachers(settings, metric, data_root, output, judged, weights)
                else:
                    outcome = _by_people(settings, metric, data_root, output)
            except KeyboardInterrupt:
                say(f"interrupted: the results so far are in {judged or output}; the same command continues from there")
                raise
            _write(settings, metric, encoder, outcome, output)


def _write(settings: CalibrateConfig, metric: CPIPS, encoder: dict[str, Any], outcome: Outcome, output: Path) -> None:
    from .._utils.io import atomic, finite
    from ..training.calibration import fit

    fitted, data, agreement = outcome
    path = output / f"{settings.name}.safetensors"
    fit.save_model(path, encoder, fitted.head)
    report = _report(settings, metric, fitted, data, agreement, path)
    text = json.dumps(finite(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic(output / f"{settings.name}.json") as stream:
        stream.write(text.encode())
    _print(report)
    say(f"{report['description']}\ntry it:  cpips compare REF IMG --metric {path}")


# ---- the judges -----------------------------------------------------------------------------------------------------


def _by_people(config: CalibrateConfig, metric: CPIPS, data_root: Path, output: Path) -> Outcome:
    from bapps_eval import human_ceiling, majority_ceiling, srcc, two_afc

    from ..training.calibration import fit

    dataset = _open(data_root / config.data, config.judges)
    for what in (*dataset.missing, *dataset.notes):
        say(f"{dataset.name}: {what}", "yellow")

    def load(i: int) -> fit.Item:
        reference, *others = dataset.load(i)
        return reference, others

    fitting, aside = fit.split(dataset.references, config.kept_aside, config.seed)
    statistics = _statistics(config, metric, len(dataset), load, output, f"{dataset.digest} {dataset.resize}")
    opinions = dataset.opinions
    data = {"dataset": dataset.name, "digest": dataset.digest, "resize": dataset.resize, "items": len(dataset),
            "fitted": len(fitting), "kept_aside": len(aside), "references": len(set(dataset.references)),
            "references_kept_aside": len({dataset.references[i] for i in aside}),
            "missing": list(dataset.missing), "notes": list(dataset.notes)}
    agreement: dict[str, Any] = {}
    if config.judges == "bapps":
        families = sorted(set(dataset.groups))
        groups, judge = [dataset.groups[i] for i in aside], opinions[aside]
        agreement |= {"human_ceiling": human_ceiling(judge), "majority_ceiling": majority_ceiling(judge)}
        fitted = fit.fit_preferences(statistics, opinions, fitting, config)
        for when, d in _both(statistics, fitted, aside):
            agreement[when] = {"two_afc": two_afc(d[:, 0], d[:, 1], judge)}
            for family in families:
                of = [i for i, group in enumerate(groups) if group == family]
                if of:
                    agreement[when][f"two_afc, {family}"] = two_afc(d[of, 0], d[of, 1], judge[of])
    else:
        from ..training.calibration.judged import normal_scores

        quality = opinions if dataset.higher_is_better else -opinions
        fitted = fit.fit_opinions(statistics, normal_scores(-quality[:, None])[:, 0], fitting, config)
        for when, d in _both(statistics, fitted, aside):
            agreement[when] = {"srcc": srcc(d[:, 0], quality[aside])}
    return fitted, data, agreement


def _open(path: Path, judges: str) -> Dataset:
    """Open the data set at ``path`` and check that it has the right task."""
    from bapps_eval import DatasetError
    from bapps_eval.layouts import open_datasets

    found, task = open_datasets(path, split="train"), _TASKS[judges]
    chosen = [dataset for dataset in found if dataset.task == task]
    if not chosen:
        held = ", ".join(f"{dataset.name} (task {dataset.task})" for dataset in found)
        fitting = [f"set judges = {name!r}, or " for name, theirs in _TASKS.items() if theirs == found[0].task]
        raise DatasetError(f"{path} holds {held}, but judges = {judges!r} needs a data set of task {task}: "
                           f"{''.join(fitting)}name another data set")
    if chosen[0].name.endswith("-val"):
        say(f"{chosen[0].name} serves to evaluate metrics: do not evaluate weights on it that were fitted to it", "yellow")
    return chosen[0]


def _by_teachers(config: CalibrateConfig, metric: CPIPS, data_root: Path, output: Path, folder: Path | None,
                 weights: Path | None) -> Outcome:
    from ..errors import CpipsError
    from ..training.calibration import agreement as agreements, fit
    from ..training.calibration.judged import LADDERS, JudgedSet, make

    assert config.judged is not None  # judges = 'teachers' has it
    folder = folder or (data_root / config.data if config.data else output / "judged")
    with counting("making groups with teacher labels") as advance:
        try:
            make(folder, config.judged, data_root, weights, lambda done, total: advance(None, total))
        except ValueError as error:  # photographs that are missing or too small
            raise error if isinstance(error, CpipsError) else CpipsError(str(error)) from error
    judged = JudgedSet(folder, config.judged.groups)
    sha = hashlib.sha256(judged.references)
    sha.update(judged.distorted)

    def load(i: int) -> fit.Item:
        return judged.references[i], [*judged.distorted[i], *agreements.shifted(judged.references[i])]

    fitting, aside = fit.first_aside(len(judged), config.kept_aside)
    statistics = _statistics(config, metric, len(judged), load, output, sha.hexdigest())
    fitted = fit.fit_groups(statistics, judged.normal, LADDERS, fitting, config)
    data = {"teachers": list(judged.teachers), "digest": sha.hexdigest(), "groups": len(judged), "fitted": len(fitting),
            "kept_aside": len(aside), "copies": judged.scores.shape[1], "made_of": dataclasses.asdict(config.judged)}
    agreement: dict[str, Any] = {"panel": agreements.panel_facts(judged.scores[aside], judged.teachers)}
    for when, d in _both(statistics, fitted, aside):
        agreement[when] = agreements.group_agreement(d, judged.scores[aside], judged.normal[aside], judged.teachers, LADDERS)
    return fitted, data, agreement


def _statistics(config: CalibrateConfig, metric: CPIPS, count: int, load: Callable[[int], Any], output: Path,
                digest: str) -> Statistics:
    from ..training.calibration.fit import statistics

    done = 0
    with counting("comparing features") as advance:

        def progress(now: int, total: int) -> None:
            nonlocal done
            for done in range(done + 1, now + 1):
                advance(None, total)

        return statistics(metric, count, load, output / f"{config.name}.statistics", digest, progress)


def _both(statistics: Statistics, fitted: Fitted, items: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Return distances of ``items``, ``(n,K)``, with unit weights and with the fitted weights."""
    import torch

    for when, weights in (("before", statistics.ones()), ("after", fitted.head.weights)):
        yield when, statistics.distances(weights, torch.from_numpy(items)).numpy()


# ---- the report -----------------------------------------------------------------------------------------------------


def _report(config: CalibrateConfig, metric: CPIPS, fitted: Fitted, data: dict[str, Any], agreement: dict[str, Any],
            path: Path) -> dict[str, Any]:
    from .. import pretrained
    from .._version import __version__

    terms = f"form {metric.form}, taps {'+'.join(metric.taps)}, {metric.scales} scale{'s' * (metric.scales > 1)}"
    if config.judges == "teachers":
        told = (f"It was calibrated by teachers, not by people: {', '.join(data['teachers'])} labeled distorted copies "
                f"of {data['groups']} crops of photographs.")
    else:
        told = f"It was calibrated by people: their judgments in {data['dataset']}."
    settings = dataclasses.asdict(config)
    kept = ("epochs", "decay_epochs", "batch", "lr", "order_weight", "shift_weight", "kept_aside")
    return {
        "name": config.name,
        "description": f"{metric.name} with fitted channel weights ({terms}); its encoder is unchanged. {told}",
        "file": path.name, "sha256": pretrained.file_sha256(path),
        "model": metric.name, "encoder_sha256": metric.digest,
        "form": metric.form, "taps": list(metric.taps), "scales": metric.scales,
        "judges": config.judges, "kind": "teachers" if config.judges == "teachers" else "people",
        "data": data, "settings": {key: settings[key] for key in kept}, "seed": config.seed,
        "agreement": agreement,
        "zero_weights": {tap: float((weight == 0).float().mean()) for tap, weight in fitted.head.weights.items()},
        "loss": list(fitted.losses),
        "cpips": __version__, "notes": config.notes,
    }


def _print(report: dict[str, Any]) -> None:
    before, after = (_flat(report["agreement"][when]) for when in ("before", "after"))
    data, agreement = report["data"], report["agreement"]
    what = "groups" if report["kind"] == "teachers" else f"items of {data['references_kept_aside']} references"
    notes = [f"on {data['kept_aside']} {what} that were held out; fitted to {data['fitted']}"]
    if "human_ceiling" in agreement:
        notes.append(f"a person scores {agreement['human_ceiling']:.4f}, an oracle {agreement['majority_ceiling']:.4f}")
    if "panel" in agreement:
        panel = agreement["panel"]
        own = ", ".join(f"{name} {value:.4f}" for name, value in panel["teachers"].items())
        notes.append(f"panel of the teachers: ceiling {panel['ceiling']:.4f}; {own}")
    rows = [(key, number(before[key]), number(after[key])) for key in after]
    print_table(("agreement", "before", "after"), rows, notes=notes, right=("before", "after"))


def _flat(values: dict[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in values.items():
        flat |= {f"srcc, {name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
    return flat
