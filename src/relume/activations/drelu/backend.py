"""`relume.backend`: which of DReLU's implementations a tensor or a device gets, and why not a faster one."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from relume.activations.drelu.kernels import cpu, gpu, kernels_for
from relume.activations.drelu.operator import must_be_seen_through
from relume.native import OFF


def backend(x_or_device: Tensor | torch.device | str | None = None) -> str:
    """Which implementation of DReLU is in use, in words.

    Asking builds the C++ kernel if that hasn't happened yet, which takes a few seconds once per machine.

    Args:
        x_or_device: a tensor, or a device ("cuda"); the CPU if left out.

    Returns:
        "cpu: C++ kernel, 2 threads", "cuda: Triton kernel", or "eager: …" and the reason why torch's own operations
        serve; "formula: …" where the plain formula is handed to a compiler or a transform.

    Raises:
        RuntimeError: there is no such device type.

    >>> import relume
    >>> relume.backend(torch.randn(3)).partition(":")[0] in ("cpu", "eager")
    True
    """
    if isinstance(x_or_device, Tensor):
        x = x_or_device
        if must_be_seen_through(x):
            return "formula: a compiler, a transform or a tensor subclass is at work, which sees through it"
        device = x.device
    else:
        device = torch.device(x_or_device or "cpu")
        x = torch.empty(1)
    wanted = os.environ.get("RELUME_KERNELS", "").lower()
    if wanted in OFF:
        return "eager: kernels are turned off by RELUME_KERNELS"
    if wanted == "triton" or device.type == "cuda":
        if gpu.load() is None:
            return "eager: Triton is not installed"
        return f"{device.type}: Triton kernel" + (", interpreted" if gpu.interpreted() else "")
    if device.type != "cpu":
        return f"eager: there is no kernel for {device.type}"
    if cpu.load() is None:
        return f"eager: {cpu.reason()}"
    if isinstance(x_or_device, Tensor) and x.numel() and kernels_for(x) is None:
        return "eager: no kernel takes this tensor (sparse, a lazily negated view)"
    n = cpu.threads()
    return f"cpu: C++ kernel, {n} thread{'s' * (n > 1)}"
