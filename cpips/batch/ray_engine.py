"""Blocks of rows, sent to Ray's actors, each of which holds one model on its device; results back as they come.

An actor has one block at a time. A block whose actor or node is lost is computed again elsewhere; the readers here know
each block by its number, so that nothing is lost or doubled. After some attempts at a block, the row that kills whoever
computes it is looked for in other processes.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Generator, Iterator, Sequence

import torch

from .. import __version__
from .._utils.io import exclusive, quiet_bombs
from ..base import FullReferenceMetric
from ..errors import CpipsError, ModelError
from .pairs import MAX_PIXELS, Result, block_rows, score_pairs
from .parts import Parts, check_folder
from .run import Summary, dtype_name
from .tables import Table

OBJECT_STORE = 200_000_000  # bytes of a local start: names of files and distances, never pixels
LARGEST_PART = 8192  # rows
ATTEMPTS = 3  # at a block that kills its worker, before its rows are looked at one by one; at starting an actor


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

    with exclusive(output) if isinstance(output, Path) else nullcontext(), pool(settings) as actors:
        parts = Parts(output, table, header, _part_rows(len(table), part_rows, batch_size, actors.count),
                      force=force, restart=restart, metric=metric)
        resumed = 0
        for part, results in parts.kept():
            resumed += len(results)
            report(parts.rows(part), results)
        missing = parts.missing()
        for part in missing:
            parts.stamps(part)
        options = dict(batch_size=batch_size, workers=workers, max_pixels=max_pixels, access=table.access)
        with closing(actors.map(_Pairs, [parts.rows(part) for part in missing], metric, options,
                                content=lambda rows: _pairs_of(table, rows))) as found:
            for number, results in found:
                parts.write(missing[number], results)
                report(parts.rows(missing[number]), results)
        parts.complete(cpips=__version__, torch=torch.__version__, device=actors.device, actors=actors.count,
                       threads=torch.get_num_threads())
    return Summary(len(table), len(failed), resumed, tuple(sorted(failed.items())[:5]))


def _part_rows(rows: int, wanted: int | None, batch_size: int, actors: int) -> int:
    block = block_rows(batch_size)
    wanted = min(LARGEST_PART, rows // (8 * actors)) if wanted is None else wanted
    return max(1, -(-wanted // block)) * block


def _pairs_of(table: Table, rows: range) -> list[tuple[str, str] | str]:
    return [pair if isinstance(pair, str) else (_absolute(pair[0]), _absolute(pair[1]))
            for pair in table.pairs[rows.start:rows.stop]]


def _absolute(image: Path | str) -> str:
    return image if isinstance(image, str) else os.path.abspath(image)  # an actor has another working directory


class _Pairs:
    """What an actor does with a part of a table of pairs."""

    def __init__(self, metric: FullReferenceMetric, options: dict[str, Any]):
        self.metric, self.options = metric, options

    def __call__(self, block: Sequence[tuple[str, str] | str]) -> list[Result]:
        return list(score_pairs(block, self.metric, **self.options))

    def without(self, block: Sequence[tuple[str, str] | str], rows: Sequence[int]) -> list[tuple[str, str] | str]:
        """The block with an error in place of the pairs that kill who scores them."""
        return [("the process that scored this pair died, each time: a fault in a decoder, or too little memory; convert the "
                 "images, or leave them out") if row in rows else pair for row, pair in enumerate(block)]


# ---- Ray ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Room for ``count`` actors in a cluster, each with ``device`` and ``threads`` of torch."""

    count: int
    device: str
    threads: int

    def map(self, worker: type, blocks: Sequence[range], metric: FullReferenceMetric, *arguments: Any,
            content: Callable[[range], Sequence[Any]] = lambda rows: rows,
            ordered: bool = False) -> Generator[tuple[int, list[Any]], None, None]:
        """The number of each block, and what ``worker(metric, *arguments)(content(block))`` is of it, on the actors.

        Args:
            worker: a class; an actor makes one object of it, with the metric on its device. It gives a list with an item
                for each row; ``without(content, rows)`` is the content that these rows cannot kill it with.
            content: what is sent of a block.
            ordered: in the order of the blocks; else as they are done.

        Raises:
            CpipsError: what the worker raised.
            RayError: Ray failed.
        """
        ray = import_ray()
        gone = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError)
        job = [ray.put((worker, metric, arguments, self.device, self.threads))]  # in a list, so that actors get the reference
        actor_class = ray.remote(num_cpus=self.threads if self.device == "cpu" else 1,
                                 num_gpus=float(self.device == "cuda"))(_Actor)
        waiting, attempts, failed_starts = deque(range(len(blocks))), Counter[int](), 0
        running: dict[Any, tuple[Any, int | None]] = {}  # by what will be there: the actor, and its block unless it starts
        done: dict[int, list[Any]] = {}
        following = 0

        def start() -> None:
            actor = actor_class.remote(job)
            running[actor.ready.remote()] = actor, None

        try:
            for _ in range(min(self.count, len(blocks))):
                start()
            while following < len(blocks):
                (reference,), _ = ray.wait(list(running))
                actor, number = running.pop(reference)
                try:
                    found = ray.get(reference)
                except gone:
                    failed_starts += number is None
                    if failed_starts >= ATTEMPTS * self.count:
                        raise
                    if number is not None:
                        waiting.appendleft(number)
                    start()
                    continue
                if waiting:
                    block = waiting.popleft()
                    attempts[block] += 1
                    running[actor.compute.remote(content(blocks[block]), attempts[block] - ATTEMPTS)] = actor, block
                if number is None:
                    continue
                failed_starts = 0
                if not ordered:
                    following += 1
                    yield number, found
                    continue
                done[number] = found
                while following in done:
                    following += 1
                    yield following - 1, done.pop(following - 1)
        except ray.exceptions.RayError as error:
            if isinstance(cause := getattr(error, "cause", None), CpipsError):
                raise cause from None
            raise RayError(f"Ray gave up ({type(error).__name__}): {' '.join(str(error).split())[-500:]}; what is done is "
                           "kept, the same command continues from there") from error
        finally:
            for actor, _ in running.values():
                ray.kill(actor)


class _Actor:
    """One object of a worker's class in a process of Ray's."""

    def __init__(self, job: list[Any]):
        import ray

        self.job = job
        worker, metric, arguments, device, threads = ray.get(job[0])
        quiet_bombs()
        torch.set_num_threads(threads)
        self.work = worker(metric.to(device), *arguments)

    def ready(self) -> None:
        """Nothing, once this object is made."""

    def compute(self, block: Sequence[Any], care: int = 0) -> list[Any]:
        """The block; with a care of 1 without the rows that kill a process by themselves, and with more row by row."""
        if care <= 0:
            return self.work(block)
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = import_ray()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        alone = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(_alone)
        found, deadly = [], []
        for i in range(len(block)):
            row = block[i:i + 1]
            try:
                found += ray.get(alone.remote(self.job, row))
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                deadly.append(i)
                found += self.work(self.work.without(row, [0]))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
        return found if care > 1 else self.work(self.work.without(block, deadly) if deadly else block)


def _alone(job: list[Any], row: Sequence[Any]) -> list[Any]:
    """A row by itself, in a process that it may kill."""
    return _Actor(job).compute(row)


def import_ray() -> Any:
    """Ray, telling nobody that it is used.

    Raises:
        RayError: not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # actors without GPU see those that others use
    try:
        import ray
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
