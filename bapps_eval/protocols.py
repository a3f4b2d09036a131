"""Named, versioned protocols: what a printed number was made by, in a word to cite.

A protocol is a data set, its task and resize rule, and the scoring; ``tid2013-mos@1`` is all of TID2013 scored by version 1 of
the scoring of opinion scores. Whatever moves a number raises the version of its task and adds a line to :data:`CHANGES`.
``tests/test_eval_protocols.py`` holds the numbers of each version on fixed data, and fails when they move.
"""

from __future__ import annotations

from typing import Any, Mapping

from .resize import BAPPS, NONE

CHANGES: dict[str, tuple[str, ...]] = {
    "2afc": (
        "agreement with ties at one half, unweighted means over families, cross-validated likelihood, bootstrap over triplets "
        "within families",
    ),
    "jnd": (
        "interpolated average precision over all recalls with ties together, bootstrap over pairs within families",
    ),
    "mos": (
        "SRCC, KRCC (tau-b), PLCC and RMSE after a 4-parameter logistic fit, outlier ratio, Z-RMSE, PWRC, quality quarters, "
        "bootstrap over references (ten or more) or images",
    ),
}
"""Per task the changes of its scoring, the first for version 1."""


def version(task: str) -> int:
    """The version of the scoring of a task."""
    return len(CHANGES[task])


def protocol(dataset: Mapping[str, Any]) -> str:
    """The protocol of a run or score by the description of its data set: ``bapps-2afc-val@1``, ``tid2013-mos@1``.

    A resize rule other than the set's own is part of the name: ``tid2013-mos+pil-bilinear-256@1``.

    Example:
        >>> protocol({"name": "tid2013", "task": "mos", "resize": "none"})
        'tid2013-mos@1'
    """
    name, task = dataset["name"], dataset["task"]
    name = name if task in name.split("-") else f"{name}-{task}"
    usual = BAPPS if dataset["name"].startswith("bapps-") else NONE
    return f"{name}{'' if dataset['resize'] == usual else '+' + dataset['resize']}@{version(task)}"
