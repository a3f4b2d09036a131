"""bapps_eval: which perceptual metric agrees with people? Data sets, scores, statistics, reports.

    bapps-eval run DATA -m cpips -m lpips-alex -o results     # distances, resumable
    bapps-eval score results/*.parquet                        # scores, from the distances alone
    bapps-eval report results -o report.html                  # one page

or with arrays of your own:

    from bapps_eval import two_afc, jnd_average_precision
    two_afc(d0, d1, judge), jnd_average_precision(d, same)
"""

import importlib.util as _util

if _absent := [name for name in ("scipy", "pyarrow", "jinja2") if _util.find_spec(name) is None]:
    raise ImportError(f"bapps_eval needs {', '.join(_absent)}: pip install 'cpips[eval]' -c constraints.txt")

from .dataset import Dataset, DatasetError
from .distances import Distances, DistancesError
from .scores import (ScoreError, human_ceiling, jnd_average_precision, krcc, majority_ceiling, plcc, rmse, srcc, two_afc,
                     two_afc_likelihood)
from .opinions import band_scores, outlier_ratio, pwrc, quality_bands, z_rmse
from .scoring import compare, score
from .significance import holm, meng_rosenthal_rubin

__all__ = [
    "Dataset", "DatasetError", "Distances", "DistancesError", "ScoreError", "band_scores", "compare", "holm",
    "human_ceiling", "jnd_average_precision", "krcc", "majority_ceiling", "meng_rosenthal_rubin", "outlier_ratio", "plcc",
    "pwrc", "quality_bands", "rmse", "score", "srcc", "two_afc", "two_afc_likelihood", "z_rmse",
]
