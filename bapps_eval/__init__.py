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
from .scoring import compare, score

__all__ = [
    "Dataset", "DatasetError", "Distances", "DistancesError", "ScoreError", "compare", "human_ceiling",
    "jnd_average_precision", "krcc", "majority_ceiling", "plcc", "rmse", "score", "srcc", "two_afc", "two_afc_likelihood",
]
