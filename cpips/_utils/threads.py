"""Work ahead in threads."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Iterable, Iterator, Sequence, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def prefetch(make: Callable[[Key], Value], keys: Iterable[Key], depth: int = 4, workers: int = 2) -> Iterator[Value]:
    """``make(key)`` for each key, in order, computed up to ``depth`` ahead by ``workers`` threads."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Any]] = deque()
        try:
            for key in keys:
                ahead.append(pool.submit(make, key))
                if len(ahead) > depth:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def spread(make: Callable[..., Value], arguments: Sequence[tuple[Any, ...]], jobs: int | None = None) -> Iterator[Value]:
    """``make(*arguments[i])`` for each i, in order, ``jobs`` at a time (default: torch's threads), which share torch's threads."""
    import torch

    threads = torch.get_num_threads()
    jobs = min(jobs or threads, len(arguments))
    if jobs < 2:
        yield from (make(*each) for each in arguments)
        return
    torch.set_num_threads(max(1, threads // jobs))  # of the threads that begin now
    try:
        yield from prefetch(lambda each: make(*each), arguments, depth=jobs, workers=jobs)
    finally:
        torch.set_num_threads(threads)
