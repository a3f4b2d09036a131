"""What Ctrl-C does to a command: it ends with the exit code 130, or by the signal where there is nothing to clean up."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager
from typing import Any, Callable, Iterator


def quiet() -> None:
    """Let Ctrl-C end this process without a traceback: while commands are imported, and when a command has ended.

    Where it is ignored, as in the background of a shell, or has another handler, it stays so. Errors in finalizers, such as a
    zip file's on a full disk, have no tracebacks either: the error that they follow is reported (``--debug`` shows them).
    """
    if "--debug" not in sys.argv:
        sys.unraisablehook = lambda error: None
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """Ctrl-C raises KeyboardInterrupt, as ever, and is noted beside that: a library that was interrupted, in an import say,
    may raise an error of its own in its place.

    Returns:
        Whether it was pressed.
    """
    pressed = False

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    if (threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, signal.SIG_DFL)):
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
