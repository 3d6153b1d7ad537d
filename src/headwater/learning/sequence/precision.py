"""In which precision a training computes its softmax."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

_CPUINFO = Path("/proc/cpuinfo")


def in_bf16(precision: Literal["auto", "float32", "bf16"], device: torch.device, cpuinfo: Path = _CPUINFO) -> bool:
    """Whether ``precision`` of ``[models.sequence]`` means bf16 on ``device``.

    "auto" does where it was measured to be faster without a loss: on processors with ``avx512_bf16``. Without such instructions bf16 is
    emulated, and slower. The encoder stays float32: its matrices are small, and turning them took what bf16 saved.
    """
    if precision != "auto":
        return precision == "bf16"
    return device.type == "cpu" and cpuinfo.is_file() and "avx512_bf16" in cpuinfo.read_text(encoding="utf-8").split()
