"""Old names of modules: they still import, with a DeprecationWarning that says the new name."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import warnings
from types import ModuleType
from typing import Any, Callable, Sequence

MOVED = {
    "bapps_eval.metrics": "cpips.registry",
    "cpips.calibration": "cpips.training.calibration",
    "cpips.codec.checkerboard": "cpips.training.checkerboard",
    "cpips.codec.config": "cpips.training.config",
    "cpips.codec.data": "cpips.training.data",
    "cpips.codec.decoder_tuning": "cpips.training.decoder_tuning",
    "cpips.codec.objective": "cpips.training.objective",
    "cpips.codec.official": "cpips.training.official",
    "cpips.codec.patchgan": "cpips.training.patchgan",
    "cpips.codec.release": "cpips.training.release",
    "cpips.codec.train": "cpips.training.trainer",
    "cpips.codec.tune_config": "cpips.training.tune_config",
    "cpips.custom": "cpips.registry",
    "cpips.files": "cpips._utils.io",
    "cpips.heatmap": "cpips.viz.heatmap",
    "cpips.probes": "bapps_eval.probes",
    "cpips.protocol": "cpips.base",
    "cpips.report": "bapps_eval.report",
    "cpips.report.metric": "bapps_eval.report.metric_page",
    "cpips.scoring": "cpips.batch",
    "cpips.scoring.journal": "cpips._utils.journal",
    "cpips.strips": "cpips.tiling",
    "cpips.toml": "cpips._utils.config",
    "cpips.view": "cpips.viz",
    "cpips.view.page": "cpips.viz.viewer",
}

# names that went from a module, old or new, to another: module -> name -> where it is, and how it is called there
MOVED_NAMES = {
    "cpips.batch.tables": {"finite": ("cpips._utils.io", "finite")},
    "cpips.codec.container": {"check_codec": ("cpips.codec.files", "check_codec")},
    "cpips.losses": {"perceptual_loss": ("cpips.losses.content", "content_loss")},
    "cpips.losses.perceptual": {"DISTANCES": ("cpips.losses.content", "DISTANCES"),
                                "perceptual_loss": ("cpips.losses.content", "content_loss")},
    "cpips.registry": {"UserMetric": ("cpips.base", "UserMetric")},
    "cpips.training.data": {"SUFFIXES": ("cpips._utils.io", "IMAGE_SUFFIXES"), "prefetch": ("cpips._utils.threads", "prefetch")},
}


def new_name(old: str) -> str | None:
    """What the module ``old`` is called now, itself or the package that it lay in; None if it has its name still."""
    package, _, module = old.rpartition(".")
    if old in MOVED:
        return MOVED[old]
    parent = new_name(package) if package else None
    return f"{parent}.{module}" if parent else None


class _Package(ModuleType):
    """A package whose functions stay when the import system sets a module of the same name, imported under its old one."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and callable(vars(self).get(name))):
            super().__setattr__(name, value)


class _Finder:
    """Imports a module under its old name: the very module that has the new one."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        new = new_name(fullname)
        if new is None or importlib.util.find_spec(new) is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)  # type: ignore[arg-type]  # its base is slow to import

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = str(new_name(old))
        sys.modules[old] = importlib.import_module(new)
        parent = sys.modules[new.rpartition(".")[0]]
        if type(parent) is ModuleType:
            parent.__class__ = _Package
        warnings.warn(f"{old} is called {new} now", DeprecationWarning, stacklevel=2)


def moved_module(old: str) -> ModuleType | None:
    """The module that was called ``old``, for those who take it as an attribute of its package; None if it was none."""
    if (new := new_name(old)) is None:
        return None
    warnings.warn(f"{old} is called {new} now", DeprecationWarning, stacklevel=3)
    return importlib.import_module(new)


def install() -> None:
    """Let old names be imported from here on."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def moved_names(module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module whose names in :data:`MOVED_NAMES` are elsewhere now."""
    def __getattr__(name: str) -> Any:
        if name not in MOVED_NAMES[module]:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, called = MOVED_NAMES[module][name]
        warnings.warn(f"{module}.{name} is {home}.{called} now", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(home), called)

    return __getattr__
