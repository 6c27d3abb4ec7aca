"""DReLU's fused kernels: C++ on the CPU (`cpu.py`), Triton on NVIDIA's and AMD's GPUs (`gpu.py`).

`RELUME_KERNELS=off` does without; `RELUME_KERNELS=triton` takes Triton everywhere, which without a GPU needs its
interpreter (TRITON_INTERPRET=1). Both are read anew at each call.
"""

from __future__ import annotations

import os
from types import ModuleType

import torch
from torch import Tensor

from relume.activations.drelu.kernels import cpu, gpu
from relume.native import OFF

# Of other classes of tensors the address may be of something else, or of nothing.
PLAIN = (Tensor, torch.nn.Parameter)


def kernels_for(x: Tensor) -> ModuleType | None:
    """The module whose `forward` and `backward` can take x, or None."""
    wanted = os.environ.get("RELUME_KERNELS")
    if wanted and (wanted := wanted.lower()) in OFF:
        return None
    if type(x) not in PLAIN or x.layout != torch.strided or x.is_neg() or x.numel() == 0:
        return None
    if wanted == "triton" or x.is_cuda:
        return gpu if gpu.load() is not None else None
    return cpu if x.is_cpu and cpu.load() is not None else None
