"""SpeechCommands: one second of speech, one of 35 words."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from relume.errors import RelumeError
from relume.lab.tasks.networks import Choice, cnn
from relume.lab.tasks.parts import keys, standardized
from relume.lab.tasks.real.source import Brought, MissingDataError, Raw
from relume.lab.tasks.speech.mel import log_mel
from relume.lab.tasks.task import Kind, Part, Split

WORDS = (
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy",
    "house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop",
    "three", "tree", "two", "up", "visual", "wow", "yes", "zero",
)  # fmt: skip
BANDS, FRAMES = 32, 32
_RATE = 16000
_LISTS = {"test": "testing_list.txt", "validation": "validation_list.txt"}
_AT_ONCE = 2048


class _Clip(NamedTuple):
    file: Path
    word: int


@dataclass(frozen=True)
class SpeechCommands(Brought):
    """Which of 35 words is said in a second of real speech? From a log-mel spectrogram of 32 bands and 32 frames.

    The three parts are those of the published lists, which no speaker is in two of; the seed only orders the training
    part. Features are made when the data are first asked for in a process, which takes a minute or two.

    Source: Warden 2018, arXiv 1804.03209, version 0.02.
    """

    name: str = "speech-commands"
    kind: Kind = "classification"
    metric: str = "accuracy"
    higher_is_better: bool = True
    outputs: int = len(WORDS)
    about: str = (
        "SpeechCommands v0.02: 105,829 real recordings of 35 words (Warden 2018); log-mel features; you bring the files"
    )
    places: tuple[str, ...] = ("speech_commands_v0.02", "SpeechCommands/speech_commands_v0.02")
    download: str = (
        "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz and unpack it into a folder of that name"
    )

    def read(self, files: Path) -> Raw:
        lists = {part: _lines(files / name) for part, name in _LISTS.items()}
        clips: dict[str, list[_Clip]] = {part: [] for part in ("train", *_LISTS)}
        for sub in sorted(path for path in files.iterdir() if path.is_dir() and not path.name.startswith(("_", "."))):
            if sub.name not in WORDS:
                raise RelumeError(f"{sub}: {sub.name!r} is not among the 35 words of SpeechCommands v0.02")
            for file in sorted(sub.glob("*.wav")):
                part = next((p for p, listed in lists.items() if f"{sub.name}/{file.name}" in listed), "train")
                clips[part].append(_Clip(file, WORDS.index(sub.name)))
        parts = [clips[part] for part in ("train", "test", "validation")]
        inputs = tuple(_features(part) for part in parts)
        labels = tuple(torch.tensor([clip.word for clip in part], dtype=torch.int64) for part in parts)
        return Raw(inputs, labels, tuple(keys(x) for x in inputs))

    def split(self, raw: Raw, train: list[int], validation: list[int], test: list[int]) -> Split:
        of = zip(raw.inputs, raw.labels, (train, test, validation), strict=True)
        a, c, b = (Part(x[kept], y[kept]) for x, y, kept in of)
        return standardized(Split(a, b, c), (0, 1, 3))

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return cnn(choice, (1, BANDS, FRAMES), self.outputs, width, depth)


def _lines(file: Path) -> set[str]:
    if not file.is_file():
        raise MissingDataError(f"{file} is missing, which says who is in which part; unpack the archive as a whole")
    return set(file.read_text(encoding="utf-8").split())


def _features(clips: list[_Clip]) -> Tensor:
    """[clips, 1, bands, frames]"""
    x = torch.empty(len(clips), 1, BANDS, FRAMES)
    for start in range(0, len(clips), _AT_ONCE):
        waves = np.stack([_second(clip.file) for clip in clips[start : start + _AT_ONCE]])
        x[start : start + len(waves), 0] = torch.from_numpy(log_mel(waves, _RATE, BANDS, FRAMES))
    return x


def _second(file: Path) -> NDArray[np.int16]:
    """One second of samples, silent where the recording is shorter."""
    try:
        with wave.open(str(file)) as sound:
            kind = (sound.getnchannels(), sound.getsampwidth(), sound.getframerate())
            frames = sound.readframes(_RATE)
    except (EOFError, wave.Error) as error:
        raise RelumeError(f"{file} is no wav file: {error}") from error
    if kind != (1, 2, _RATE):
        raise RelumeError(f"{file} has (channels, bytes, rate) {kind}, not (1, 2, {_RATE})")
    samples = np.frombuffer(frames, "<i2")
    return np.pad(samples, (0, _RATE - len(samples)))


TASKS = (SpeechCommands(),)
