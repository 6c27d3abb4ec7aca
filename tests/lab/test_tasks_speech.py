"""Speech: features with a known answer, a synthesizer that is told what to say, voices that no two parts share."""

import importlib
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from relume.errors import RelumeError
from relume.lab import Member, run_batched, run_member, tasks
from relume.lab.tasks.speech import SHIPPED, SpokenDigits, mel, synthesize

command = importlib.import_module("relume.lab.tasks.speech.__main__")
RATE = 16000

# Stands in for the program: a word is a tone whose frequency its letters and voice give, behind a header as espeak-ng
# writes it to a pipe, which claims more than there is.
FAKE = """#!{python}
import math, struct, sys
if "--voices=variant" in sys.argv:
    print("Pty Language       Age/Gender VoiceName          File                 Other Languages")
    print(" 5  variant         --/M      Low                !v/low               (en-us 5)")
    print(" 5  variant         --/M      High_One           !v/high one          ")
    sys.exit()
voice, speed, word = sys.argv[2], int(sys.argv[4]), sys.argv[-1]
if word == "fails":
    sys.exit("no such phoneme")
hz = sum(map(ord, word)) * (1 if voice.endswith("low") else 2)
n = 0 if word == "mute" else 22050 * 60 // speed
tone = [int(9000 * math.sin(2 * math.pi * hz * i / 22050)) for i in range(n)]
quiet = [0] * 3000
samples = struct.pack("<%dh" % (n + 6000), *quiet, *tone, *quiet)
sys.stdout.buffer.write(
    b"RIFF" + struct.pack("<I", 0x7FFFF024) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 22050, 44100, 2, 16)
    + b"data" + struct.pack("<I", 0x7FFFF000) + samples
)
"""


@pytest.fixture
def espeak(tmp_path, monkeypatch):
    program = tmp_path / "espeak-ng"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def tone(hz, seconds=1.0):
    return np.sin(2 * np.pi * hz * np.arange(int(RATE * seconds)) / RATE)


def test_a_tone_is_loudest_in_the_band_that_holds_it():
    corners = 700 * (10 ** (np.linspace(*mel.mel(np.array([80.0, 7600.0])), 22) / 2595) - 1)
    for hz in (150, 440, 1000, 3000, 7000):
        found = mel.log_mel(tone(hz)[None], RATE, 20, 24)[0]
        nearest = int(np.abs(corners[1:-1] - hz).argmin())
        assert (found[:, 1:-1].argmax(0) == nearest).all()
        far = np.abs(np.arange(20) - nearest) > 3
        assert found[far][:, 1:-1].max() < -25


def test_levels_are_decibels_below_the_loudest():
    sound = np.concatenate([tone(1000, 0.5), tone(1000, 0.5) / 10])
    found = mel.log_mel(np.stack([sound, 1000 * sound]), RATE, 20, 24)
    band = int(found[0, :, 3].argmax())
    assert found[0].max() == 0
    assert found[0, band, 2:10] == pytest.approx(0, abs=0.1)
    assert found[0, band, 14:22] == pytest.approx(-20, abs=0.1)
    assert found.min() == -mel.FLOOR
    assert np.allclose(found[0], found[1], atol=1e-3)


def test_silence_has_a_spectrogram_too():
    assert (mel.log_mel(np.zeros((2, RATE)), RATE, 20, 24) == 0).all()
    assert mel.log_mel(np.zeros((0, RATE)), RATE, 20, 24).shape == (0, 20, 24)
    with pytest.raises(ValueError, match="20 samples"):
        mel.log_mel(np.zeros((1, 20)), RATE, 20, 24)


def test_filters_share_out_each_frequency_between_two_neighbours():
    assert mel.mel(np.array([0.0, 1000.0])) == pytest.approx([0, 1000], abs=0.02)
    weights = mel.filters(20, 4097, RATE)
    corners = 700 * (10 ** (np.linspace(*mel.mel(np.array([80.0, 7600.0])), 22) / 2595) - 1)
    hz = np.linspace(0, RATE / 2, 4097)
    between = (hz >= corners[1]) & (hz <= corners[-2])
    assert weights.sum(0)[between] == pytest.approx(1)
    assert (weights[:, (hz < corners[0]) | (hz > corners[-1])] == 0).all()


def test_noise_is_as_far_below_the_word_as_was_drawn(monkeypatch):
    word = np.sin(2 * np.pi * 500 * (np.arange(6400) + 0.5) / RATE)
    said = np.concatenate([np.zeros(4000), word, np.zeros(4000)])
    starts = []
    for seed in range(4):
        clips = []
        for decibels in (12.0, 300.0):
            monkeypatch.setattr(synthesize, "_SIGNAL_TO_NOISE", (decibels, decibels))
            clips.append(synthesize.in_noise(said, RATE, np.random.default_rng(seed)))
        noise = clips[0] - clips[1]
        assert 10 * math.log10(np.mean(word**2) / np.mean(noise**2)) == pytest.approx(12, abs=0.01)
        heard = np.flatnonzero(np.abs(clips[1]) > 1e-6)
        starts.append(heard[0])
        assert clips[1][heard[0] : heard[0] + len(word)] == pytest.approx(word, abs=1e-6)
        assert np.abs(clips[1]).sum() == pytest.approx(np.abs(word).sum(), rel=1e-3)
        # White noise has as much in its upper half as in the lower, pink next to nothing.
        spectrum = np.abs(np.fft.rfft(noise)) ** 2
        high = spectrum[len(spectrum) // 2 :].sum() / spectrum.sum()
        assert high == pytest.approx(0.5, abs=0.05) or high < 0.15
    assert len(set(starts)) == 4


def test_every_voice_says_every_digit_the_same_for_the_same_seed(espeak):
    made = synthesize.synthesize(("low", "high one"), renditions=2, seed=3)
    again = synthesize.synthesize(("low", "high one"), renditions=2, seed=3)
    other = synthesize.synthesize(("low",), renditions=1, seed=4)
    assert made["features"].shape == (40, 20, 24)
    assert made["features"].dtype == np.uint8
    assert (made["features"] == again["features"]).all()
    assert (other["features"][0] != made["features"][0]).any()
    assert made["speaker"].tolist() == [0] * 20 + [1] * 20
    assert made["digit"].tolist() == [d for d in range(10) for _ in range(2)] * 2
    assert made["features"].max() == mel.FLOOR / synthesize.STEP
    # An octave higher: the loudest band is a higher one.
    low, high = (made["features"][made["speaker"] == s].max(2).argmax(1) for s in (0, 1))
    assert (high > low).all()


def test_the_command_makes_a_file_that_the_task_learns_from(espeak, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "SPEAKERS", ("low", "high one"))
    monkeypatch.setenv("RELUME_DATA", str(tmp_path))
    more = tasks.get("spoken-digits-more")
    with pytest.raises(tasks.real.MissingDataError, match="--renditions 40"):
        more.data(0)
    assert command.main([str(tmp_path / "spoken-digits.npz"), "--renditions", "1"]) == 0
    assert "20 utterances in 2 voices" in capsys.readouterr().out
    with np.load(more.files(), allow_pickle=False) as stored:
        assert stored["features"].shape == (20, 20, 24)
    with pytest.raises(RelumeError, match="2 voices"):
        more.data(0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: synthesize.synthesize(("low", "nobody")), "lacks the voices nobody; it has: high one, low"),
        (lambda: synthesize.speak("fails", "en+low"), "no such phoneme"),
        (lambda: synthesize.in_noise(*synthesize.speak("mute", "en+low"), np.random.default_rng(0)), "silence"),
    ],
)
def test_what_the_synthesizer_can_not_say_is_an_error(espeak, call, said):
    with pytest.raises(RelumeError, match=said):
        call()


def test_without_espeak_the_error_names_the_package(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RelumeError, match="apt-get install espeak-ng"):
        synthesize.synthesize(("m1",))
    assert command.main([str(tmp_path / "out.npz")]) == 2
    assert "apt-get install espeak-ng" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([str(tmp_path / "out.npz"), "--renditions", "0"])


def test_what_comes_with_relume_is_what_espeak_says():
    if shutil.which("espeak-ng") is None or b" 1.51" not in subprocess.check_output(["espeak-ng", "--version"]):
        pytest.skip("needs espeak-ng 1.51, which said them")
    with np.load(SHIPPED, allow_pickle=False) as stored:
        shipped = {name: stored[name] for name in stored.files}
    assert shipped["speakers"].tolist() == list(synthesize.SPEAKERS)
    assert shipped["features"].shape == (3200, 20, 24)
    assert SHIPPED.stat().st_size < 1.5e6
    made = synthesize.synthesize(synthesize.SPEAKERS[:1], renditions=8)
    # To rounding, which the last digit of a Fourier transform may tip.
    assert np.abs(made["features"].astype(int) - shipped["features"][:80].astype(int)).max() <= 1


def write(file, speaker, digit=None, features=None):
    speaker = np.asarray(speaker, np.uint8)
    features = np.ones((len(speaker), 20, 24), np.uint8) * speaker[:, None, None] if features is None else features
    digit = np.zeros(len(speaker), np.uint8) if digit is None else digit
    np.savez_compressed(file, features=features, digit=digit, speaker=speaker)
    return file


def test_no_voice_is_in_two_parts(tmp_path):
    task = SpokenDigits(file=write(tmp_path / "x.npz", np.repeat(np.arange(10), 3)))
    for seed in range(5):
        split = task.data(seed)
        voices = [set(part.x.unique().tolist()) for part in (split.train, split.validation, split.test)]
        assert [len(v) for v in voices] == [6, 2, 2]
        assert len(set.union(*voices)) == 10
    assert not torch.equal(task.data(0).test.x, task.data(1).test.x)


def test_the_training_voices_alone_set_the_scale():
    split = tasks.get("spoken-digits-cnn").data(1)
    assert split.train.x.mean((0, 1, 3)) == pytest.approx(torch.zeros(20), abs=1e-4)
    assert split.train.x.std((0, 1, 3), correction=0) == pytest.approx(torch.ones(20), abs=1e-4)
    assert float(split.test.x.mean((0, 1, 3)).abs().max()) > 0.01
    flat = tasks.get("spoken-digits").data(1)
    assert torch.equal(flat.test.x, split.test.x.flatten(1))
    assert [len(part.y) for part in (split.train, split.validation, split.test)] == [1920, 640, 640]
    assert split.test.y.bincount().tolist() == [64] * 10


def test_a_file_of_other_things_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", features=np.zeros((2, 20, 24)))
    wide = write(tmp_path / "wide.npz", range(10), features=np.zeros((10, 20, 30), np.uint8))
    for file in (tmp_path / "none.npz", tmp_path / "text.npz", tmp_path / "other.npz", wide):
        with pytest.raises(RelumeError, match=file.name):
            SpokenDigits(file=file).data(0)


def test_a_short_training_understands_voices_it_has_not_heard():
    assert run_member(Member("spoken-digits", steps=200), diagnose=False).scores["test"] > 0.4  # by chance 0.1
    cnn = Member("spoken-digits-cnn", width=8, steps=150, optimizer="adam", lr=0.01)
    assert run_member(cnn, diagnose=False).scores["test"] > 0.3


@pytest.mark.parametrize("of", [{"task": "spoken-digits"}, {"task": "spoken-digits-cnn", "width": 4}])
def test_together_is_as_alone(of):
    members = [Member(**of, lr=lr, seed=seed, steps=12, window=6, every=3) for seed, lr in enumerate((0.05, 0.1))]
    for member, result in zip(members, run_batched(members), strict=True):
        alone = run_member(member, diagnose=False)
        assert result.curves.loss == pytest.approx(alone.curves.loss, rel=1e-4)
        assert result.scores == pytest.approx(alone.scores, abs=0.01)
