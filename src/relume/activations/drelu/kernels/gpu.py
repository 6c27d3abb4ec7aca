"""DReLU's two passes as Triton kernels: each reads and writes every element once, sums per channel included.

A program takes a tile of channels × samples and goes through its share of the samples; where channels lie apart
(images), a tile is a stretch of one channel. Tested in Triton's interpreter, where it runs on the CPU.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import torch
from torch import Tensor

from relume.activations.drelu.formula import FAR
from relume.activations.drelu.layout import Layout

_TILE = 1024
_PROGRAMS = 2048  # enough to fill a GPU; more would only make more sums to add up


@functools.cache
def load() -> tuple[Any, Any] | None:
    """The forward and the backward kernel, or None where Triton is not installed."""
    try:
        import triton
        import triton.language as tl
    except ImportError:
        return None

    @triton.jit  # type: ignore[untyped-decorator]
    def forward(  # type: ignore[no-untyped-def]
        x, y, taus, alphas, sums, channels, inner, samples,
        MANY_TAUS: tl.constexpr, MANY_ALPHAS: tl.constexpr, EXPONENTIAL: tl.constexpr, SUMS: tl.constexpr,  # noqa: N803
        T: tl.constexpr, SHARES: tl.constexpr, CHANNELS: tl.constexpr, SAMPLES: tl.constexpr, FAR: tl.constexpr,  # noqa: N803
    ):  # fmt: skip
        share = tl.program_id(1)
        channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
        exists = channel < channels
        tau = tl.load(taus + channel * MANY_TAUS, mask=exists, other=1.0)[None, :]
        alpha = tl.load(alphas + channel * MANY_ALPHAS, mask=exists, other=0.5)[None, :]
        total = tl.zeros([CHANNELS], T)
        count = tl.zeros([CHANNELS], T)
        for start in range(share * SAMPLES, samples, SHARES * SAMPLES):
            sample = start + tl.arange(0, SAMPLES)
            there = (sample < samples)[:, None] & exists[None, :]
            row = (sample // inner).to(tl.int64)
            at = (row[:, None] * channels + channel[None, :]) * inner + (sample % inner)[:, None]
            z = tl.load(x + at, mask=there, other=0.0).to(T)
            u = tl.where(z < 0, -z / tau, tl.where(z == z, 0.0, z))  # NaN stays NaN
            if EXPONENTIAL:
                d = -tl.minimum(u, 100.0)
                near = d * 0.0 + 1.0  # near 0 e^d - 1 would lose its digits: Taylor's series there
                for k in tl.static_range(12):
                    near = 1 + d / (13 - k) * near
                near = d * near
                low = alpha * z + (1 - alpha) * tau * tl.where(d > -0.25, near, tl.exp(d) - 1)
                out = tl.where(z < 0, low, z)
            else:
                out = z * (alpha + (1 - alpha) / (1 + tl.where(u > FAR, FAR, u)))
                out = tl.where(z >= 0, z, out)
            tl.store(y + at, out.to(y.dtype.element_ty), mask=there)
            if SUMS:
                total += tl.sum(u * tau, axis=0)
                count += tl.sum(tl.where(z < 0, 1.0, 0.0).to(T), axis=0)
        if SUMS:
            to = sums + share * 2 * channels + channel
            tl.store(to, total, mask=exists)
            tl.store(to + channels, count, mask=exists)

    @triton.jit  # type: ignore[untyped-decorator]
    def backward(  # type: ignore[no-untyped-def]
        g, kept, dx, taus, alphas, sums, channels, inner, samples,
        MANY_TAUS: tl.constexpr, MANY_ALPHAS: tl.constexpr, EXPONENTIAL: tl.constexpr, SUMS: tl.constexpr,  # noqa: N803
        T: tl.constexpr, SHARES: tl.constexpr, CHANNELS: tl.constexpr, SAMPLES: tl.constexpr, FAR: tl.constexpr,  # noqa: N803
    ):  # fmt: skip
        share = tl.program_id(1)
        channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
        exists = channel < channels
        tau = tl.load(taus + channel * MANY_TAUS, mask=exists, other=1.0)[None, :]
        alpha = tl.load(alphas + channel * MANY_ALPHAS, mask=exists, other=0.5)[None, :]
        by_tau = tl.zeros([CHANNELS], T)
        by_alpha = tl.zeros([CHANNELS], T)
        for start in range(share * SAMPLES, samples, SHARES * SAMPLES):
            sample = start + tl.arange(0, SAMPLES)
            there = (sample < samples)[:, None] & exists[None, :]
            row = (sample // inner).to(tl.int64)
            at = (row[:, None] * channels + channel[None, :]) * inner + (sample % inner)[:, None]
            z = tl.load(kept + at, mask=there, other=0.0).to(T)
            up = tl.load(g + at, mask=there, other=0.0).to(T)
            v = tl.where(z < 0, -z / tau, tl.where(z == z, 0.0, z))
            if EXPONENTIAL:
                u = v
                d = -tl.minimum(u, 100.0)
                e = tl.exp(d)
                near = d * 0.0 + 1.0
                for k in tl.static_range(12):
                    near = 1 + d / (13 - k) * near
                near = d * near
                m = tl.where(d > -0.25, near, e - 1)
                slope = alpha + (1 - alpha) * e
                a = (1 - alpha) * (m + u * (m + 1))
                b = -tau * (u + m)
            else:
                v = tl.where(v > FAR, FAR, v)
                w = 1 - v
                s = tl.sqrt(w * w + 4 * alpha * v)
                top = tl.where(v < 1, 2 * v, s - w)
                bottom = tl.where(v < 1, s + w, 2 * alpha)
                u = top / bottom
                slope = s * bottom / (bottom + top)
                q = u / (1 + u)
                a = -(1 - alpha) * q * q
                b = -tau * u * q
            tl.store(dx + at, (up * slope).to(dx.dtype.element_ty), mask=there)
            if SUMS:
                by_tau += tl.sum(up * a, axis=0)
                by_alpha += tl.sum(up * b, axis=0)
        if SUMS:
            to = sums + share * 2 * channels + channel
            tl.store(to, by_tau, mask=exists)
            tl.store(to + channels, by_alpha, mask=exists)

    return forward, backward


def interpreted() -> bool:
    """Is there no GPU, but Triton's interpreter?"""
    return os.environ.get("TRITON_INTERPRET", "") == "1"


def forward(
    x: Tensor, y: Tensor, layout: Layout, tau: Tensor, alpha: Tensor, form: str, statistics: Tensor | None
) -> None:
    """As `cpu.forward`."""
    _run(0, (x, y), layout, tau, alpha, form, statistics)


def backward(
    g: Tensor, kept: Tensor, dx: Tensor, layout: Layout, tau: Tensor, alpha: Tensor, form: str, sums: Tensor | None
) -> None:
    """As `cpu.backward`."""
    _run(1, (g, kept, dx), layout, tau, alpha, form, sums)


def _run(
    which: int, tensors: tuple[Tensor, ...], layout: Layout, tau: Tensor, alpha: Tensor, form: str, sums: Tensor | None
) -> None:
    kernel = load()[which]  # type: ignore[index]
    outer, channels, inner = layout
    samples = outer * inner
    lanes = 1 if inner >= 64 or channels == 1 else min(64, 1 << (channels - 1).bit_length())
    tile = _TILE // lanes
    groups = math.ceil(channels / lanes)
    shares = max(1, min(math.ceil(samples / tile), math.ceil(_PROGRAMS / groups)))
    wide = tensors[-1].dtype == torch.float64
    parts = torch.empty((shares, 2, channels) if sums is not None else 0, dtype=tau.dtype, device=tensors[-1].device)
    import triton.language as tl

    kernel[groups, shares](
        *tensors, tau, alpha, parts, channels, inner, samples,
        MANY_TAUS=int(tau.numel() > 1), MANY_ALPHAS=int(alpha.numel() > 1), EXPONENTIAL=form != "rational",
        SUMS=sums is not None, T=tl.float64 if wide else tl.float32, SHARES=shares, CHANNELS=lanes, SAMPLES=tile,
        FAR=FAR,
    )  # fmt: skip
    if sums is not None:
        torch.sum(parts, 0, dtype=sums.dtype, out=sums)
