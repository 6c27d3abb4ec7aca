"""Makes the spoken digits: espeak-ng says them in many voices, and noise is added. The result is features, not sound.

    python -m relume.lab.tasks.speech OUT.npz --renditions 8

makes the file that comes with relume, by espeak-ng 1.51 of Debian 12.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import wave
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from relume.errors import RelumeError
from relume.lab.tasks.speech.mel import FLOOR, log_mel

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = (
    "en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc",
)  # fmt: skip
# Voices of espeak-ng without robots, whisperers and near twins of those already here.
SPEAKERS = (
    "m1", "m2", "m3", "m4", "m5", "m7", "m8", "f1", "f2", "f3", "f4", "Alex", "Alicia", "Andrea", "Annie", "Denis",
    "Diogo", "Gene", "Jacky", "Lee", "Marco", "Michael", "adam", "anika", "antonio", "aunty", "belinda", "boris",
    "david", "ed", "iven", "marcelo", "max", "norbert", "pablo", "pedro", "rob", "steph", "travis", "zac",
)  # fmt: skip
BANDS, FRAMES, SECONDS = 20, 24, 0.96
# Decibels that a step of the stored whole numbers stands for.
STEP = 0.5
_SPEEDS = (130, 210)  # words a minute
_PITCHES = (30, 70)  # of 0 … 99; 50 is the voice's own
_SIGNAL_TO_NOISE = (5.0, 30.0)  # decibels
_PATIENCE = 60


def synthesize(
    speakers: Sequence[str] = SPEAKERS, renditions: int = 8, seed: int = 0
) -> dict[str, NDArray[np.uint8] | NDArray[np.str_]]:
    """Let every speaker say every digit so many times, each time with another accent, speed, pitch and noise.

    Args:
        speakers: voice variants of espeak-ng.
        renditions: of each digit by each speaker.
        seed: of all that is drawn.

    Returns:
        `features` [utterances, BANDS, FRAMES], steps of half a decibel above −60 dB of the loudest; `digit` and
        `speaker` [utterances]; `speakers`, their names.

    Raises:
        RelumeError: there is no espeak-ng, it lacks a voice, or fails.
    """
    _check(speakers)
    clips = []
    for number in range(len(speakers)):
        for digit, word in enumerate(DIGITS):
            for rendition in range(renditions):
                generator = np.random.default_rng((seed, number, digit, rendition))
                voice = f"{ACCENTS[generator.integers(len(ACCENTS))]}+{speakers[number]}"
                said, rate = speak(word, voice, *(int(generator.integers(a, b + 1)) for a, b in (_SPEEDS, _PITCHES)))
                clips.append(in_noise(said, rate, generator))
    decibels = log_mel(np.stack(clips), rate, BANDS, FRAMES)
    each = np.indices((len(speakers), len(DIGITS), renditions), np.uint8).reshape(3, -1)
    return {
        "features": np.round((decibels + FLOOR) / STEP).astype(np.uint8),
        "digit": each[1],
        "speaker": each[0],
        "speakers": np.array(speakers),
    }


def speak(text: str, voice: str, speed: int = 175, pitch: int = 50) -> tuple[NDArray[np.float64], int]:
    """What espeak-ng makes of a text.

    Args:
        voice: an accent, "+", a variant.
        speed: words a minute.
        pitch: 0 … 99.

    Returns:
        Samples between −1 and 1, and how many there are in a second.
    """
    out = _espeak("-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text)
    try:
        with wave.open(io.BytesIO(out)) as sound:
            rate = sound.getframerate()
            # The header claims more frames than there are: when it was written, nobody knew.
            frames = sound.readframes(len(out))
    except (EOFError, wave.Error) as error:
        raise RelumeError(f"espeak-ng gave no sound for {text!r} in voice {voice!r}") from error
    return np.frombuffer(frames, "<i2") / 2**15, rate


def in_noise(said: NDArray[np.float64], rate: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """A clip of 0.96 s in which a word without the silence around it begins somewhere, in white or pink noise."""
    loud = np.flatnonzero(np.abs(said) > 0.02 * np.abs(said).max(initial=0))
    if not len(loud):
        raise RelumeError("espeak-ng gave silence")
    length = int(SECONDS * rate)
    word = said[loud[0] : loud[-1] + 1][:length]
    noise = np.fft.rfft(generator.standard_normal(length))
    if generator.random() < 0.5:  # pink: as much in each octave
        noise /= np.sqrt(np.maximum(np.arange(len(noise)), 1))
    clip = np.fft.irfft(noise, length)
    below = 10 ** (-generator.uniform(*_SIGNAL_TO_NOISE) / 20)
    clip *= below * np.sqrt(np.mean(word**2) / np.mean(clip**2))
    start = int(generator.integers(length - len(word) + 1))
    clip[start : start + len(word)] += word
    return clip


def _check(speakers: Sequence[str]) -> None:
    """espeak-ng takes a variant that it hasn't for none at all, without a word."""
    listed = _espeak("--voices=variant").decode(errors="replace")
    known = {line.split("!v/")[1].split("(")[0].strip() for line in listed.splitlines() if "!v/" in line}
    lacking = [name for name in speakers if name not in known]
    if lacking:
        raise RelumeError(f"this espeak-ng lacks the voices {', '.join(lacking)}; it has: {', '.join(sorted(known))}")


def _espeak(*arguments: str) -> bytes:
    program = shutil.which("espeak-ng")
    if program is None:
        raise RelumeError(
            "speech is synthesised by espeak-ng, which is not installed: apt-get install espeak-ng (Debian, Ubuntu), "
            "brew install espeak-ng (macOS)"
        )
    done = subprocess.run([program, *arguments], capture_output=True, timeout=_PATIENCE)
    if done.returncode:
        raise RelumeError(f"espeak-ng failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
