"""bapps_eval: which perceptual metric agrees with human ratings? Data sets, scores, statistics, reports.

    bapps-eval run DATA -m cpips -m lpips-alex -o results     # distances, resumable
    bapps-eval score results/*.parquet                        # scores, from the distances alone
    bapps-eval report results -o report.html                  # one page

or with arrays of your own:

    from bapps_eval import two_afc, jnd_average_precision
    two_afc(d0, d1, judge), jnd_average_precision(d, same)
"""

import importlib.util as _util

if _absent := [name for name in ("scipy", "pyarrow", "jinja2", "pandas") if _util.find_spec(name) is None]:
    raise ImportError(f"bapps_eval needs {', '.join(_absent)}: pip install 'cpips[eval]' -c constraints.txt")

from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from .dataset import Dataset, DatasetError
    from .distances import Distances, DistancesError
    from .opinions import band_scores, outlier_ratio, pwrc, quality_bands, z_rmse
    from .scores import (ScoreError, human_ceiling, jnd_average_precision, krcc, majority_ceiling, plcc, rmse, srcc, two_afc,
                         two_afc_likelihood)
    from .scoring import compare, score
    from .significance import holm, meng_rosenthal_rubin

__all__ = [
    "Dataset", "DatasetError", "Distances", "DistancesError", "ScoreError", "band_scores", "compare", "holm",
    "human_ceiling", "jnd_average_precision", "krcc", "majority_ceiling", "meng_rosenthal_rubin", "outlier_ratio", "plcc",
    "pwrc", "quality_bands", "rmse", "score", "srcc", "two_afc", "two_afc_likelihood", "z_rmse",
]

# Names are imported when they are first used: the command line shows its help without scipy.
_HOMES = {"Dataset": "dataset", "DatasetError": "dataset", "Distances": "distances", "DistancesError": "distances",
          "compare": "scoring", "score": "scoring", "band_scores": "opinions", "outlier_ratio": "opinions", "pwrc": "opinions",
          "quality_bands": "opinions", "z_rmse": "opinions", "holm": "significance", "meng_rosenthal_rubin": "significance"}

if not _TYPE_CHECKING:
    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in __all__:
            value = getattr(import_module(f".{_HOMES.get(name, 'scores')}", __name__), name)
        elif not name.startswith("_") and _util.find_spec(f"{__name__}.{name}") is not None:
            value = import_module(f".{name}", __name__)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
