"""The settings of a calibration config (TOML, ``configs/calibrate-*.toml``)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ... import pretrained
from ..._utils import config as toml
from ...errors import ModelError
from ...forms import FORMS

if TYPE_CHECKING:
    from .judged import JudgedSettings

LINEAR_FORMS = ("latent", "taps")  # the weights of a frozen encoder's statistics say all of these
JUDGES = ("bapps", "mos", "teachers")


@dataclass(frozen=True)
class CalibrateConfig:
    """Weights of ``form`` at ``taps`` and ``scales`` of a frozen ``model``, fitted by Adam: ``epochs`` at a constant
    learning rate, then ``decay_epochs`` in which it falls linearly.

    The defaults are LPIPS' recipe for BAPPS. A batch counts triplets (``bapps``), images (``mos``) or groups
    (``teachers``).
    """

    name: str  # of the files that come out
    model: str  # a name of cpips.list_models(), or a weights file, relative to the config file
    judges: str
    data: str = ""  # under the data root: a data set as bapps-eval opens it, or the folder of the labeled groups
    form: str = "latent"
    taps: list[str] = field(default_factory=list)  # the form's own if empty: y for 'latent', all for 'taps'
    scales: int = 1
    epochs: int = 5
    decay_epochs: int = 5
    batch: int = 50
    lr: float = 1e-4
    order_weight: float = 0.2  # with teacher labels: of the order of severities,
    shift_weight: float = 0.2  # and of shifts by a pixel
    kept_aside: float = 1 / 12  # share of the references on which agreement is measured and nothing is fitted
    seed: int = 0
    judged: JudgedSettings | None = None
    notes: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        toml.check(self, positive=("scales", "batch", "lr"), choices={"judges": JUDGES},
                   not_negative=("epochs", "decay_epochs", "order_weight", "shift_weight", "seed"))
        if self.form not in LINEAR_FORMS:
            if self.form == "local":
                raise ValueError("form = 'local': its weights stand inside each cell's ratio and are trained with the "
                                 "images available: use cpips train (judge_weight), or form = 'latent' here")
            what = "has no channel weights" if self.form in FORMS else "is unknown"
            raise ValueError(f"form = {self.form!r} {what}: must be one of {', '.join(LINEAR_FORMS)}")
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"name = {self.name!r}: must be a file name without a folder")
        if not self.epochs + self.decay_epochs:
            raise ValueError("epochs and decay_epochs are both 0: one must be positive")
        if not 0 < self.kept_aside < 1:
            raise ValueError(f"kept_aside = {self.kept_aside}: must be a share between 0 and 1; what is held out "
                             "tells whether calibration helped")
        if self.judges == "teachers" and self.judged is None:
            raise ValueError("judges = 'teachers' needs a table [judged] with photographs and teachers")
        if self.judges != "teachers" and self.judged is not None:
            raise ValueError(f"a table [judged] changes nothing where judges = {self.judges!r}")
        if self.judges != "teachers" and not self.data:
            raise ValueError("data must name a data set under the data root")

    @classmethod
    def load(cls, path: Path) -> "CalibrateConfig":
        """Read a TOML config; a ``model`` that is a file becomes a path that holds from any folder.

        Raises:
            ModelError: an unknown, missing or unreadable setting; the message names it.
            OSError: the file cannot be read.
        """
        path = Path(path)
        raw = toml.read(path)
        if "judged" in raw:
            from .judged import JudgedSettings  # needs the codec

            if not isinstance(raw["judged"], dict):
                raise ModelError(f"{path}: judged must be a table, [judged]")
            table = {key: tuple(value) if isinstance(value, list) else value for key, value in raw["judged"].items()}
            raw["judged"] = toml.make(f"{path}, [judged]", JudgedSettings, table)
        config = toml.make(path, cls, raw)
        if is_file(config.model):
            config = dataclasses.replace(config, model=toml.beside(path, config.model))
        return config

    def lr_at(self, epoch: int) -> float:
        """As LPIPS' code has it: the first epoch of the decay is still at the whole rate, the last one above zero."""
        return self.lr * (1 - max(0, epoch - self.epochs) / max(1, self.decay_epochs))


def is_file(model: str) -> bool:
    """Whether ``model`` names weights of the user's."""
    return not model.startswith("compressai:") and pretrained.is_path(model)
