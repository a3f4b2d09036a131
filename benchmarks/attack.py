"""An attack on everything around the metric: gradients, mutated files, killed, interrupted and concurrent commands, full disks.

    python benchmarks/attack.py --share 0.01 --seconds 60      # a hundredth of all counts, a minute at most for each part

Each part stops at its count or its time, whichever comes first, and reports how far it got. A failure is a non-finite
gradient; a mutated file that is believed although it says something else (where its format has a checksum); an error
without a name (neither of cpips nor of the operating system); a crash; an output that differs from the uninterrupted
one; a file left behind. ``--only NAME`` runs one part. Results are kept in
``results/attack.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import dataclasses
import importlib
import io
import itertools
import json
import multiprocessing
import os
import pty
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import torch
from _common import save
from PIL import Image

import cpips
from cpips.errors import CpipsError

COUNTS = {"gradients": 1_000_000, "mutations": 100_000, "kills": 200, "interrupts": 60, "disks": 10, "concurrent": 6,
          "rows": 100_000, "eval_rows": 1_000_000}
FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "AVIF": "avif", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm", "GIF": "gif"}
CHECKED = {"PNG", "cpz", "statistics", "index"}  # whose checksums tell every change of what they hold
PRELOAD = ["torch", "numpy", "cpips.cli.app", "cpips.metric", "cpips.batch", "cpips.codec.files", "bapps_eval.cli", "bapps_eval.run"]


class Budget:
    """So many, or so many seconds from the first question on: what is prepared before does not count."""

    def __init__(self, count: int, seconds: float):
        self.count, self.seconds, self.done = max(1, count), seconds, 0
        self.end: float | None = None

    def left(self) -> bool:
        self.end = time.monotonic() + self.seconds if self.end is None else self.end
        return self.done < self.count and time.monotonic() < self.end


# ---- gradients ------------------------------------------------------------------------------------------------------


def gradients(budget: Budget, seed: int = 0) -> dict[str, Any]:
    """Gradients of images of random shapes and kinds, by every model and distance function: how many are not finite."""
    rng = np.random.default_rng(seed)
    models = [*cpips.list_models(), "random"]
    light = [name for name in models if "lite" in name] or models
    made: dict[tuple[Any, ...], cpips.CPIPS] = {}
    bad: list[str] = []
    seen: Counter[str] = Counter()
    while budget.left():
        heavy = rng.random() < 0.1
        name = str(rng.choice(models if heavy else light))
        settings = {"form": str(rng.choice(["latent", "taps", "local", "structure"])), "root": bool(rng.random() < 0.3),
                    "scales": int(rng.integers(1, 4))}
        key = (name, *settings.values())
        if key not in made:
            if len(made) > 12:
                made.clear()
            made[key] = cpips.CPIPS(name, reduction="sum", **settings)
        height, width = (int(side) for side in rng.integers(1, 40, 2))
        count = 4 if heavy else int(min(512, max(1, 120_000 // (height * width))))
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        x, y = (_pictures(str(rng.choice(KINDS)), count, height, width, generator) for _ in range(2))
        if rng.random() < 0.2:
            y = x.clone()
        x.requires_grad_(), y.requires_grad_()
        made[key](x, y).backward()
        for grad in (x.grad, y.grad):
            finite = grad.isfinite().flatten(1).all(1)
            budget.done += count
            if not finite.all():
                bad.append(f"{key} {count}x{height}x{width}")
        seen[name] += 2 * count
    return {"gradients": budget.done, "not_finite": len(bad), "models": dict(seen), "failures": bad[:20]}


KINDS = ("noise", "black", "white", "gray", "near black", "one pixel", "stripes", "saturated")


def _pictures(kind: str, count: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    shape = (count, 3, height, width)
    noise = torch.rand(shape, generator=generator)
    if kind == "one pixel":
        flat = torch.zeros(shape)
        flat[..., height // 2, width // 2] = 1
        return flat
    return {"noise": noise, "black": torch.zeros(shape), "white": torch.ones(shape), "gray": torch.full(shape, 0.5),
            "near black": noise * 1e-6, "stripes": (torch.arange(width) % 2).float().expand(shape).clone(),
            "saturated": noise.round()}[kind]


# ---- mutated files --------------------------------------------------------------------------------------------------


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, cut, zeroed, repeated, moved or added."""
    data, size = bytearray(whole), len(whole)
    kind = rng.integers(7)
    if kind == 0 or size < 16:
        for place in rng.integers(0, size, rng.integers(1, 5)):
            data[place] = rng.integers(256)
    elif kind == 1:
        del data[rng.integers(size):]
    elif kind == 2:
        at = int(rng.integers(size))
        data[at:] = bytes(size - at)
    elif kind == 3:
        a, b = sorted(rng.integers(0, size, 2))
        data[a:b] = bytes(int(b - a))
    elif kind == 4:
        a, b = sorted(rng.integers(0, size, 2))
        data[a:a] = data[a:b]
    elif kind == 5:
        a, b = sorted(rng.integers(0, size, 2))
        del data[a:b]
    else:
        for place in rng.integers(0, min(size, 64), 2):
            data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)


def mutations(budget: Budget, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Mutated files of every kind that is read: believed only if they say what they said, or have no checksum."""
    rng = np.random.default_rng(seed)
    kinds = _kinds(folder)
    found: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    failures: list[str] = []
    while budget.left():
        for name, (whole, read, truth) in kinds.items():
            if not budget.left():
                break
            content = mutated(whole, rng)
            path = folder / f"mutant.{name if name not in FORMATS else FORMATS[name]}"
            path.write_bytes(content)
            budget.done += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    said = read(path)
            except (CpipsError, OSError):
                found[name]["refused"] += 1
                continue
            except Exception as error:  # an error without a name
                found[name]["foreign error"] += 1
                failures.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
                continue
            same = said == truth
            found[name]["true" if same else "other content"] += 1
            if not same and (name in CHECKED or _not_finite(said)):
                failures.append(f"{name}: a changed file was believed")
    return {"files": budget.done, "failures": failures[:40], "failed": len(failures), "kinds": {n: dict(c) for n, c in found.items()}}


def _not_finite(said: Any) -> bool:
    return isinstance(said, bytes) and said.startswith(b"not finite")


def _kinds(folder: Path) -> dict[str, tuple[bytes, Callable[[Path], Any], Any]]:
    """Per kind of file: a whole one, how it is read, and what it says."""
    from bapps_eval import distances
    from bapps_eval.probes import ProbeResult
    from cpips._utils import config as toml
    from cpips.batch import read_table
    from cpips.codec import container
    from cpips.pretrained import read_weights
    from cpips.realism import Space, Statistics

    made: dict[str, tuple[bytes, Callable[[Path], Any], Any]] = {}

    def add(name: str, content: bytes, read: Callable[[Path], Any]) -> None:
        path = folder / f"whole.{FORMATS.get(name, name)}"
        path.write_bytes(content)
        made[name] = (content, read, read(path))

    def pixels(path: Path) -> bytes:
        image = cpips.load_image(path)
        if not image.isfinite().all():
            return b"not finite"
        return repr(tuple(image.shape)).encode() + image.numpy().tobytes()

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    for name in FORMATS:
        stream = io.BytesIO()
        with contextlib.suppress(KeyError, OSError):  # a Pillow without AVIF
            picture.save(stream, name)
            add(name, stream.getvalue(), pixels)
    bitstream = container.Bitstream(bytes(range(40)), bytes(range(90)), 24, 32, 7)
    add("cpz", container.pack(bitstream, "hyperprior-q4", "00" * 32), lambda path: repr(container.read(path)))

    statistics = Statistics(Space("colors", lambda x: torch.cat([x.mean((2, 3)), x.flatten(2).std(2)], 1)), keep=12)
    statistics.update(torch.rand(20, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    statistics.save(folder / "s.safetensors")
    add("statistics", (folder / "s.safetensors").read_bytes(), lambda path: repr(
        [*Statistics.load(path)._state()[0].items(), *(t.tolist() for t in Statistics.load(path)._state()[1].values())]))

    n = 12
    about = {"name": "set", "task": "mos", "higher_is_better": True, "resize": "none", "missing": [], "notes": [], "digest": "0" * 64,
             "items": n, "root": ""}
    names = np.array([f"i{i:02d}" for i in range(n)])
    distances.write(distances.Distances(list(names), names, names, np.arange(n) / 2, np.arange(n)[:, None] / 7, about,
                                        {"name": "m", "signature": "m", "lower_is_better": True}), folder / "d.parquet")

    def values(path: Path) -> str:
        found = distances.read(path)
        return repr([found.ids, found.groups.tolist(), found.references.tolist(), found.opinions.tolist(), found.values.tolist(),
                     found.dataset, found.metric])

    add("distances", (folder / "d.parquet").read_bytes(), values)
    add("toml", b'name = "t"\ndata = ["a"]\nlmbda = 0.01\n', lambda path: repr(toml.read(path)))
    (folder / "ref.png").write_bytes(made["PNG"][0])
    rows = "ref,img,note\n" + "".join(f"ref.png,whole.{suffix},{i}\n" for i, suffix in enumerate(FORMATS.values()))
    add("csv", rows.encode(), lambda path: repr(read_table(path).pairs))
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"ref": ["ref.png"] * 5, "img": ["whole.png"] * 5}), buffer)
    add("parquet", buffer.getvalue(), lambda path: repr(read_table(path).pairs))
    from safetensors.torch import save as pack

    add("safetensors", pack({"g_a.0.weight": torch.arange(60.0)}), lambda path: repr(
        {key: value.tolist() for key, value in read_weights(path).items()}))
    result = ProbeResult("order", "m", "s", {"side": 3}, {"findings": [], "numbers": [1.0, 2.0]})
    result.save(folder / "r.json")
    add("json", (folder / "r.json").read_bytes(), lambda path: repr(ProbeResult.load(path)))
    with contextlib.suppress(ImportError, CpipsError):
        from cpips.codec.files import open_codec
        from cpips.codec.index import LatentIndex, build

        (folder / "images").mkdir()
        for i in range(3):
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
        codec = open_codec("hyperprior-q4")
        build(folder / "images", folder / "i.index", codec, size=16)

        def latents(path: Path) -> str:
            index = LatentIndex.open(path, codec)
            return repr([index.paths, [index.latent(i).sum().item() for i in range(len(index))]])

        add("index", (folder / "i.index").read_bytes(), latents)
    return made


# ---- commands that are killed, interrupted, and out of room ----------------------------------------------------------


def _command(args: list[str], folder: str, log: str, begun: Any) -> None:
    """In a process of its own: a command, and nothing on the terminal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell that starts this in the background has it ignored
    begun.set()  # before, Ctrl-C would meet the machinery of processes
    os.chdir(folder)
    os.environ["CPIPS_OFFLINE"] = "1"
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1), os.dup2(handle, 2)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.argv = args
    if args[0] == "bapps-eval":
        from bapps_eval.__main__ import main
    else:
        from cpips.cli import main
    main()


class Commands:
    """Runs commands from a server that has imported everything, so that a start costs no imports."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "log.txt"
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)

    def start(self, args: list[str], folder: Path) -> Any:
        begun = self.context.Event()
        process = self.context.Process(target=_command, args=(args, str(folder), str(self.log), begun))
        process.start()
        begun.wait(60)
        return process

    def run(self, args: list[str], folder: Path, seconds: float = 600) -> int | None:
        process = self.start(args, folder)
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return None
        return process.exitcode


@dataclasses.dataclass(frozen=True)
class Job:
    """A command, and what it leaves that has to be the same."""

    args: list[str]
    outputs: Callable[[Path], Any]
    interrupted: int = 130


def _jobs(folder: Path) -> dict[str, Job]:
    """Commands on small inputs in ``folder``."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    for i in range(12):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((96, 80), Image.Resampling.BICUBIC).save(folder / "photos" / f"{i:02d}.png")
    names = sorted(path.name for path in (folder / "photos").iterdir())
    rows = [(f"photos/{a}", f"photos/{b}") for a in names for b in names]
    with (folder / "pairs.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("ref", "img"), *rows])
    (folder / "noisy").mkdir()
    judged = []
    for i in range(72):  # six copies of each photo, the noise of which is what the opinions follow
        name, level = names[i // 6], 6 + 8 * (i % 6)
        pixels = np.asarray(Image.open(folder / "photos" / name), np.int16) + rng.integers(-level, level + 1, (80, 96, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "noisy" / f"{i:02d}.png", compress_level=1)
        judged.append((f"photos/{name}", f"noisy/{i:02d}.png", round(5 - level / 12 + rng.normal(0, 0.2), 3)))
    with (folder / "set.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("ref", "image", "mos"), *judged])
    (folder / "train.toml").write_text('name = "t"\ndata = ["photos"]\nlmbda = 0.01\nN = 8\nM = 12\nlog_every = 2\n'
                                       "checkpoint_every = 3\n[[stages]]\nsteps = 24\ncrop = 64\nbatch = 1\n")
    (folder / "fit.toml").write_text('name = "t"\nmodel = "cpips-lite"\nseed = 0\njudges = "mos"\ndata = "set.csv"\n')

    def content(name: str) -> Callable[[Path], bytes]:
        return lambda where: (where / name).read_bytes()

    def tensors(where: Path) -> Any:
        from safetensors.torch import load_file

        return {key: value.tolist() for key, value in load_file(where / "run" / "codec.safetensors").items()}

    def values(where: Path) -> Any:
        from bapps_eval import distances

        [path] = (where / "results").glob("*.parquet")
        found = distances.read(path)
        return [found.ids, found.values.tolist(), found.opinions.tolist()]

    return {
        "score": Job(["cpips", "score", "pairs.csv", "-o", "scores.csv"], content("scores.csv")),
        "bapps-eval run": Job(["bapps-eval", "run", "set.csv", "-m", "cpips-lite", "-o", "results", "--batch-size", "4"], values),
        "index build": Job(["cpips", "index", "build", "photos", "-o", "photos.index", "--size", "64"], content("photos.index")),
        "refine": Job(["cpips", "refine", "photos/00.png", "-o", "out.cpz", "--steps", "40"], content("out.cpz")),
        "train": Job(["cpips", "train", "train.toml", "--data-root", ".", "-o", "run"], tensors),
        "calibrate": Job(["cpips", "calibrate", "fit.toml", "--data-root", ".", "-o", "fit"],
                         lambda where: [(where / "fit" / name).read_bytes() for name in ("t.safetensors", "t.json")]),
    }


def _left(folder: Path) -> list[str]:
    """What no finished command leaves."""
    return [path.name for path in folder.rglob("*") if path.name.endswith((".partial", ".journal", ".journal.jsonl", ".refining"))]


def stopped(budget: Budget, folder: Path, signals: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """Commands that get the signals in turn, each at a random moment, again and again until they are through."""
    rng, signals_in_turn = np.random.default_rng(seed), itertools.cycle(signals)
    commands = Commands(folder)
    jobs = _jobs(folder / "inputs")
    counts: dict[str, Counter[str]] = {name: Counter() for name in jobs}
    failures: list[str] = []
    expected: dict[str, tuple[Any, float]] = {}
    unable = {}
    for name, job in jobs.items():
        where = folder / "whole" / name
        shutil.copytree(folder / "inputs", where)
        begun = time.monotonic()
        code = commands.run(job.args, where)
        if code != 0:
            unable[name] = f"exit code {code}"
            continue
        expected[name] = (job.outputs(where), time.monotonic() - begun)
    turn = 0
    while budget.left() and expected:
        name = list(expected)[turn % len(expected)]
        turn += 1
        job, (truth, seconds), where = jobs[name], expected[name], folder / "stopped"
        shutil.rmtree(where, ignore_errors=True)
        shutil.copytree(folder / "inputs", where)
        for attempt in range(8):
            process, how = commands.start(job.args, where), None
            process.join(float(rng.uniform(0, 1.05 * seconds)) if attempt < 7 and budget.left() else None)
            if process.is_alive():
                how = next(signals_in_turn)
                os.kill(process.pid, how)
                budget.done += 1
                counts[name]["stopped"] += 1
                process.join(600)
            code = process.exitcode
            if code == 0:
                break
            if how == signal.SIGINT and code not in (job.interrupted, -signal.SIGINT):
                failures.append(f"{name}: exit code {code} after Ctrl-C")
            if how is None or (how == signal.SIGKILL and code != -signal.SIGKILL):
                failures.append(f"{name}: exit code {code} when it resumed")
                break
        if code == 0:
            counts[name]["through"] += 1
            if job.outputs(where) != truth:
                failures.append(f"{name}: another output than uninterrupted")
            if left := _left(where):
                failures.append(f"{name}: left {left[:3]}")
        elif code is not None:
            if commands.run(job.args, where) != 0 or job.outputs(where) != truth:
                failures.append(f"{name}: could not be resumed")
            counts[name]["through"] += 1
    return {"stopped": budget.done, "commands": {n: dict(c) for n, c in counts.items()}, "unable": unable, "failed": len(failures),
            "failures": failures[:20]}


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "400k") -> Iterator[Path]:
    """A file system with little room.

    Raises:
        OSError: this user may not mount one.
    """
    folder.mkdir(parents=True)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(folder))
    try:
        yield folder
    finally:
        libc.umount2(os.fsencode(folder), 2)


def disks(budget: Budget, folder: Path) -> dict[str, Any]:
    """Each command with its output on a disk that is full: an error that names the file, nothing half written."""
    commands = Commands(folder)
    _jobs(folder / "inputs")
    outputs = {
        "score": ["score", "pairs.csv", "-o", "OUT/scores.csv", "--metric", "mse"],
        "map": ["map", "photos/00.png", "photos/01.png", "-o", "OUT/map.png"],
        "view": ["view", "photos/00.png", "photos/01.png", "-o", "OUT/view.html", "--no-open"],
        "compress": ["compress", "photos/00.png", "-o", "OUT/a.cpz"],
        "index build": ["index", "build", "photos", "-o", "OUT/photos.index", "--size", "64"],
        "demo": ["demo", "-o", "OUT/demo"],
        "train": ["train", "train.toml", "--data-root", ".", "-o", "OUT/run"],
        "calibrate": ["calibrate", "fit.toml", "--data-root", ".", "-o", "OUT/fit"],
        "realism": ["realism", "photos", "photos", "--save-reference", "OUT/s.safetensors", "--space", "cpips-lite"],
        "probe": ["probe", "order", "--metric", "mse", "--image", "photos/00.png", "--side", "32", "-o", "OUT/p.json"],
    }
    found: dict[str, str] = {}
    failures = []
    for name, args in outputs.items():
        if not budget.left():
            break
        disk = folder / "disk" / name.replace(" ", "-")
        try:
            with small_disk(disk):
                filler = disk / "filler"
                with contextlib.suppress(OSError), filler.open("wb") as stream:
                    while True:
                        stream.write(bytes(4096))
                        stream.flush()
                budget.done += 1
                commands.log.write_text("")
                code = commands.run(["cpips", *(arg.replace("OUT", str(disk)) for arg in args)], folder / "inputs")
                said = commands.log.read_text().strip().splitlines()
                left = [path for path in disk.rglob("*") if path.is_file() and path != filler and path.stat().st_size]
                line = next((line for line in reversed(said) if "error" in line), "")
                found[name] = line.replace(str(disk), "OUT")[:160]
                if code != 2 or str(disk) not in line or any("partial" in path.name for path in left) or "Traceback" in "".join(said):
                    failures.append(f"{name}: exit code {code}, {line[:160]!r}, left {[path.name for path in left]}")
        except OSError as error:
            return {"disks": 0, "unable": str(error), "failed": 0, "failures": []}
    return {"disks": budget.done, "said": found, "failed": len(failures), "failures": failures}


def concurrent(budget: Budget, folder: Path) -> dict[str, Any]:
    """Two processes at one output: one of them is refused, or both write the same whole file."""
    commands = Commands(folder)
    jobs = _jobs(folder / "inputs")
    failures = []
    codes: dict[str, list[Any]] = {}
    for name in ("score", "index build", "train"):
        job, alone = jobs[name], folder / f"alone-{name}"
        shutil.copytree(folder / "inputs", alone)
        if commands.run(job.args, alone) != 0:
            continue
        truth = job.outputs(alone)
        for _ in range(2):
            if not budget.left():
                break
            where = folder / "together"
            shutil.rmtree(where, ignore_errors=True)
            shutil.copytree(folder / "inputs", where)
            processes = [commands.start(job.args, where) for _ in range(2)]
            for process in processes:
                process.join(600)
            budget.done += 1
            codes.setdefault(name, []).append(sorted(process.exitcode for process in processes))
            if 0 not in codes[name][-1] or not set(codes[name][-1]) <= {0, 2} or job.outputs(where) != truth or _left(where):
                failures.append(f"{name}: exit codes {codes[name][-1]}, left {_left(where)}")
    return {"runs": budget.done, "exit_codes": codes, "failed": len(failures), "failures": failures}


# ---- large inputs ---------------------------------------------------------------------------------------------------


def _measured(queue: Any, function: Callable[..., Any], *args: Any) -> None:
    """Puts seconds, those of the CPU, and the most memory that was used, in MiB: that of the imports, and that of the function."""
    torch.set_num_threads(1)
    importlib.import_module("cpips.batch"), importlib.import_module("bapps_eval.scoring"), importlib.import_module("bapps_eval.cli")
    before, begun, cpu = _most_memory(), time.monotonic(), time.process_time()
    function(*args)
    queue.put((time.monotonic() - begun, time.process_time() - cpu, before, _most_memory()))


def _most_memory() -> float:
    # not getrusage, which counts the process that this one was started from
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _write_rows(folder: Path, rows: int) -> Path:
    path = folder / f"{rows}.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("ref", "img"), *(("a.png", "b.png") for _ in range(rows))])
    return path


def _score_rows(path: Path) -> None:
    from cpips.batch import read_table, score_table

    score_table(read_table(path), cpips.create_metric("mse"), path.with_suffix(".out.csv"), batch_size=32)


def _write_run(folder: Path, rows: int) -> Path:
    from bapps_eval import distances

    rng = np.random.default_rng(0)
    ids = [f"i{i:07d}" for i in range(rows)]
    about = {"name": "set", "task": "2afc", "higher_is_better": True, "resize": "none", "missing": [], "notes": [], "digest": "0" * 64,
             "items": rows, "root": ""}
    run = distances.Distances(ids, np.array(["g"] * rows), np.array([f"r{i % 1000}" for i in range(rows)]), rng.integers(0, 6, rows) / 5,
                              rng.random((rows, 2)), about, {"name": "m", "signature": "m", "lower_is_better": True})
    path = folder / f"{rows}.parquet"
    distances.write(run, path)
    return path


def _score_run(path: Path) -> None:
    from bapps_eval import distances
    from bapps_eval.cli import compared

    compared([distances.read(path)], 100)


def scale(folder: Path, rows: int, eval_rows: int, limit: float) -> dict[str, Any]:
    """Seconds and memory of a table, and of a tenth and three tenths of its rows, each given up after ``limit`` seconds."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    picture.save(folder / "a.png"), picture.rotate(90).save(folder / "b.png")
    context = multiprocessing.get_context("spawn")
    found: dict[str, Any] = {}
    for name, write, function, count in (("score", _write_rows, _score_rows, rows), ("bapps-eval score", _write_run, _score_run, eval_rows)):
        for part in (max(1, count // 10), max(1, 3 * count // 10), count):
            queue = context.Queue()
            process = context.Process(target=_measured, args=(queue, function, write(folder, part)))
            process.start()
            process.join(limit)
            if process.is_alive():
                process.kill()
                process.join()
            values = queue.get(timeout=5) if process.exitcode == 0 else [None] * 4
            found.setdefault(name, []).append({"rows": part} | dict(zip(("seconds", "cpu_seconds", "megabytes_before", "megabytes"), values)))
    return found


# ---- terminals ------------------------------------------------------------------------------------------------------


def terminals(folder: Path) -> dict[str, Any]:
    """Commands on narrow terminals, without colors, in other languages: they end as ever, and send no foreign escape."""
    _jobs(folder / "inputs")
    evil = "\x1b]0;owned\x07\x1b[2J.png"
    shutil.copy(folder / "inputs" / "photos" / "00.png", folder / "inputs" / evil)
    failures, runs = [], 0
    for settings in ({"COLUMNS": "20"}, {"COLUMNS": "1"}, {"LANG": "C", "LC_ALL": "C"}, {"NO_COLOR": "1"}, {"TERM": "dumb"},
                     {"PYTHONIOENCODING": "ascii"}):
        for args, expected in ((["models"], 0), (["compare", "photos/00.png", evil, "-m", "mse"], 0),
                               (["compare", "photos/00.png", "absent" + evil], 2)):
            pid, handle = pty.fork()
            if not pid:
                os.chdir(folder / "inputs")
                os.execvpe(sys.executable, [sys.executable, "-m", "cpips", *args], {**os.environ, "OMP_NUM_THREADS": "1", **settings})
            seen = b""
            with contextlib.suppress(OSError):
                while block := os.read(handle, 65536):
                    seen += block
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.close(handle)
            runs += 1
            if code != expected or b"\x1b]0;" in seen or b"\x1b[2J" in seen or b"Traceback" in seen:
                failures.append(f"{settings} {args[0]}: exit code {code}, {seen[-160:]!r}")
    return {"runs": runs, "failed": len(failures), "failures": failures}


# ---- all of it ------------------------------------------------------------------------------------------------------


def attack(share: float, seconds: float, only: list[str] | None = None) -> dict[str, Any]:
    """Every part that is wanted, each in a folder that goes."""
    found: dict[str, Any] = {}
    for name in PARTS:
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory(prefix="cpips-attack-") as temporary:
            begun, folder = time.monotonic(), Path(temporary)
            budget = Budget(int(share * COUNTS.get(name, 1)), seconds)
            found[name] = PARTS[name](budget, folder, share)
            found[name]["wall_seconds"] = round(time.monotonic() - begun, 1)
            found[name]["wanted"] = COUNTS.get(name)
        print(f"{name}: {json.dumps(found[name])[:1500]}", flush=True)
    return found


PARTS: dict[str, Callable[[Budget, Path, float], dict[str, Any]]] = {
    "gradients": lambda budget, folder, share: gradients(budget),
    "mutations": lambda budget, folder, share: mutations(budget, folder),
    "kills": lambda budget, folder, share: stopped(budget, folder, [signal.SIGKILL]),
    "interrupts": lambda budget, folder, share: stopped(budget, folder, [signal.SIGINT], 1),
    "disks": lambda budget, folder, share: disks(budget, folder),
    "concurrent": lambda budget, folder, share: concurrent(budget, folder),
    "scale": lambda budget, folder, share: scale(folder, int(share * COUNTS["rows"]), int(share * COUNTS["eval_rows"]), budget.seconds),
    "terminals": lambda budget, folder, share: terminals(folder),
}


def report(result: dict[str, Any]) -> str:
    """A table of what was reached."""
    from _common import table

    def row(name: str, what: str, done: Any, failed: Any) -> list[str]:
        return [what, f"{done:,}" if isinstance(done, int) else str(done), f"{COUNTS.get(name, ''):,}" if name in COUNTS else "", str(failed)]

    found = result["attack"]
    rows = []
    for name, what, key, bad in (
            ("gradients", "gradients of images, by every model and distance function", "gradients", "not_finite"),
            ("mutations", "mutated files of every kind that is read", "files", "failed"),
            ("kills", "kill -9 at a random moment, then the same command again", "stopped", "failed"),
            ("interrupts", "Ctrl-C at a random moment, then the same command again", "stopped", "failed"),
            ("disks", "commands with their output on a full disk", "disks", "failed"),
            ("concurrent", "pairs of processes at one output", "runs", "failed"),
            ("terminals", "commands on narrow, colorless or foreign terminals", "runs", "failed")):
        part = found.get(name, {})
        rows.append(row(name, what, part.get(key, "not run"), part.get(bad, "")))
    text = table(["what", "tried", "of", "failed"], rows)
    if "scale" not in found:
        text += "\n\nTables of 100,000 rows and distances of 1,000,000 items were not run here."
    else:
        for name, measured in found["scale"].items():
            if isinstance(measured, list):
                text += f"\n\n`{name}`: " + "; ".join(
                    f"{m['rows']:,} rows in {m['cpu_seconds']:.1f} s of CPU time and {m['megabytes']:.0f} MiB" if m["seconds"] else
                    f"{m['rows']:,} rows not reached" for m in measured)
                if before := next((m["megabytes_before"] for m in measured if m["seconds"]), None):
                    text += f" ({before:.0f} MiB of them imports)"
                text += "."
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of all counts")
    parser.add_argument("--seconds", type=float, default=3600.0, help="most of a part")
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), help="these parts alone, beside what was kept of others")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = attack(arguments.share, arguments.seconds, arguments.only)
    from _common import RESULTS

    path = RESULTS / "attack.json"
    before = json.loads(path.read_text())["attack"] if arguments.only and path.exists() else {}
    result = {"attack": before | found}
    save("attack", result)
    print(report(result))
    if any(part.get("failed") or part.get("not_finite") for part in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
