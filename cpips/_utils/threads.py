"""Work ahead in threads."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Iterable, Iterator, TypeVar

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
