"""The engine of :func:`bapps_eval.run.run` on Ray Data: it sends blocks of items to actors and returns the values in order."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence

import numpy as np

from cpips.base import FullReferenceMetric
from cpips.batch.pairs import block_rows
from cpips.batch.ray_engine import Pool

from .dataset import Dataset, DatasetError
from .run import Compared, compared

if TYPE_CHECKING:
    import pyarrow


def engine(actors: Pool) -> Callable[..., Iterator[Compared]]:
    """What :func:`bapps_eval.run.run` takes as ``engine``: the values of one machine bit for bit, from many."""

    def compare(dataset: Dataset, metric: FullReferenceMetric, rows: range, batch_size: int,
                workers: int) -> Iterator[Compared]:
        import pyarrow as pa

        size = block_rows(batch_size)
        starts = range(rows.start - rows.start % size, rows.stop, size)  # whole blocks: the batches of one machine
        blocks = [pa.table({"item": pa.array(range(i, min(i + size, rows.stop)), pa.int64())}) for i in starts]
        with closing(actors.map(_Items, blocks, metric, dataset, batch_size, workers, ordered=True)) as found:
            for block in found:
                names = [name for name in block.column_names if name.startswith("value")]
                values = np.stack([block[name].to_numpy() for name in names], 1)
                begin = block["item"][0].as_py()
                known = max(0, rows.start - begin)  # by an earlier run, whose kill cut the block
                if known < len(values):
                    yield begin + known, values[known:], sum(block["seconds"].to_pylist()[known:])

    return compare


def circumstances(actors: Pool) -> dict[str, Any]:
    """What a result says of such a run."""
    return {"engine": "ray", "device": actors.device, "hardware": f"{actors.count} Ray actors of {actors.threads} threads"}


class _Items:
    """What an actor does with a block of items."""

    def __init__(self, metric: FullReferenceMetric, dataset: Dataset, batch_size: int, workers: int):
        self.metric, self.dataset, self.batch_size, self.workers = metric, dataset, batch_size, workers

    def __call__(self, block: "pyarrow.Table") -> "pyarrow.Table":
        import pyarrow as pa

        items = block["item"].to_pylist()
        batches = list(compared(self.dataset, self.metric, range(items[0], items[-1] + 1), self.batch_size, self.workers))
        values = np.concatenate([values for _, values, _ in batches])
        seconds = sum(seconds for _, _, seconds in batches) / len(items)
        return pa.table({"item": block["item"], "seconds": [seconds] * len(items),
                         **{f"value{i}": values[:, i] for i in range(values.shape[1])}})

    def without(self, block: "pyarrow.Table", rows: Sequence[int]) -> "pyarrow.Table":
        """No item may be left out of a data set.

        Raises:
            DatasetError: which items kill who compares them.
        """
        names = ", ".join(self.dataset.ids[block["item"][row].as_py()] for row in rows)
        raise DatasetError(f"{self.dataset.name}: the process that compared {names} died, each time: a fault in a "
                           "decoder, or too little memory; convert the images")
