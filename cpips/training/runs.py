"""What every training run has: a folder, a checkpoint from which it resumes, and rows of mean losses."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Callable, Generic, Mapping, Protocol, TypeVar

import torch

from .._utils.io import replace
from .._utils.threads import prefetch
from ..errors import WeightsError
from ..pretrained import read_checkpoint

log = logging.getLogger(__name__)

Drawn = TypeVar("Drawn")


class Plan(Protocol):
    """The settings of a run that decide how long it lasts, and how often it writes."""

    @property
    def steps(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...


class Run(ABC, Generic[Drawn]):
    """A training run in folder ``out``. Started again after an interruption, it resumes from its checkpoint.

    What a step draws must be a function of the step's number; a subclass calls :meth:`_resume` when all that a checkpoint holds
    has been made.
    """

    CHECKPOINT: str  # the file's name
    KIND: str  # for messages: "a training run"
    KEYS: tuple[str, ...]  # what a checkpoint must hold beside the step

    def __init__(self, plan: Plan, out: Path, device: torch.device):
        self.out, self.device, self._plan = Path(out), device, plan
        self.step, self.seconds = 0, 0.0
        self.stop = False  # set, from a signal's handler say, it ends the run between two steps, with a checkpoint
        self.complete = False  # whether the last step has its checkpoint: what is left can be interrupted at any moment
        self.out.mkdir(parents=True, exist_ok=True)

    # ---- what a subclass gives ----------------------------------------------------------------------------------------

    @abstractmethod
    def draw(self, step: int) -> Drawn:
        """The data of a step; called ahead of it, in a thread."""

    @abstractmethod
    def train_step(self, drawn: Drawn) -> dict[str, float]:
        """One step on what :meth:`draw` gave, which adds one to ``step``; returns its losses."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds beside ``step`` and ``seconds``."""

    @abstractmethod
    def _changed(self, state: Mapping[str, Any]) -> list[str]:
        """Settings that differ from those of a checkpoint, which can then not be resumed."""

    @abstractmethod
    def _load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's ``state``."""

    @abstractmethod
    def _log(self, row: dict[str, Any]) -> None:
        """Keep a row of the log."""

    def _row(self, means: dict[str, float], steps: range, elapsed: float) -> dict[str, float]:
        """The losses in a row of the log; ``means`` are those of ``steps``, which took ``elapsed`` seconds."""
        return means

    def _finish(self) -> Path | None:
        """Write what the whole run is for."""
        return None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the files."""
        return True

    def _stopped(self) -> bool:
        return self.stop

    # ---- the run ------------------------------------------------------------------------------------------------------

    def run(self, until: int | None = None, progress: Callable[[dict[str, Any]], None] = lambda row: None) -> Path | None:
        """Train to step ``until`` (default: the end). At the end, write the codec and return its path.

        Args:
            progress: called, in the first process only, every ``log_every`` steps with a row of the log: ``step``,
                ``seconds``, and the means of the losses since the last row.

        Raises:
            FloatingPointError: a gradient that is not finite.
            KeyboardInterrupt: ``stop`` was set; the checkpoint is that of the last step that was made.
        """
        plan = self._plan
        until = plan.steps if until is None else min(until, plan.steps)
        window: list[dict[str, float]] = []
        begun = time.monotonic()
        for drawn in prefetch(self.draw, range(self.step, until)):
            if self._stopped():
                self.save()
                raise KeyboardInterrupt
            window.append(self.train_step(drawn))
            if self.step % plan.log_every == 0 or self.step == until:
                elapsed, begun = time.monotonic() - begun, time.monotonic()
                self.seconds += elapsed
                names = dict.fromkeys(name for losses in window for name in losses)
                means = {name: _mean([losses[name] for losses in window if name in losses]) for name in names}
                row = {"step": self.step, "seconds": round(self.seconds, 1),
                       **self._row(means, range(self.step - len(window), self.step), elapsed)}
                if self.first:
                    self._log(row)
                    progress(row)
                window = []
            if self.step % plan.checkpoint_every == 0 or self.step == until:
                self.save()
        if self.stop:
            raise KeyboardInterrupt
        return self._finish() if self.step == plan.steps else None

    # ---- the checkpoint -----------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        return self.out / self.CHECKPOINT

    def save(self) -> None:
        """Write the checkpoint."""
        if self.first:
            state = {**self._state(), "step": self.step, "seconds": self.seconds}
            replace(self.checkpoint, lambda path: torch.save(state, path))
        self.complete = self.step == self._plan.steps

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = read_checkpoint(self.checkpoint, self.device, self.KIND, (*self.KEYS, "step", "seconds"))
        if changed := self._changed(state):
            raise WeightsError(f"{self.checkpoint} was made with other settings ({', '.join(changed)}): use another output "
                               "folder, or delete this one")
        self._load(state)
        self.step, self.seconds = state["step"], state["seconds"]
        self.complete = self.step == self._plan.steps
        log.info("resumed at step %d of %d", self.step, self._plan.steps)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
