"""Spoken digits, synthetic: a speech synthesizer says "zero" to "nine" in 40 voices, and a network that has heard some
of them listens to others.

`synthesize.py` makes the data, which come with relume; `mel.py` makes features of sound; `python -m` of this folder
makes more of them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from relume.errors import RelumeError
from relume.lab.tasks.networks import Choice, cnn, mlp
from relume.lab.tasks.parts import standardized
from relume.lab.tasks.speech.synthesize import BANDS, DIGITS, FRAMES, STEP
from relume.lab.tasks.task import Kind, Part, Split, Task

_LEAST_VOICES = 5
SHIPPED = Path(__file__).with_name("spoken_digits.npz")
_ABOUT = (
    "3200 spoken digits, synthetic: espeak-ng's 40 voices in 8 English accents, with noise (comes with relume); "
    "log-mel features; other voices in each part"
)


@dataclass(frozen=True)
class SpokenDigits(Task):
    """Which digit was said? From a log-mel spectrogram of 20 bands and 24 frames, as a row of 480 numbers.

    The split is by voice: 24 of the 40 are heard in training, 8 others in validation, 8 others in the test. Accents are
    shared. The speech is synthetic, far more regular than people's; compare activations on it, not recognizers.

    Attributes:
        file: features to learn from; `python -m relume.lab.tasks.speech` makes more than come with relume.
    """

    name: str = "spoken-digits"
    kind: Kind = "classification"
    metric: str = "accuracy"
    higher_is_better: bool = True
    outputs: int = len(DIGITS)
    about: str = _ABOUT + "; a network of linear layers"
    file: Path = SHIPPED

    def data(self, seed: int = 0) -> Split:
        split = _by_voice(self.file, seed)
        return Split(*(Part(part.x.flatten(1), part.y) for part in (split.train, split.validation, split.test)))

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return mlp(choice, BANDS * FRAMES, self.outputs, width, depth)


@dataclass(frozen=True)
class SpokenDigitsCnn(SpokenDigits):
    """The same from the spectrogram as an image of one channel."""

    name: str = "spoken-digits-cnn"
    about: str = _ABOUT + "; a convolutional network"

    def data(self, seed: int = 0) -> Split:
        return _by_voice(self.file, seed)

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return cnn(choice, (1, BANDS, FRAMES), self.outputs, width, depth)


@functools.lru_cache(maxsize=16)
def _by_voice(file: Path, seed: int) -> Split:
    try:
        with np.load(file, allow_pickle=False) as stored:
            features, digit, speaker = (torch.from_numpy(stored[n]) for n in ("features", "digit", "speaker"))
    except (OSError, KeyError, ValueError) as error:
        raise RelumeError(f"{file} holds no spoken digits: {error}") from error
    if features.shape[1:] != (BANDS, FRAMES) or not len(features) == len(digit) == len(speaker):
        raise RelumeError(f"{file} holds features of shape {tuple(features.shape)}, not [any, {BANDS}, {FRAMES}]")
    voices = len(speaker.unique())
    if voices < _LEAST_VOICES:
        raise RelumeError(f"{file} holds {voices} voices; a split by voice needs {_LEAST_VOICES} or more")
    drawn = torch.randperm(voices, generator=torch.Generator().manual_seed(seed))
    a, b = round(0.6 * voices), round(0.8 * voices)
    x = features.unsqueeze(1) * STEP
    rows = [torch.isin(speaker, drawn[of].to(speaker.dtype)) for of in (slice(a), slice(a, b), slice(b, None))]
    # Each pitch band has its own scale: high ones are fainter in all speech.
    return standardized(Split(*(Part(x[of], digit[of].to(torch.int64)) for of in rows)), (0, 1, 3))


TASKS = (SpokenDigits(), SpokenDigitsCnn())
