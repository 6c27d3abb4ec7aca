"""Fused one-pass kernels for meters; where none is to be had, torch's reductions serve."""

from relume.watch.kernels.cpu import PLAIN as PLAIN
from relume.watch.kernels.cpu import kernel_for as kernel_for
from relume.watch.kernels.cpu import prepared as prepared
from relume.watch.kernels.cpu import reason as reason
