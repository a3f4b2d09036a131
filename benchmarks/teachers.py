"""Agreement of the teachers of `cpips-lite@0.1` with human ratings, and their cost.

    python benchmarks/teachers.py

|SRCC| with the human ratings available, with 95 % bootstrap intervals, of each classical teacher, of their panel (the mean
of their normal scores over a set, as in training) and of the student; the correlation of each with the panel needs no
people. Time is that of a pair of 512 x 384 px over the student's, in rounds of one run, of the implementations of `piq`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy import stats

import cpips
from _common import DATA, save, table
from _people import SETS, interval, measured, read_set, srcc
from bapps_eval.layouts.mos import TID2013_KINDS
from cpips.images import load
from cpips.training.calibration.judged import normal_scores
from cpips.training.calibration.teachers import CLASSICAL, create_teachers
from fast import interleaved, spread

STUDENT, PANEL = "cpips-lite@0.1", "their panel"


@torch.inference_mode()
def judged(name: str, teachers: dict) -> np.ndarray:
    """Distances ``(images, teachers)`` on a set, without the human ratings."""
    folder, rows, _ = read_set(name)
    images = {path: load(folder / path)[None] for path in {row["ref"] for row in rows}}
    found = []
    for row in rows:
        distorted = load(folder / row["dist"])[None]
        found.append([teacher(images[row["ref"]], distorted).item() for teacher in teachers.values()])
    return np.array(found)


def differences(panel: np.ndarray, ours: np.ndarray, people: np.ndarray) -> list[dict]:
    """Per kind of TID2013's distortions: how much farther the student ranks its images than the panel does, as a share of
    all images, and |SRCC| with people if it ranked this kind and those before as the panel does; largest first."""
    kinds = np.array([TID2013_KINDS[int(row["distortion_type"]) - 1] for row in read_set("tid2013")[1]])
    mine, theirs = normal_scores(ours[:, None])[:, 0], panel
    ranks = (stats.rankdata(mine) - stats.rankdata(theirs)) / len(mine)
    told = sorted(({"kind": kind, "farther": round(float(ranks[kinds == kind].mean()), 3)} for kind in set(kinds)),
                  key=lambda found: -abs(found["farther"]))
    for i, found in enumerate(told):
        mended = np.where(np.isin(kinds, [other["kind"] for other in told[:i + 1]]), theirs, mine)
        found["srcc"] = round(srcc(mended, people), 4)
    return told


@torch.inference_mode()
def times(teachers: dict, student: cpips.CPIPS, rounds: int) -> dict[str, dict]:
    """Of each teacher over the student's."""
    image = load(sorted((DATA / "images" / "kodak").glob("*.png"))[0])[None, :, :384, :512]
    noisy = (image + 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    calls = {name: lambda teacher=teacher: teacher(image, noisy) for name, teacher in teachers.items()}
    calls[STUDENT] = lambda: student(image, noisy)
    for call in calls.values():
        call()
    found = interleaved(calls, rounds, 120, "cpu")
    return {name: spread([theirs / ours for theirs, ours in zip(found[name], found[STUDENT])]) for name in calls}


def report(result: dict) -> str:
    """Markdown."""
    def cell(found: dict) -> str:
        return f"{found['srcc']:.3f} [{found['interval'][0]:.3f}, {found['interval'][1]:.3f}]"

    rows = [[f"`{name}`" if name == STUDENT else name, *(cell(facts[s]) for s in SETS), *(f"{facts[s]['panel']:.3f}" for s in SETS),
             f"{result['times'][name]['median']:.1f}" if name in result["times"] else ""]
            for name, facts in result["judges"].items()]
    header = ["judge", "TID2013, people", "LIVE, people", "TID2013, panel", "LIVE, panel", f"time over `{STUDENT}`'s"]
    first = result["kinds"][:3]
    told = ", ".join(f"{found['kind']} ({found['farther']:+.0%})" for found in first)
    return (f"{table(header, rows)}\n\nOf TID2013's kinds, `{STUDENT}` ranks these most differently from its panel, higher (+) or lower by "
            f"this share of all images: {told}. Ranked like the panel, these three alone would raise it to {first[-1]['srcc']:.3f}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    teachers, student = create_teachers(list(CLASSICAL)), cpips.CPIPS(STUDENT)
    judges: dict[str, dict] = {name: {} for name in (*teachers, PANEL, STUDENT)}
    kinds: list[dict] = []
    for s in SETS:
        scores, (ours, people) = judged(s, teachers), measured(student, s)
        panel = normal_scores(scores).mean(1)
        kinds = kinds or differences(panel, ours, people)  # of TID2013, which comes first
        for name, values in zip(judges, (*scores.T, panel, ours)):
            judges[name][s] = {"srcc": round(srcc(values, people), 4), "interval": interval(srcc, values, people),
                               "panel": round(float(stats.spearmanr(values, panel).statistic), 4)}
    result = {"what": "|SRCC| with human ratings and with the mean of the teachers; time over the student's",
              "signature": student.signature, "judges": judges, "kinds": kinds, "times": times(teachers, student, args.rounds)}
    print(report(result))
    print(save("teachers", result))


if __name__ == "__main__":
    main()
