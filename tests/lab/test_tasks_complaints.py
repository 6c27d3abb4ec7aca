"""Complaints: what Python says is told from what it explains, by file and without the length giving it away."""

import ast
import inspect
import re
import statistics
from collections import Counter

import pytest
import torch

from relume.lab import Member, run_batched, run_member, tasks
from relume.lab.tasks import complaints
from relume.lab.tasks.parts import distinct, keys, standardized
from relume.lab.tasks.task import Part, Split
from relume.lab.tasks.words import UNKNOWN, Vocabulary


def test_sentences_are_those_that_python_says():
    known = {" ".join(s.words): s for s in complaints.sentences()}
    with pytest.raises(statistics.StatisticsError) as caught:
        statistics.mean([])
    assert str(caught.value) == "mean requires at least one data point"
    assert known[str(caught.value)].complains
    assert known[str(caught.value)].file == "statistics.py"
    explained = [s for s in complaints.sentences() if not s.complains and s.file == "statistics.py"]
    source = " ".join(re.findall(r"[a-z]+", inspect.getsource(statistics).lower()))
    assert len(explained) > 3
    assert all(" ".join(s.words) in source for s in explained)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('raise ValueError("no such file")', "no such file"),
        ('raise ValueError("no %s in %(name)s: %d" % x)', "no in"),
        ('raise ValueError(f"no {x!r} in " + "the list")', "no in the list"),
        ('raise OSError("no {0} in {}".format(a, b))', "no in"),
        ('def f():\n    """Open it now.  Then close."""', "open it now"),
        ('class C:\n    """Holds a thing\n\n    Two."""', "holds a thing"),
        ("raise ValueError", None),
        ("raise ValueError(code)", None),
    ],
)
def test_what_is_put_into_a_message_is_left_out(source, words):
    found = [(complains, " ".join(said)) for complains, said in complaints.said(ast.parse(source)) if said]
    assert found == ([(source.startswith("raise"), words)] if words else [])


def test_length_and_number_tell_nothing():
    lengths = [Counter(len(s.words) for s in complaints.sentences() if s.complains is kind) for kind in (True, False)]
    for words in range(3, 11):
        assert lengths[0][words] == lengths[1][words] > 50
    assert len({s.words for s in complaints.sentences()}) == len(complaints.sentences())


def test_no_file_is_in_two_parts():
    task = tasks.get("complaints")
    split = task.data(5)
    texts = complaints.sentences()
    order = torch.randperm(len({s.file for s in texts}), generator=torch.Generator().manual_seed(5)).tolist()
    place = dict(zip(sorted({s.file for s in texts}), order, strict=True))
    ordered = sorted(texts, key=lambda s: place[s.file])
    vocabulary = Vocabulary((s.words for s in ordered[: len(split.train.y)]), complaints.VOCABULARY, complaints.LENGTH)
    rows = vocabulary.rows([s.words for s in ordered]).tolist()
    by_row, files = {}, []
    for row, s in zip(rows, ordered, strict=True):
        by_row.setdefault(tuple(row), []).append(s.file)
    for part in (split.train, split.validation, split.test):
        alone = [by_row[tuple(r)] for r in part.x.tolist()]  # rows of rare words may be several sentences'
        files.append({f[0] for f in alone if len(f) == 1})
    assert min(map(len, files)) > 20
    assert not files[0] & files[1]
    assert not files[0] & files[2]
    assert not files[1] & files[2]


def test_a_vocabulary_knows_the_most_frequent_words_of_its_texts():
    vocabulary = Vocabulary([("b", "a"), ("c", "b"), ("a", "b", "z")], size=5, length=2)
    assert vocabulary.numbers == {"b": 2, "a": 3, "c": 4}  # z is beyond the length
    assert vocabulary.rows([("a",), ("z", "b", "b"), ()]).tolist() == [[3, 0], [UNKNOWN, 2], [0, 0]]


def test_equal_inputs_are_kept_once():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [5.0, 6.0]])
    found = keys(x)
    assert found[0] == found[2] != found[1]
    assert distinct(found) == [0, 1, 3]
    assert distinct(found, keys(torch.tensor([[3.0, 4.0]]))) == [0, 3]


def test_what_does_not_vary_is_only_centred():
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    split = standardized(Split(*(Part(x + n, torch.zeros(2)) for n in (0, 1, 2))), (0,))
    assert split.train.x.tolist() == [[-1, 0], [1, 0]]
    assert split.test.x.tolist() == [[1, 2], [3, 2]]


def test_a_short_training_tells_complaints_apart():
    result = run_member(Member("complaints", steps=200, optimizer="adam", lr=0.01), diagnose=False)
    assert result.scores["test"] > 0.8


def test_together_is_as_alone():
    members = [Member("complaints", lr=lr, seed=seed, steps=12, window=6, every=3) for seed, lr in enumerate((0.1, 1))]
    for member, result in zip(members, run_batched(members), strict=True):
        alone = run_member(member, diagnose=False)
        assert result.curves.loss == pytest.approx(alone.curves.loss, rel=1e-4)
        assert result.scores == pytest.approx(alone.scores, abs=0.01)
