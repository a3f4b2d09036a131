"""Ray Data underneath: blocks of rows to actors that hold one model per device, results back as they come.

Ray's streaming executor gives the back-pressure: an actor has two blocks at a time, and finished ones wait for the
reader. A block whose worker or node is lost is computed again elsewhere; the readers here know each row by its number,
so that nothing is lost or doubled. Ray would try a block that kills its worker for ever: attempts are counted, and
after some the row that is to blame is looked for in other processes.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Generator, Iterator, Sequence

import torch

from .. import __version__
from ..base import FullReferenceMetric
from ..errors import CpipsError, ModelError
from . import urls
from .pairs import MAX_PIXELS, Result, block_rows, score_pairs
from .parts import Parts, check_folder, held
from .run import Summary, dtype_name
from .tables import Table

if TYPE_CHECKING:
    import pyarrow

OBJECT_STORE = 200_000_000  # bytes of a local start: names of files and distances, never pixels
LARGEST_PART = 8192  # rows
ATTEMPTS = 3  # at a block that kills its worker, before its rows are looked at one by one
_RAISED = "raised"  # the column of a block that stands for an error


class RayError(CpipsError, RuntimeError):
    """Ray is missing or cannot do what is asked; the message says why."""


@dataclass(frozen=True)
class RaySettings:
    """Where and how widely to compute.

    Args:
        address: of a running cluster (``auto``, ``HOST:PORT``, ``ray://HOST:PORT``). Default: the cluster that this
            process is connected to, else one is started on this machine and stopped at the end.
        actors: most models at once. Default: one for each GPU, or for each so many cores as torch has threads here.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    address: str | None = None
    actors: int | None = None
    device: str = "auto"


def ray_settings(engine: str, address: str | None, actors: int | None, device: str) -> RaySettings | None:
    """What the options of ``--engine ray`` ask for; None for ``--engine local``.

    Raises:
        CpipsError: no such engine, or an option of Ray without it.
    """
    if engine == "ray":
        return RaySettings(address, actors, device)
    if engine != "local":
        raise ModelError(f"engine {engine!r} is unknown: choose local or ray")
    if address is not None or actors is not None:
        raise ModelError("--ray-address and --actors belong to --engine ray")
    return None


def score_parts(
    table: Table,
    metric: FullReferenceMetric,
    output: Path | str,
    *,
    settings: RaySettings = RaySettings(),
    part_rows: int | None = None,
    batch_size: int = 8,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    force: bool = False,
    restart: bool = False,
    progress: Callable[[int, Result], None] = lambda row, result: None,
) -> Summary:
    """:func:`cpips.batch.score_table` on Ray: ``output`` becomes a folder of Parquet parts and ``_manifest.json``.

    The distances are those of :func:`~cpips.batch.score_table` bit for bit, on the same kind of hardware with the
    same ``batch_size``, ``max_pixels`` and number of torch threads. Called again after an interruption, it goes on with the
    parts that are missing.

    Args:
        metric: on the CPU; each actor gets a copy.
        output: a path, or a URL that fsspec can write to. Only this process writes there.
        part_rows: rows of a part; rounded up to :func:`~cpips.batch.pairs.block_rows`. Default: so that each actor
            gets some eight parts, 8192 rows at most.
        workers: threads that decode, per actor.
        progress: called after each row, in no order.

    Raises:
        RayError: Ray is missing, cannot be reached, or has no room for an actor.
        TableError: the output holds another run, a complete one, or something else.
    """
    import_ray()
    check_folder(output)
    header = dict(signature=metric.signature, dtype=dtype_name(metric), background=metric.background,
                  table=table.digest(), rows=len(table), batch_size=batch_size, max_pixels=max_pixels)
    failed: dict[int, str] = {}

    def report(rows: range, results: Sequence[Result]) -> None:
        for row, result in zip(rows, results):
            if result.error is not None:
                failed[row] = result.error
            progress(row, result)

    with held(output), pool(settings) as actors:
        parts = Parts(output, table, header, _part_rows(len(table), part_rows, batch_size, actors.count),
                      force=force, restart=restart, metric=metric)
        resumed = 0
        for part, results in parts.kept():
            resumed += len(results)
            report(parts.rows(part), results)
        missing = parts.missing()
        for part in missing:
            parts.stamps(part)
        blocks = [_pairs_of(table, parts.rows(part), part) for part in missing]
        options = dict(batch_size=batch_size, workers=workers, max_pixels=max_pixels, access=table.access)
        with closing(actors.map(_Pairs, blocks, metric, options)) as found:
            for block in found:
                part = block["part"][0].as_py()
                results = [Result(*pair) for pair in zip(block["distance"].to_pylist(), block["error"].to_pylist())]
                parts.write(part, results)
                report(parts.rows(part), results)
        parts.complete(cpips=__version__, torch=torch.__version__, device=actors.device, actors=actors.count,
                       threads=torch.get_num_threads())
    return Summary(len(table), len(failed), resumed, tuple(sorted(failed.items())[:5]))


def _part_rows(rows: int, wanted: int | None, batch_size: int, actors: int) -> int:
    block = block_rows(batch_size)
    wanted = min(LARGEST_PART, rows // (8 * actors)) if wanted is None else wanted
    return max(1, -(-wanted // block)) * block


def _pairs_of(table: Table, rows: range, part: int) -> "pyarrow.Table":
    import pyarrow as pa

    pairs = [(None, None, pair) if isinstance(pair, str) else (*map(_absolute, pair), None)
             for pair in table.pairs[rows.start:rows.stop]]
    reference, image, error = zip(*pairs)
    return pa.table({"part": pa.array([part] * len(rows), pa.int64()), "reference": pa.array(reference, pa.string()),
                     "image": pa.array(image, pa.string()), "error": pa.array(error, pa.string())})


def _absolute(image: Path | str) -> str:
    return image if urls.is_url(image) else os.path.abspath(image)  # an actor has another working directory


class _Pairs:
    """What an actor does with a part of a table of pairs."""

    def __init__(self, metric: FullReferenceMetric, options: dict[str, Any]):
        self.metric, self.options = metric, options

    def __call__(self, block: "pyarrow.Table") -> "pyarrow.Table":
        import pyarrow as pa

        rows = zip(*(block[name].to_pylist() for name in ("reference", "image", "error")))
        pairs = [(reference, image) if error is None else error for reference, image, error in rows]
        results = list(score_pairs(pairs, self.metric, **self.options))
        return pa.table({"part": block["part"], "distance": pa.array([r.distance for r in results], pa.float64()),
                         "error": pa.array([r.error for r in results], pa.string())})

    def without(self, block: "pyarrow.Table", rows: Sequence[int]) -> "pyarrow.Table":
        """The block with an error in place of the pairs that kill who scores them."""
        import pyarrow as pa

        errors = block["error"].to_pylist()
        for row in rows:
            errors[row] = ("the process that scored this pair died, each time: a fault in a decoder, or too little "
                           "memory; convert the images, or leave them out")
        return block.set_column(block.column_names.index("error"), "error", pa.array(errors, pa.string()))


# ---- Ray ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Room for ``count`` actors in a cluster, each with ``device`` and ``threads`` of torch."""

    count: int
    device: str
    threads: int

    def map(self, worker: type, blocks: "Sequence[pyarrow.Table]", metric: FullReferenceMetric, *arguments: Any,
            ordered: bool = False) -> "Generator[pyarrow.Table, None, None]":
        """``worker(metric, *arguments)(block)`` of every block that is not empty, on the actors.

        Args:
            worker: a class; an actor makes one object of it, with the metric on its device. It gives a row for each row
                of a block, the first column of which tells blocks apart; ``without(block, rows)`` is the block that
                these rows cannot kill it with.
            ordered: in the order of the blocks; else as they are done.

        Raises:
            CpipsError: what the worker raised.
            RayError: Ray failed.
        """
        ray = import_ray()
        if not blocks:
            return
        attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Attempts).remote()
        with _data_context(ray, ordered):
            data = ray.data.from_arrow(list(blocks)).map_batches(
                _Actor, fn_constructor_args=(worker, ray.put((metric, arguments)), self.device, self.threads, attempts),
                batch_size=None, batch_format="pyarrow", zero_copy_batch=True,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=self.count,
                                                   initial_size=min(self.count, len(blocks))),
                num_cpus=self.threads if self.device == "cpu" else 1, num_gpus=float(self.device == "cuda"))
        try:
            for found in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                if _RAISED in found.column_names:
                    raise pickle.loads(found[_RAISED][0].as_py())
                if len(found):
                    yield found
        except ray.exceptions.RayError as error:
            raise RayError(f"Ray gave up ({type(error).__name__}): {' '.join(str(error).split())[-500:]}; what is done is "
                           "kept, the same command continues from there") from error


@contextmanager
def _data_context(ray: Any, ordered: bool) -> Iterator[None]:
    """The settings that a data set takes over when it is made."""
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.execution_options.preserve_order
    context.enable_progress_bars, context.execution_options.preserve_order = False, ordered
    try:
        yield
    finally:
        context.enable_progress_bars, context.execution_options.preserve_order = before


class _Attempts:
    """How often each block was begun and not ended, told from where no block can kill it."""

    def __init__(self) -> None:
        self.begun: Counter[Any] = Counter()

    def begin(self, block: Any) -> int:
        self.begun[block] += 1
        return self.begun[block]

    def end(self, block: Any) -> None:
        self.begun.pop(block, None)


class _Worker:
    """One object of a worker's class in a process of Ray's."""

    def __init__(self, worker: type, job: Any, device: str, threads: int):
        import ray

        from .._utils.io import quiet_bombs

        quiet_bombs()
        torch.set_num_threads(threads)
        metric, arguments = ray.get(job)
        self.work = worker(metric.to(device), *arguments)

    def tried(self, block: "pyarrow.Table", without: Sequence[int] = ()) -> "pyarrow.Table":
        import pyarrow as pa

        try:
            return self.work(self.work.without(block, without) if without else block)
        except CpipsError as error:  # Ray would keep the text of its traceback only
            return pa.table({_RAISED: pa.array([pickle.dumps(error)], pa.binary())})


def _alone(job: tuple[Any, ...], row: "pyarrow.Table") -> "pyarrow.Table":
    """A row by itself, in a process that it may kill."""
    return _Worker(*job).tried(row)


class _Actor(_Worker):
    def __init__(self, worker: type, job: Any, device: str, threads: int, attempts: Any):
        super().__init__(worker, job, device, threads)
        self.job, self.attempts = (worker, job, device, threads), attempts

    def __call__(self, block: "pyarrow.Table") -> "pyarrow.Table":
        import ray

        key = block.column(0)[0].as_py()
        attempt = ray.get(self.attempts.begin.remote(key))
        found = self.tried(block) if attempt <= ATTEMPTS else self._careful(block, last=attempt > ATTEMPTS + 1)
        ray.get(self.attempts.end.remote(key))
        return found

    def _careful(self, block: "pyarrow.Table", last: bool) -> "pyarrow.Table":
        """The block without the rows that kill a process by themselves; row by row where that is the ``last`` resort."""
        import pyarrow as pa
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = import_ray()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        alone = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(_alone)
        found: list[pyarrow.Table] = []
        deadly = []
        for i in range(len(block)):
            row = block.slice(i, 1)
            try:
                found.append(ray.get(alone.remote(self.job, row)))
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                deadly.append(i)
                found.append(self.tried(row, [0]))
            if _RAISED in found[-1].column_names:
                return found[-1]
        return pa.concat_tables(found) if last else self.tried(block, deadly)


def import_ray() -> Any:
    """Ray with Ray Data, telling nobody that it is used.

    Raises:
        RayError: not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # actors without GPU see those that others use
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RayError(f"--engine ray needs Ray, which cannot be imported ({error}): pip install 'cpips[ray]'") from error
    return ray


@contextmanager
def pool(settings: RaySettings) -> Iterator[Pool]:
    """Connect to a cluster, or start one on this machine for as long as the context lasts.

    Raises:
        RayError: no cluster there, or it has no room for one actor.
    """
    ray = import_ray()
    begun = not ray.is_initialized()
    if begun:
        quiet = dict(logging_level=logging.ERROR, log_to_driver=False)
        try:
            if settings.address is None:
                ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE,
                         _node_ip_address="127.0.0.1", **quiet)
            else:
                ray.init(address=settings.address, **quiet)
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise RayError(f"no Ray cluster at {settings.address or 'this machine'}: {error}") from error
    elif settings.address is not None:
        raise RayError(f"address is {settings.address!r}, but this process is connected to a cluster: ray.shutdown() first")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield _room(settings, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    finally:
        if begun:
            ray.shutdown()


def _room(settings: RaySettings, nodes: Sequence[dict[str, float]]) -> Pool:
    threads = torch.get_num_threads()
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    device = settings.device if settings.device != "auto" else "cuda" if gpus else "cpu"
    if device not in ("cpu", "cuda"):
        raise RayError(f"device is {device!r}: Ray gives devices out itself, choose auto, cpu or cuda")
    count = gpus if device == "cuda" else sum(int(node.get("CPU", 0)) // threads for node in nodes)
    if not count:
        have = ", ".join(f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes)
        need = "a GPU" if device == "cuda" else f"{threads} CPUs on one node, the number of torch's threads here (OMP_NUM_THREADS)"
        raise RayError(f"an actor needs {need}, but the nodes have {have}")
    return Pool(min(settings.actors or count, count), device, threads)
