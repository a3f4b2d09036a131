"""The layout: imports go one way, from the command line down to the core, and no file or folder is in a cycle."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# A layer imports the layers above it in this list, never one below. A module belongs to the longest name that it begins with.
LAYERS: list[tuple[str, ...]] = [
    ("cpips._version", "cpips._compat", "cpips.errors", "cpips.printable"),
    ("cpips._utils",),
    # core
    ("cpips.integrity", "cpips.sixteen", "cpips.web", "cpips.arrays", "cpips.images", "cpips.embedding", "cpips.encoders", "cpips.forms", "cpips.cells",
     "cpips.head", "cpips.opinion", "cpips.tiling", "cpips.contrast", "cpips.pretrained", "cpips.base", "cpips.metric"),
    ("cpips.distortions",),
    ("cpips.baselines",),
    ("cpips.registry",),
    ("cpips",),  # the public names
    ("cpips.losses", "cpips.torchmetrics", "cpips.onnx", "cpips.exporting", "cpips.browser", "cpips.jax"),
    ("cpips.batch", "cpips.viz"),
    ("cpips.realism", "cpips.regression", "cpips.frames"),
    ("cpips.codec",),
    ("cpips.encoding", "cpips.pillow"),
    ("bapps_eval",),
    ("cpips.sweep",),
    ("cpips.training",),
    ("cpips.cli", "cpips.__main__", "cpips.pytest_plugin", "bapps_eval.cli", "bapps_eval.__main__"),
]


def modules() -> dict[str, Path]:
    """Every module of both packages and its file."""
    found = {}
    for path in (p for package in ("cpips", "bapps_eval") for p in sorted((ROOT / package).rglob("*.py"))):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def folder(module: str) -> str:
    """The package that a module lies in; a package lies in itself."""
    return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]


@lru_cache(None)
def imports(module: str, lazy: bool = True) -> frozenset[str]:
    """Modules of ours that ``module`` imports, also within functions (if ``lazy``) and for its annotations."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    inner = {child for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
             for child in ast.walk(node)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in inner and not lazy:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom):
            base = folder(module).split(".")
            base = base[: len(base) - node.level + 1] if node.level else []
            origin = ".".join([*base, node.module] if node.module else base)
            found |= {f"{origin}.{alias.name}" if f"{origin}.{alias.name}" in MODULES else origin
                      for alias in node.names if origin in MODULES}
    return frozenset(found - {module})


def layer(module: str) -> int:
    """The number of the layer of ``module``."""
    names = [(len(name), i) for i, names in enumerate(LAYERS) for name in names
             if module == name or (module.startswith(name + ".") and name != "cpips")]
    assert names, f"{module} has no layer: give it one in LAYERS"
    return max(names)[1]


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle in ``graph``; empty if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node):], node]
        if node in done:
            return []
        for other in sorted(graph[node]):
            if circle := visit(other, [*path, node]):
                return circle
        done.add(node)
        return []

    return next((circle for node in sorted(graph) if (circle := visit(node, []))), [])


def test_the_reader_of_imports_sees_all_of_them():
    """The other tests hold nothing if this does not."""
    assert {"cpips.errors", "cpips._utils.io"} <= imports("cpips.batch.tables")
    assert "bapps_eval.probes" in imports("cpips.cli.probe") and "bapps_eval.probes" not in imports("cpips.cli.probe", lazy=False)
    assert "cpips.pretrained" in imports("cpips.registry") and "cpips.metric" in imports("cpips.registry")
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"] and cycle({"a": {"b"}, "b": set()}) == []
    assert all(name in MODULES or name == "cpips" for names in LAYERS for name in names)


def test_imports_of_ours_are_there():
    """No module that has moved is imported by its old name, not even where a function imports it."""
    wrong = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                base = folder(module).split(".")
                base = base[: len(base) - node.level + 1] if node.level else []
                origin = ".".join([*base, node.module] if node.module else base)
                if origin.split(".")[0] in ("cpips", "bapps_eval") and origin not in MODULES and origin != "cpips.weights":
                    wrong.append(f"{module} imports {origin}")
    assert not wrong, wrong


def test_imports_go_one_way():
    wrong = [f"{module} imports {other}" for module in MODULES for other in imports(module)
             if layer(other) > layer(module)
             # the package itself names what it holds, and imports it when it is asked for
             and module != "cpips"]
    assert not wrong, wrong


def test_no_file_is_in_a_cycle():
    graph = {module: imports(module) for module in MODULES}
    assert cycle(graph) == []


def test_no_folder_is_in_a_cycle():
    """The folders of the two packages, each with its subfolders; the files beside them are of several layers, and held by
    the tests above."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        if len(unit := folder(module).split(".")[:2]) == 2:
            others = {tuple(folder(other).split(".")[:2]) for other in imports(module)}
            graph.setdefault(".".join(unit), set()).update(".".join(other) for other in others if len(other) == 2)
    assert {"cpips.codec", "cpips.training", "bapps_eval.report"} <= set(graph)
    assert cycle({name: others - {name} for name, others in graph.items()}) == []


def test_private_modules_stay_in_their_folder():
    """``_utils`` is private to both packages together, and shared by their folders."""
    wrong = []
    for module in MODULES:
        for other in imports(module):
            private = [i for i, part in enumerate(other.split(".")) if part.startswith("_") and part != "_utils"]
            if private and not folder(module).startswith(".".join(other.split(".")[: private[0]])):
                wrong.append(f"{module} imports {other}")
    assert not wrong, wrong
