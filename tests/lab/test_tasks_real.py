"""Published data: read from tiny files in the published formats, split honestly, and clear when they are not there."""

import gzip
import struct
import sys
import types
import wave

import numpy as np
import pytest
import torch

from relume.errors import RelumeError
from relume.lab import Member, run_batched, run_member, tasks
from relume.lab.tasks.real import Brought, MissingDataError

NAMES = ("mnist", "cifar10", "speech-commands", "imdb")
WORDS = ("go", "stop", "yes")


def pictures(n, size, seed, classes=10):
    """Noise in which a bright band shows the class: uint8 [n, *size], and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    x = generator.integers(0, 120, (n, *size))
    for i, label in enumerate(labels):
        x[i, :, 2 * label : 2 * label + 2] += 120
    return x.astype(np.uint8), labels.astype(np.uint8)


def idx(file, values, pack):
    content = struct.pack(f">{values.ndim + 1}I", 0x800 + values.ndim, *values.shape) + values.tobytes()
    if pack:
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(content))
    else:
        file.write_bytes(content)


def write_mnist(root, place="mnist", pack=True):
    folder = root / place
    folder.mkdir(parents=True)
    for part, n in (("train", 300), ("t10k", 60)):
        x, y = pictures(n, (1, 28, 28), n)
        if part == "t10k":
            x[0], y[0] = MNIST[0][5], MNIST[1][5]  # one that is among the training images too
        idx(folder / f"{part}-images-idx3-ubyte", x[:, 0], pack)
        idx(folder / f"{part}-labels-idx1-ubyte", y, pack)


def write_cifar10(root):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        x, y = pictures(60, (3, 32, 32), i)
        (folder / f"{name}.bin").write_bytes(np.concatenate([y[:, None], x.reshape(60, -1)], 1).tobytes())


def write_wav(file, samples, rate=16000, width=2):
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(samples.astype("<i2").tobytes() if width == 2 else bytes(len(samples)))


def write_commands(root):
    folder = root / "speech_commands_v0.02"
    generator = np.random.default_rng(0)
    lists = {"testing": [], "validation": [], "train": []}
    for number, word in enumerate(WORDS):
        for speaker in range(30):
            n = 16000 if speaker % 2 else 11000
            sound = 5000 * np.sin(2 * np.pi * 300 * 2**number * np.arange(n) / 16000) + generator.normal(0, 500, n)
            name = f"{word}/{speaker:08x}_nohash_0.wav"
            write_wav(folder / name, sound)
            lists["testing" if speaker < 6 else "validation" if speaker < 12 else "train"].append(name)
    write_wav(folder / "_background_noise_" / "white.wav", generator.normal(0, 500, 40000))
    for part in ("testing", "validation"):
        (folder / f"{part}_list.txt").write_text("\n".join(lists[part]) + "\n")


def write_imdb(root):
    generator = np.random.default_rng(0)
    for part, n in (("train", 100), ("test", 30)):
        for kind, opinion in (("pos", "wonderful"), ("neg", "dreadful")):
            folder = root / "aclImdb" / part / kind
            folder.mkdir(parents=True)
            for i in range(n):
                words = [*(f"word{chr(97 + w)}" for w in generator.integers(0, 20, 12)), opinion, "<br /><br />Café!"]
                (folder / f"{i}_{8 if kind == 'pos' else 2}.txt").write_text(" ".join(words), encoding="utf-8")


MNIST = pictures(300, (1, 28, 28), 300)
WRITE = {"mnist": write_mnist, "cifar10": write_cifar10, "speech-commands": write_commands, "imdb": write_imdb}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("RELUME_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    return tmp_path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for write in WRITE.values():
        write(root)
    return root


@pytest.fixture
def all_data(written, monkeypatch):
    monkeypatch.setenv("RELUME_DATA", str(written))
    return written


def rows(part):
    return {tuple(r) for r in part.x.flatten(1).tolist()}


def parts(split):
    return split.train, split.validation, split.test


@pytest.mark.parametrize("name", NAMES)
def test_no_input_is_in_two_parts_and_the_same_seed_gives_the_same(name, all_data):
    task = tasks.get(name)
    first, other = task.data(1), task.data(2)
    again = task.data(1)
    for a, b in zip(parts(first), parts(again), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
    train, validation, test = map(rows, parts(first))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert not torch.equal(first.train.x, other.train.x)
    assert torch.equal(first.test.y, other.test.y)


def test_parts_have_the_published_sizes_less_what_is_in_the_test_part_too(all_data):
    sizes = {name: [len(part.y) for part in parts(tasks.get(name).data(0))] for name in NAMES}
    assert sizes == {
        "mnist": [270, 29, 60],  # 299: one is in the test part
        "cifar10": [270, 30, 60],
        "speech-commands": [54, 18, 18],
        "imdb": [180, 20, 60],
    }


@pytest.mark.parametrize("name", ["mnist", "cifar10", "speech-commands"])
def test_the_training_part_alone_sets_the_scale(name, all_data):
    split = tasks.get(name).data(0)
    kept = {"mnist": (0, 1), "cifar10": (0, 2, 3), "speech-commands": (0, 1, 3)}[name]
    assert float(split.train.x.mean(kept).abs().max()) < 1e-4
    spread = split.train.x.std(kept, correction=0)
    assert torch.allclose(spread, torch.ones_like(spread), atol=1e-4)
    assert float(split.test.x.mean(kept).abs().max()) > 1e-4


def test_pictures_are_read_as_they_were_written(all_data):
    split = tasks.get("cifar10").data(0)
    assert split.train.x.shape == (270, 3, 32, 32)
    # The band of the class is the brightest.
    for x, y in ((split.train.x, split.train.y), (split.test.x, split.test.y)):
        bands = x.mean((1, 3))[:, :20].view(len(x), 10, 2).mean(2)
        assert torch.equal(bands.argmax(1), y)
    flat = tasks.get("mnist").data(0)
    assert flat.train.x.shape == (270, 784)
    bands = flat.validation.x.view(-1, 28, 28).mean(2)[:, :20].view(-1, 10, 2).mean(2)
    assert torch.equal(bands.argmax(1), flat.validation.y)


def test_red_green_and_blue_stay_apart(data):
    write_cifar10(data)
    x = np.zeros((60, 3, 32, 32), np.uint8)
    x[:, 0] = np.arange(60)[:, None, None]
    x[:, 2] = 200
    batch = np.concatenate([np.zeros((60, 1), np.uint8), x.reshape(60, -1)], 1)
    for i in range(1, 6):
        (data / "cifar-10-batches-bin" / f"data_batch_{i}.bin").write_bytes(batch.tobytes())
    train = tasks.get("cifar10").data(0).train.x
    assert len(train) == 54  # copies in other batches count once
    assert float(train[:, 0].std()) == pytest.approx(1, rel=0.02)
    assert float(train[:, 1:].abs().max()) == 0


def test_mnist_is_found_unpacked_too_and_where_torchvision_puts_it(data, monkeypatch):
    write_mnist(data / "packed")
    write_mnist(data / "plain", "MNIST/raw", pack=False)
    found = []
    for sub in ("packed", "plain"):
        monkeypatch.setenv("RELUME_DATA", str(data / sub))
        found.append(tasks.get("mnist").data(3))
    assert torch.equal(found[0].train.x, found[1].train.x)


def test_a_review_is_its_first_words_without_markup(all_data):
    task = tasks.get("imdb")
    split = task.data(0)
    assert split.test.x.shape == (60, 256)
    numbers = {int(n) for n in split.train.x.flatten()}
    assert numbers == set(range(max(numbers) + 1)) - {1}
    # 20 made up, two opinions, "caf" of café; nothing of <br />.
    assert max(numbers) == 1 + 23
    lengths = (split.test.x > 0).sum(1)
    assert lengths.tolist() == [14] * 60
    assert int(split.train.y.bincount().min()) > 70


def test_speakers_are_where_the_published_lists_put_them(all_data):
    split = tasks.get("speech-commands").data(0)
    assert split.train.x.shape == (54, 1, 32, 32)
    for part, n in zip(parts(split), (18, 6, 6), strict=True):
        counts = part.y.bincount(minlength=35)
        assert {tasks.real.commands.WORDS[i]: int(c) for i, c in enumerate(counts) if c} == dict.fromkeys(WORDS, n)
    # A tone an octave higher is loudest in a higher band; "go", "stop", "yes" are in the order of the alphabet.
    x = torch.cat([part.x for part in parts(split)])
    y = torch.cat([part.y for part in parts(split)])
    raw = tasks.real.commands.SpeechCommands().read(all_data / "speech_commands_v0.02").inputs[0]
    loudest = raw[:, 0, :, 2:18].mean(2).argmax(1)
    assert len(set(loudest.tolist())) == 3
    assert loudest.tolist() == sorted(loudest.tolist())
    assert len(x) == len(y) == 90


def test_a_silent_recording_is_no_nan(data):
    write_commands(data)
    folder = data / "speech_commands_v0.02"
    for speaker in (20, 21):
        write_wav(folder / f"go/{speaker:08x}_nohash_0.wav", np.zeros(16000))
    split = tasks.get("speech-commands").data(0)
    assert all(bool(part.x.isfinite().all()) for part in parts(split))
    assert len(split.train.y) == 53  # two silences are one


@pytest.mark.parametrize("name", NAMES)
def test_without_data_the_error_says_what_to_download_and_where_to_put_it(name, data):
    task = tasks.get(name)
    assert isinstance(task, Brought)
    with pytest.raises(MissingDataError) as caught:
        task.data(0)
    said = str(caught.value)
    assert str(data / task.places[0]) in said
    assert task.download in said
    assert "RELUME_DATA" in said
    assert ("pip install" in said) == (name != "speech-commands")
    assert Member(name).task == name  # settings can be made on another machine


def test_the_folder_is_in_the_cache_unless_the_environment_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv("RELUME_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tasks.real.source.folder() == tmp_path / "relume" / "data"


def spoil(root, name):
    """For each way of being wrong: which file to write, with what in it, and what the error is to say."""
    cifar, mnist = root / "cifar-10-batches-bin", root / "mnist"
    speech = root / "speech_commands_v0.02"
    return {
        "cut batch": ("cifar10", cifar / "data_batch_2.bin", b"\0" * 3000, "3000 bytes"),
        "empty batch": ("cifar10", cifar / "test_batch.bin", b"", "0 bytes"),
        "label 11": ("cifar10", cifar / "test_batch.bin", b"\x0b" * 3073, "from 0 to 9"),
        "cut gzip": ("mnist", mnist / "train-images-idx3-ubyte.gz", gzip.compress(b"x" * 99)[:-9], "unpacked"),
        "no idx": ("mnist", mnist / "t10k-labels-idx1-ubyte.gz", gzip.compress(b"labels"), "no idx file"),
        "other idx": ("mnist", mnist / "t10k-images-idx3-ubyte.gz", gzip.compress(struct.pack(">4I", 0x803, 1, 2, 2)),
                      r"\[number, 28, 28\]"),
        "fewer labels": ("mnist", mnist / "train-labels-idx1-ubyte.gz",
                         gzip.compress(struct.pack(">2I", 0x801, 3) + b"\1\2\3"), "300 images have 3 labels"),
        "no wav": ("speech-commands", speech / "go" / "x.wav", b"RIFF....", "no wav file"),
        "other word": ("speech-commands", speech / "goose" / "x.wav", b"", "'goose'"),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "how",
    ["cut batch", "empty batch", "label 11", "cut gzip", "no idx", "other idx", "fewer labels", "no wav", "other word"],
)
def test_a_damaged_file_is_named(how, data):
    name, file, content, said = spoil(data, how)
    WRITE[name](data)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(RelumeError, match=said) as caught:
        tasks.get(name).data(0)
    if how not in ("label 11", "fewer labels"):
        assert file.parent.name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("cifar10", "cifar-10-batches-bin/data_batch_5.bin"),
        ("mnist", "mnist/t10k-labels-idx1-ubyte"),
        ("speech-commands", "speech_commands_v0.02/testing_list.txt"),
        ("imdb", "aclImdb/test/pos"),
    ],
)
def test_what_is_missing_among_the_files_is_named(name, lacking, data):
    WRITE[name](data)
    place = data / lacking
    packed = place.with_name(place.name + ".gz")
    target = packed if packed.exists() else place
    target.rename(target.with_name("elsewhere"))
    with pytest.raises(MissingDataError, match=place.name):
        tasks.get(name).data(0)


def test_a_recording_at_another_rate_is_refused(data):
    write_commands(data)
    write_wav(data / "speech_commands_v0.02/go/slow.wav", np.zeros(8000), rate=8000)
    with pytest.raises(RelumeError, match="8000"):
        tasks.get("speech-commands").data(0)


def test_too_few_inputs_are_no_task(data):
    folder = data / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / f"{name}.bin").write_bytes(bytes(3073))
    with pytest.raises(RelumeError, match="too few"):
        tasks.get("cifar10").data(0)


def test_the_library_datasets_gives_the_same_as_the_files(data, monkeypatch):
    """In another order, which is not to matter."""
    for write in WRITE.values():
        write(data / "files")
    asked = []

    def tables(name, column):
        raw = tasks.get(name).read(tasks.get(name).files())
        found = {}
        for part, x, y in zip(("train", "test"), raw.inputs, raw.labels, strict=True):
            values = [" ".join(words) for words in x] if name == "imdb" else list(x.movedim(1, 3).squeeze(3).numpy())
            found[part] = {column: values[::-1], "label": y.tolist()[::-1]}
        return found

    monkeypatch.setenv("RELUME_DATA", str(data / "files"))
    by_hub = {
        "ylecun/mnist": tables("mnist", "image"),
        "uoft-cs/cifar10": tables("cifar10", "img"),
        "stanfordnlp/imdb": tables("imdb", "text"),
    }
    expected = {name: tasks.get(name).data(4) for name in ("mnist", "cifar10", "imdb")}
    library = types.ModuleType("datasets")
    library.load_dataset = lambda name: asked.append(name) or by_hub[name]
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setenv("RELUME_DATA", str(data / "nothing"))
    for name, split in expected.items():
        for a, b in zip(parts(split), parts(tasks.get(name).data(4)), strict=True):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.y, b.y)
    assert asked == list(by_hub)

    def offline(name):
        raise ConnectionError("no route to the hub")

    library.load_dataset = offline
    tasks.real.source._raw.cache_clear()
    tasks.real.source._split.cache_clear()
    with pytest.raises(MissingDataError, match="no route to the hub"):
        tasks.get("imdb").data(0)


@pytest.mark.parametrize(
    ("name", "settings", "chance"),
    [
        ("mnist", {"steps": 60}, 0.1),
        ("cifar10", {"steps": 60, "width": 8, "optimizer": "adam", "lr": 0.01}, 0.1),
        ("speech-commands", {"steps": 60, "width": 4, "optimizer": "adam", "lr": 0.01}, 0.34),
        ("imdb", {"steps": 60, "optimizer": "adam", "lr": 0.01}, 0.5),
    ],
)
def test_a_short_training_beats_chance_and_together_is_as_alone(name, settings, chance, all_data):
    member = Member(name, window=20, every=4, **settings)
    alone = run_member(member, diagnose=False)
    assert alone.scores["test"] > chance + 0.4
    (together,) = run_batched([member])
    assert together.curves.loss[:1] == pytest.approx(alone.curves.loss[:1], rel=1e-3)
    assert together.scores["test"] == pytest.approx(alone.scores["test"], abs=0.1)
