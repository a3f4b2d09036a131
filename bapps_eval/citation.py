"""A line and a BibTeX entry that say what made a table: package, protocols, data, metrics, versions."""

from __future__ import annotations

import platform
from typing import Sequence

import numpy as np
import scipy

import cpips

from .distances import Distances
from .protocols import protocol


def citation(runs: Sequence[Distances]) -> str:
    """One line: the package's version, each protocol with the digest of its data, and each metric's signature."""
    sets = dict.fromkeys(f"{protocol(run.dataset)} (data {run.dataset['digest'][:12]}, {run.dataset['items']} items"
                         f"{', partial' if run.dataset['missing'] else ''})" for run in runs)
    metrics = dict.fromkeys(run.metric["signature"] for run in runs)
    return (
        f"bapps_eval {cpips.__version__}, numpy {np.__version__}, scipy {scipy.__version__}, Python {platform.python_version()}; "
        f"protocols {', '.join(sets)}; metrics {', '.join(metrics)}"
    )


def bibtex(runs: Sequence[Distances]) -> str:
    """A BibTeX entry of the package whose note names protocols and data."""
    from .report.tables import escape_latex

    protocols = ", ".join(dict.fromkeys(f"{protocol(run.dataset)} (data {run.dataset['digest'][:12]})" for run in runs))
    return "\n".join(
        ["@software{cpips,", "  author = {{The cpips authors}},",
         "  title = {cpips: perceptual image distance from the encoder of a learned image codec},",
         f"  version = {{{cpips.__version__}}},", f"  note = {{bapps\\_eval, protocols {escape_latex(protocols)}}}", "}"])
