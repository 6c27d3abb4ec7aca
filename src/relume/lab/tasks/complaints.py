"""The nearest to sentiment that ships with Python: is a sentence of its standard library a complaint?

Complaints are the messages of exceptions ("can't restore logical file position"), the others are first sentences of
docstrings ("set whether process is a daemon"). They are read from the sources without importing them.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from relume.errors import RelumeError
from relume.lab.tasks.networks import Choice, text_mlp
from relume.lab.tasks.parts import keys
from relume.lab.tasks.task import Kind, Part, Split, Task
from relume.lab.tasks.words import Vocabulary

VOCABULARY, LENGTH = 1000, 16
_LEAST_WORDS = 3
_LEAST_TEXTS = 1000
# Of all texts; the rest is what a file lies across, or what looks like an earlier one once rare words are unknown.
_SHARES = (0.6, 0.15, 0.15)
_PASSED_OVER = {
    "test", "tests", "site-packages", "dist-packages", "ensurepip", "idlelib", "idle_test", "lib2to3", "turtledemo",
    "_pyrepl", "distutils",
}  # fmt: skip
_BODIES = ("body", "orelse", "finalbody", "handlers", "cases")
_PLACEHOLDER = re.compile(r"%(\(\w*\))?[-#\d.]*[a-zA-Z]|\{[^{}]*\}")


class Sentence(NamedTuple):
    """Its words in lower case, whether it complains, and which file it is from."""

    words: tuple[str, ...]
    complains: bool
    file: str


@functools.cache
def sentences() -> tuple[Sentence, ...]:
    """Complaints of three words or more, and as many other sentences of each length, each text once.

    A text that occurs as both is neither. Files are those of the standard library without its tests and programs.

    Raises:
        RelumeError: this Python comes without the sources of its standard library.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[bool, dict[tuple[str, ...], str]] = {True: {}, False: {}}
    for file in sorted(root.rglob("*.py")):
        inside = file.relative_to(root)
        if _PASSED_OVER.isdisjoint(inside.parts):
            for complains, words in said(ast.parse(file.read_bytes())):
                if len(words) >= _LEAST_WORDS:
                    found[complains].setdefault(words, inside.as_posix())
    complaints, others = ({w: f for w, f in found[kind].items() if w not in found[not kind]} for kind in (True, False))
    wanted = Counter(map(len, complaints))
    chosen = []
    # In an order that has no meaning and is the same everywhere.
    for words in sorted(others, key=lambda words: hashlib.sha256(" ".join(words).encode()).digest()):
        if wanted[len(words)]:
            wanted[len(words)] -= 1
            chosen.append(Sentence(words, False, others[words]))
    both = [*(Sentence(words, True, file) for words, file in complaints.items()), *chosen]
    if len(both) < _LEAST_TEXTS:
        raise RelumeError(
            f"found {len(both)} sentences under {root}: this Python comes without the sources of its standard library"
        )
    return tuple(both)


def said(program: ast.Module) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """All that a program says: does it complain, and in which words?"""
    # Only statements raise and are documented; looking into expressions too would take twice as long.
    nodes: list[ast.AST] = [program]
    for node in nodes:
        nodes += [child for field in _BODIES for child in getattr(node, field, ())]
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            yield True, _words(_text(node.exc.args[0]))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            yield False, _words(re.split(r"\.\s|\n\s*\n", ast.get_docstring(node) or "")[0])


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z]+", _PLACEHOLDER.sub(" ", text).lower()))[:LENGTH]


def _text(node: ast.expr) -> str:
    """The words of an expression that makes a string; what is put into it is left out."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return " ".join(_text(value) for value in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + (" " + _text(node.right) if isinstance(node.op, ast.Add) else "")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return _text(node.func.value)
    return ""


@dataclass(frozen=True)
class Complaints(Task):
    """Does a sentence complain, or explain? From its first 16 words: their mean embedding, then linear layers.

    Both kinds have equally many sentences of each length, so that length tells nothing. The split is by file: a file's
    sentences are all in one part. Words are known if they are among the 998 most frequent of the training part.
    """

    name: str = "complaints"
    kind: Kind = "classification"
    metric: str = "accuracy"
    higher_is_better: bool = True
    outputs: int = 2
    about: str = (
        "sentences of Python's standard library (real text): an exception's message, or a docstring's beginning? "
        "As many of each, of each length; other files in each part; mean embedding"
    )

    def data(self, seed: int = 0) -> Split:
        return _by_file(seed)

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return text_mlp(choice, VOCABULARY, self.outputs, width, depth)


@functools.lru_cache(maxsize=16)
def _by_file(seed: int) -> Split:
    texts = sentences()
    files = sorted({text.file for text in texts})
    generator = torch.Generator().manual_seed(seed)
    place = dict(zip(files, torch.randperm(len(files), generator=generator).tolist(), strict=True))
    ordered = sorted(texts, key=lambda text: place[text.file])
    sizes = [round(share * len(texts)) for share in _SHARES]
    vocabulary = Vocabulary((text.words for text in ordered[: sizes[0]]), VOCABULARY, LENGTH)
    x = vocabulary.rows([text.words for text in ordered])
    y = torch.tensor([text.complains for text in ordered], dtype=torch.int64)
    # Sizes are the same for every seed, so a part may end within a file; what is left of that file is left out.
    parts, at, rows = [], 0, keys(x)
    taken: set[bytes] = set()
    for size in sizes:
        while at and ordered[at].file == ordered[at - 1].file:
            at += 1
        kept = [i for i in range(at, len(rows)) if rows[i] not in taken][:size]
        parts.append(Part(x[kept], y[kept]))
        taken.update(rows[i] for i in kept)
        at = kept[-1] + 1
    return Split(*parts)


TASKS = (Complaints(),)
