"""What several tests share and no fixture gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

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
