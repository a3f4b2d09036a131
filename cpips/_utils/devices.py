"""Devices and number types by the names that options have."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ..errors import ModelError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")

Module = TypeVar("Module", bound="torch.nn.Module")


def place(metric: Module, device: str, dtype: str) -> Module:
    """``metric`` on the device and in the type that the options name."""
    import torch

    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown: choose from {', '.join(DTYPES)}")
    return metric.to(device=open_device(device), dtype=getattr(torch, dtype))


def open_device(name: str, threads: int | None = None) -> torch.device:
    """The device that the options name; torch is held to ``threads`` on the CPU from here on.

    Raises:
        ModelError: an unknown device, or one that is not here.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    present = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name == "auto":
        return torch.device(present[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"device {name!r} is unknown: choose cpu, cuda, cuda:0, mps or auto") from None
    if device.type not in present or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ModelError(f"device {name!r} is not available here: choose from {', '.join(present)}")
    return device
