"""The engine of :func:`bapps_eval.run.run` on Ray: it sends blocks of items to actors and returns the values in order."""

from __future__ import annotations

from contextlib import closing
from typing import Any, Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cpips.base import FullReferenceMetric
from cpips.batch.pairs import block_rows
from cpips.batch.ray_engine import Pool

from .dataset import Dataset, DatasetError
from .run import Compared, compared


def engine(actors: Pool) -> Callable[..., Iterator[Compared]]:
    """What :func:`bapps_eval.run.run` takes as ``engine``: the values of one machine bit for bit, from many."""

    def compare(dataset: Dataset, metric: FullReferenceMetric, rows: range, batch_size: int,
                workers: int) -> Iterator[Compared]:
        size = block_rows(batch_size)
        starts = range(rows.start - rows.start % size, rows.stop, size)  # whole blocks: the batches of one machine
        blocks = [range(i, min(i + size, rows.stop)) for i in starts]
        with closing(actors.map(_Items, blocks, metric, dataset, batch_size, workers, ordered=True)) as found:
            for number, items in found:
                begin = blocks[number].start
                known = max(0, rows.start - begin)  # by an earlier run, whose kill cut the block
                if known < len(items):
                    values, seconds = zip(*items[known:])
                    yield begin + known, np.stack(values), sum(seconds)

    return compare


def circumstances(actors: Pool) -> dict[str, Any]:
    """What a result says of such a run."""
    return {"engine": "ray", "device": actors.device, "hardware": f"{actors.count} Ray actors of {actors.threads} threads"}


class _Items:
    """What an actor does with a block of items."""

    def __init__(self, metric: FullReferenceMetric, dataset: Dataset, batch_size: int, workers: int):
        self.metric, self.dataset, self.batch_size, self.workers = metric, dataset, batch_size, workers

    def __call__(self, block: range) -> list[tuple[NDArray[Any], float]]:
        """The values of each item, and its share of the seconds."""
        batches = list(compared(self.dataset, self.metric, block, self.batch_size, self.workers))
        seconds = sum(seconds for _, _, seconds in batches) / len(block)
        return [(row, seconds) for _, values, _ in batches for row in values]

    def without(self, block: range, rows: Sequence[int]) -> range:
        """No item may be left out of a data set.

        Raises:
            DatasetError: which items kill who compares them.
        """
        names = ", ".join(self.dataset.ids[block[row]] for row in rows)
        raise DatasetError(f"{self.dataset.name}: the process that compared {names} died, each time: a fault in a "
                           "decoder, or too little memory; convert the images")
