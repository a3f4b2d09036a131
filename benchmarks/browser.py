"""Time and size of the metric in JavaScript, beside torch's and ONNX Runtime's for the web, on one thread of Node (V8, as in Chromium).

    python benchmarks/browser.py [--onnxruntime node_modules/onnxruntime-web --graph cpips.onnx]

The graph is one of two images and their distance, as `cpips export cpips-lite -o cpips.onnx` writes it, or one that encodes an image, which
is run twice. Times are CPU times, so that a busy
machine does not change them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

import torch
from _common import save, table

import cpips
from cpips import browser
from cpips.viz import compare_page

SIDES = (512, 1024)
RUNS = 4

SCRIPT = """
const [what, folder, graph, sides, runs] = JSON.parse(process.argv[1]);
const pixels = (n, seed) => Uint8Array.from({ length: 3 * n * n }, (_, i) => (i * 2654435761 + seed) >>> 24);
const cpu = async (run) => {
  const before = process.cpuUsage();
  const value = await run();
  const { user, system } = process.cpuUsage(before);
  return [(user + system) / 1e6, value];
};
const found = {};
let measure;
let start;
if (what === "onnxruntime") {
  const ort = await import(folder + "/dist/ort.wasm.min.mjs");
  const { readFileSync } = await import("fs");
  ort.env.wasm.numThreads = 1;
  let session;
  const make = () => ort.InferenceSession.create(new Uint8Array(readFileSync(graph)), { executionProviders: ["wasm"] });
  [start] = await cpu(async () => { session = await make(); });
  measure = async (n) => {
    const times = session.inputNames.length > 1 ? 1 : 2;
    const tensor = (seed) => new ort.Tensor("float32", Float32Array.from(pixels(n, seed), (v) => v / 255), [1, 3, n, n]);
    const feeds = Object.fromEntries(session.inputNames.map((name, i) => [name, tensor(i * 77777777)]));
    return cpu(async () => { for (let i = 0; i < times; i += 1) await session.run(feeds); });
  };
} else {
  const { CPIPS } = await import(folder + "/index.js");
  let metric;
  [start] = await cpu(async () => { metric = await CPIPS.load({ backend: what }); });
  measure = (n) => {
    const [a, b] = [0, 77777777].map((seed) => ({ data: pixels(n, seed), width: n, height: n }));
    return cpu(() => metric.distance(a, b));
  };
}
for (const n of sides) {
  const times = [];
  for (let i = 0; i < runs; i += 1) times.push((await measure(n))[0]);
  found[n] = Math.min(...times);
}
console.log(JSON.stringify({ start, seconds: found }));
"""


def in_node(what: str, folder: Path, graph: Path | None = None, sides: tuple[int, ...] = SIDES, runs: int = RUNS) -> dict:
    given = json.dumps([what, str(folder.resolve()), str(graph and graph.resolve()), sides, runs])
    done = subprocess.run(["node", "--single-threaded-gc", "--input-type=module", "-e", SCRIPT, given], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def in_torch() -> dict:
    metric, found = cpips.CPIPS(), {}
    for side in SIDES:
        x, y = torch.rand(2, 1, 3, side, side)
        times = []
        for _ in range(RUNS):
            begin = time.process_time()
            with torch.inference_mode():
                metric(x, y)
            times.append(time.process_time() - begin)
        found[side] = min(times)
    return found


def size(*paths: Path) -> int:
    return sum(path.stat().st_size for path in paths)


def report(result: dict) -> str:
    def cell(value: float | None, unit: str) -> str:
        return f"{value:.2f} {unit}" if value else ""

    rows = [[row["name"], cell(row["bytes"] / 1e6, "MB"), *(cell(row["seconds"].get(str(side)), "s") for side in SIDES)] for row in result["rows"]]
    m = result["machine"]
    return (f"{table(['runtime', 'to load', *(f'{side} x {side}' for side in SIDES)], rows)}\n\n(CPU time of a distance of two images on one "
            f"thread; {m['cpu']}, torch {m['torch']}, Node {result['node']}.)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnxruntime", type=Path, help="folder of the package onnxruntime-web")
    parser.add_argument("--graph", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    npm = browser.FOLDER
    own = size(*(npm / name for name in browser.SOURCES))
    rows = [{"name": "this module", "bytes": own, **in_node("wasm", npm)},
            {"name": "this module without WebAssembly", "bytes": own, **in_node("plain", npm, sides=SIDES[:1], runs=1)}]
    if args.onnxruntime:
        files = (args.onnxruntime / "dist" / "ort.wasm.min.mjs", args.onnxruntime / "dist" / "ort-wasm-simd-threaded.wasm", args.graph)
        version = json.loads((args.onnxruntime / "package.json").read_text())["version"]
        rows.append({"name": f"onnxruntime-web {version} (wasm)", "bytes": size(*files), "graph": args.graph.name,
                     **in_node("onnxruntime", args.onnxruntime, args.graph)})
    rows.append({"name": "torch", "bytes": 0, "seconds": in_torch()})
    for row in rows:
        print(row, flush=True)
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip().removeprefix("v")
    print(save("browser", {"what": "time and size of the metric in JavaScript", "node": node, "page": len(compare_page()), "rows": rows}))


if __name__ == "__main__":
    main()
