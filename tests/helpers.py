"""What several tests share and no fixture gives."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Iterable, Sequence

import numpy as np
import torch


def state_of(N: int = 4, M: int = 6) -> dict[str, torch.Tensor]:
    """An encoder's state dict of random weights, as CompressAI stores it."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for i, (inputs, outputs) in enumerate([(3, N), (N, N), (N, N), (N, M)]):
        state[f"g_a.{2 * i}.weight"] = torch.randn(outputs, inputs, 5, 5, generator=generator)
        state[f"g_a.{2 * i}.bias"] = torch.randn(outputs, generator=generator)
        if i < 3:
            state[f"g_a.{2 * i + 1}.beta"] = torch.rand(N, generator=generator) + 0.5
            state[f"g_a.{2 * i + 1}.gamma"] = torch.rand(N, N, generator=generator)
    return state


def visit(browser, page: Path, width: int = 1200, height: int = 900) -> None:
    """Open a page in a window of this size, and wait until its scripts have run and the window has the size; a busy
    machine's browser may come back before, or with the page or the size of the test before."""
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get("about:blank")
    browser.set_window_size(width, height)
    browser.get(page.as_uri())
    WebDriverWait(browser, 60).until(lambda b: b.execute_script(
        "return location.href === arguments[0] && document.readyState === 'complete' && innerWidth === arguments[1]",
        page.as_uri(), width))


def write_csv(path: Path, rows: Iterable[Sequence], header: Sequence[str] = ("ref", "img")) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def run_two(script: str, folder) -> list[dict]:
    """Two processes that find each other through a file; what each leaves in its RANK.json."""
    (folder / "script.py").write_text(textwrap.dedent(script))
    env = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})
    processes = [subprocess.Popen([sys.executable, str(folder / "script.py"), str(rank), str(folder)], env=env,
                                  stderr=subprocess.PIPE, text=True) for rank in range(2)]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stderr.close()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1) of ``rgb(r, g, b)``."""
    rgb = np.array([float(v) for v in re.findall(r"[\d.]+", colour)[:3]]) / 255
    return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722))
