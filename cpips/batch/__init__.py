"""Many pairs: distances of a table or of two folders, in order, resumable after an interruption."""

from .frame import Scores, score
from .pairs import Result, score_pairs
from .run import Summary, score_table
from .tables import Table, read_folders, read_places, read_table, with_sizes

__all__ = ["Result", "Scores", "Summary", "Table", "read_folders", "read_places", "read_table", "score", "score_pairs",
           "score_table", "with_sizes"]
