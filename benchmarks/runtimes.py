"""What the default model gives, weighs and costs outside of torch, in one run on one thread.

    python benchmarks/runtimes.py [--parts differences start speed profile] [--rounds 7]

- *differences*: the largest difference of distances from torch over sizes from 1 to 300 px, and the bytes, of every export; the
  encoder of `embed.onnx` also in float16 and in int8.
- *start*: a new process imports the package and takes a first distance: time and peak memory, cpips-runtime beside cpips.
- *speed*: a pair of images, the least CPU time of the rounds, which are interleaved: the program in C, cpips-runtime, torch eager and
  compiled, and LPIPS with AlexNet (a random backbone of its shape; weights do not change the time).
- *profile*: where ONNX Runtime's time goes in `embed.onnx`, by operator.

Parts that are not named keep their stored result.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
import torch
from PIL import Image

import cpips
from _common import DATA, RESULTS, kept, save, table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from c_program import build, missing, write_ppm  # noqa: E402
from runtime_package import GRAPHS, put_together  # noqa: E402

PARTS = ("differences", "start", "speed", "profile")
SIZES = [(1, 1), (2, 1), (5, 3), (16, 16), (17, 33), (31, 64), (65, 63), (70, 45), (128, 96), (1, 300), (300, 7), (257, 300)]
SIDES = (256, 1024, 2048)
BAR = {1024: 50.0, 2048: 200.0}  # ms on one thread, as zensim publishes


def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Images ``(1,3,H,W)``: noise of every size, and photographs with noise where the data folder has some."""
    generator = np.random.default_rng(0)
    found = []
    for height, width in SIZES:
        x = generator.random((1, 3, height, width), dtype=np.float32)
        found.append((x, (x + generator.normal(0, 0.1, x.shape).astype(np.float32)).clip(0, 1)))
    for path in photographs():
        with Image.open(path) as image:
            x = np.asarray(image.convert("RGB").crop((0, 0, 300, 250)), np.float32).transpose(2, 0, 1)[None] / 255
        found += [(x, (x + generator.normal(0, level, x.shape).astype(np.float32)).clip(0, 1)) for level in (0.01, 0.1)]
    return found


def photographs() -> list[Path]:
    return sorted((DATA / "images" / "bsd100").glob("*.webp"))[:6]


def session(path: Path | str, profile: str | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measured_by(embed: Path) -> Callable[[np.ndarray, np.ndarray], float]:
    """Distances by an encoder's graph and compare.onnx."""
    encode, compare = session(embed), session(GRAPHS / "compare.onnx")
    names = [each.name for each in compare.get_inputs()]

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        features = [*encode.run(None, {"image": x}), *encode.run(None, {"image": y})]
        return float(compare.run(None, dict(zip(names, [*features, np.array(x.shape[2:], np.int64)])))[0][0])

    return distance


# ---- differences --------------------------------------------------------------------------------------------------------


def smaller(folder: Path) -> dict[str, Path]:
    """The encoder in types of fewer bits."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from cpips import onnx as graphs

    class Photographs(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter([x for x, _ in pairs()[len(SIZES):]] or [x for x, _ in pairs() if min(x.shape[2:]) > 60])

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"image": image}

    source = GRAPHS / "embed.onnx"
    found = {name: folder / f"{name}.onnx" for name in ("float16", "int8, dynamic", "int8, static", "int8, static, all convolutions")}
    graphs.export(cpips.CPIPS(), found["float16"], "embed", half=True)
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    # without the sums of the normalization, whose errors would be divided by
    graph = onnx.load(prepared).graph
    kernels = {each.name: each.dims[-1] for each in graph.initializer if len(each.dims) == 4}
    chosen = [node.name for node in graph.node if node.op_type == "Conv" and kernels.get(node.input[1], 1) > 1]
    quantize_dynamic(prepared, found["int8, dynamic"], weight_type=QuantType.QUInt8, nodes_to_quantize=chosen, op_types_to_quantize=["Conv"])
    quantize_static(prepared, found["int8, static"], Photographs(), nodes_to_quantize=chosen, op_types_to_quantize=["Conv"],
                    per_channel=True)
    quantize_static(prepared, found["int8, static, all convolutions"], Photographs(), op_types_to_quantize=["Conv"], per_channel=True)
    return found


def differences(rounds: int) -> dict[str, Any]:
    from cpips.exporting import export_program

    metric, images = cpips.CPIPS(), pairs()
    torch_says = [metric(torch.from_numpy(x), torch.from_numpy(y)).item() for x, y in images]
    found: dict[str, Any] = {}

    def note(name: str, size: int, distance: Callable[[np.ndarray, np.ndarray], float]) -> None:
        values = np.array([distance(x, y) for x, y in images])
        errors = np.abs(values - torch_says)
        found[name] = {"bytes": size, "largest": float(errors.max()), "relative": float((errors / np.maximum(torch_says, 1e-6)).max())}
        print(name, found[name], file=sys.stderr, flush=True)

    whole = sum((GRAPHS / f"{name}.onnx").stat().st_size for name in ("embed", "compare"))
    note("ONNX, embed and compare", whole, measured_by(GRAPHS / "embed.onnx"))
    map_of = session(GRAPHS / "map.onnx")
    note("ONNX, mean of the map", (GRAPHS / "map.onnx").stat().st_size,
         lambda x, y: float(map_of.run(None, {"x": x, "y": y})[0].mean(dtype=np.float64)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, path in smaller(folder).items():
            note(f"ONNX, encoder in {kind}", path.stat().st_size + (GRAPHS / "compare.onnx").stat().st_size, measured_by(path))
            encode, image = session(path), np.random.default_rng(0).random((1, 3, 512, 512), dtype=np.float32)
            plain = session(GRAPHS / "embed.onnx")
            times = least({"this": lambda: encode.run(None, {"image": image}), "plain": lambda: plain.run(None, {"image": image})}, rounds)
            found[f"ONNX, encoder in {kind}"]["time_ratio"] = round(times["this"] / times["plain"], 2)
        program = export_program(metric)
        torch.export.save(program, folder / "metric.pt2")
        call = program.module()
        note("torch.export", (folder / "metric.pt2").stat().st_size, lambda x, y: float(call(torch.from_numpy(x), torch.from_numpy(y))))
    return {"pairs": len(images), "photographs": len(images) - len(SIZES), "opset": opset(), "exports": found}


def opset() -> int:
    import onnx

    return next(each.version for each in onnx.load(GRAPHS / "embed.onnx").opset_import if each.domain in ("", "ai.onnx"))


# ---- start --------------------------------------------------------------------------------------------------------------

FIRST = """
import time
begun, cpu = time.perf_counter(), time.process_time()
import numpy
from PIL import Image
image = numpy.asarray(Image.effect_noise((256, 256), 50).convert("RGB"))
{code}
print(time.perf_counter() - begun, time.process_time() - cpu)
print(next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
PACKAGES = {"cpips-runtime": "import cpips_runtime; cpips_runtime.CPIPS(threads=1)(image, image[::-1])",
            "cpips": "import cpips, torch; torch.set_num_threads(1); cpips.CPIPS()(image, image[::-1].copy())",
            "numpy, pillow and onnxruntime, imported": "import onnxruntime"}


def start(rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        put_together(Path(name))
        environment = {**os.environ, "PYTHONPATH": f"{name}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
        runs: dict[str, list[list[float]]] = {package: [] for package in PACKAGES}
        for _ in range(rounds + 1):  # the first reads the files from disk
            for package, code in PACKAGES.items():
                done = subprocess.run([sys.executable, "-c", FIRST.format(code=code)], env=environment, capture_output=True, text=True,
                                      check=True)
                runs[package].append([float(value) for value in done.stdout.split()])
    for package, rows in runs.items():
        seconds, cpu, memory = (min(column) for column in zip(*rows[1:]))
        found[package] = {"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3), "peak_mib": round(memory, 1)}
    return found


# ---- speed --------------------------------------------------------------------------------------------------------------


def least(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The least milliseconds of each call, of the CPU, which others that the machine is shared with do not lengthen; every round has
    all of them."""
    found = {name: float("inf") for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            begun = time.process_time()
            call()
            found[name] = min(found[name], 1000 * (time.process_time() - begun))
    return found


def speed(rounds: int, sides: Sequence[int] = SIDES, skip: Sequence[str] = ()) -> dict[str, Any]:
    metric = cpips.CPIPS()
    compiled = torch.compile(cpips.CPIPS(check="off"))
    lpips = cpips.create_metric("lpips-alex", trunk="random", heads="ones")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        sys.path.insert(0, str(put_together(folder / "package")))
        import cpips_runtime

        light = cpips_runtime.CPIPS(threads=1)
        (folder / "program").mkdir()
        program = None if missing() else build(folder / "program")
        for side in sides:
            x8, y8 = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
            x, y = (torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous() for image in (x8, y8))
            arrays = [image.numpy().transpose(0, 2, 3, 1) for image in (x, y)]
            known = light.embed(arrays[0])
            calls: dict[str, Callable[[], Any]] = {
                "cpips-runtime": lambda: light(*arrays), "cpips-runtime, reference known": lambda: light.distance(known, light.embed(arrays[1])),
                "torch": lambda: metric(x, y), "torch compiled": lambda: compiled(x, y), "lpips-alex": lambda: lpips(x, y)}
            files = [write_ppm(folder / f"{i}.ppm", image) for i, image in enumerate((x8, y8))]
            times = {"C": statistics.median(c_milliseconds(program, files, side) for _ in range(rounds))} if program is not None else {}
            times |= least({name: call for name, call in calls.items() if name not in skip}, rounds)
            found[str(side)] = {name: round(value, 1) for name, value in times.items()}
            print(side, found[str(side)], file=sys.stderr, flush=True)
    return {"rounds": rounds, "bar_ms": {str(side): bar for side, bar in BAR.items()}, "milliseconds": found}


def c_milliseconds(program: Path, files: list[Path], side: int) -> float:
    """Of the CPU, for a pair: what more repeats add to a process."""
    more = max(3, 2**22 // side**2)

    def spent(repeats: int) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([str(program), "-t", "1", "-n", str(repeats), str(GRAPHS), *map(str, files)], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    return (spent(1 + more) - spent(1)) / more


# ---- profile --------------------------------------------------------------------------------------------------------------


def profile(rounds: int) -> dict[str, Any]:
    image = np.random.default_rng(0).random((1, 3, 1024, 1024), dtype=np.float32)
    with tempfile.TemporaryDirectory() as name:
        run = session(GRAPHS / "embed.onnx", profile=str(Path(name) / "profile"))
        for _ in range(rounds):
            run.run(None, {"image": image})
        events = json.loads(Path(run.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    total = sum(spent.values())
    return {"side": 1024, "shares": {name: round(value / total, 3) for name, value in spent.most_common(8)}}


# ---- the tables -----------------------------------------------------------------------------------------------------------


def differences_report(result: dict[str, Any]) -> str:
    found = result["differences"]
    rows = [[name, f"{row['bytes'] / 1000:.0f} kB", _small(row["largest"]), _small(row["relative"]),
             f"{row['time_ratio']:.2f}x" if "time_ratio" in row else ""] for name, row in found["exports"].items()]
    head = (f"Of distances, on {found['pairs']} pairs of 1x1 to 300x257 px, {found['photographs']} of them of photographs; size of the files; time of "
            f"the encoder to that in float32 at 512x512. ONNX opset {found['opset']}, ONNX Runtime {result['onnxruntime']}.")
    return head + "\n\n" + table(["export", "size", "largest difference", "largest relative difference", "encoder's time"], rows)


def _small(value: float) -> str:
    return f"{value:.1g}" if value < 1 else f"{value:.0f}"


def start_report(result: dict[str, Any]) -> str:
    ours = result["start"]["cpips-runtime"]
    rows = [[name, f"{row['seconds']:.2f} s", f"{row['cpu_seconds']:.2f} s", f"{row['peak_mib']:.0f} MiB",
             f"{row['cpu_seconds'] / ours['cpu_seconds']:.1f}x", f"{row['peak_mib'] / ours['peak_mib']:.1f}x"]
            for name, row in result["start"].items()]
    return "A new process, on one thread:\n\n" + table(
        ["import and first distance, 256x256", "time", "CPU time", "peak memory", "CPU time, ratio", "memory, ratio"], rows)


def speed_report(result: dict[str, Any]) -> str:
    times = result["speed"]["milliseconds"]
    names = list(dict.fromkeys(name for row in times.values() for name in row))
    rows = [[TITLES.get(name, name), *(f"{row[name]:.0f} ms" if name in row else "" for row in times.values())] for name in names]
    if (bar := result["speed"]["bar_ms"]).keys() & times.keys():
        rows.append(["zensim, as published", *(f"{bar[side]:.0f} ms" if side in bar else "" for side in times)])
    text = (f"CPU time of a pair on one thread ({result['machine']['cpu']}), the least of {result['speed']['rounds']} rounds:\n\n"
            + table(["", *(f"{side} x {side}" for side in times)], rows))
    if "profile" in result:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in result["profile"]["shares"].items())
        text += f"\n\nWhere ONNX Runtime's time goes in `embed.onnx` at 1024 x 1024, by operator: {shares}."
    return text


REPORTS = {"differences": differences_report, "start": start_report, "speed": speed_report}
TITLES = {"C": "the program in C", "torch": "cpips, torch", "torch compiled": "cpips, torch.compile", "lpips-alex": "LPIPS (AlexNet), torch"}


def report(result: dict[str, Any]) -> str:
    """Markdown: a table for each part that was measured."""
    return "\n\n".join(make(result) for part, make in REPORTS.items() if part in result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sides", nargs="+", type=int, default=SIDES, help="of the images of the part speed; others keep their result")
    parser.add_argument("--skip", nargs="+", default=(), help="what the part speed leaves as it is: 'torch compiled' takes minutes")
    args = parser.parse_args()
    import onnxruntime

    torch.set_num_threads(1)
    result = kept("runtimes") if (RESULTS / "runtimes.json").exists() else {}
    for part in args.parts:
        if part == "speed":
            found = speed(args.rounds, args.sides, args.skip)
            earlier, now = result.get("speed", {}).get("milliseconds", {}), found["milliseconds"]
            found["milliseconds"] = {side: earlier.get(side, {}) | now.get(side, {}) for side in sorted({**earlier, **now}, key=int)}
            result[part] = found
        else:
            result[part] = {"differences": differences, "start": start, "profile": profile}[part](args.rounds)
        result["onnxruntime"] = onnxruntime.__version__
        save("runtimes", {name: value for name, value in result.items() if name != "machine"})
    print(report(kept("runtimes")))


if __name__ == "__main__":
    main()
