"""Text that everybody has: the docstrings of Python's own standard library, read from its sources without importing it.

`docstrings` asks which topic a docstring's module is about, `docstring-kinds` whether it is a class's or a function's.
The text is that of the Python that runs, so figures differ a little between Python versions.
"""

from __future__ import annotations

import ast
import functools
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from relume.errors import RelumeError
from relume.lab.tasks.networks import Choice, Transformer, text_mlp
from relume.lab.tasks.task import Kind, Part, Split, Task
from relume.lab.tasks.words import Vocabulary

# Modules by topic; those that a Python lacks are left out.
TOPICS: dict[str, tuple[str, ...]] = {
    "network": ("email", "http", "urllib", "mailbox", "imaplib", "smtplib", "ftplib", "poplib", "ssl", "wsgiref"),
    "concurrency": ("asyncio", "multiprocessing", "threading", "concurrent", "subprocess", "queue", "selectors"),
    "numbers": ("_pydecimal", "fractions", "statistics", "random", "numbers", "datetime", "_pydatetime", "calendar"),
    "language": ("importlib", "inspect", "pydoc", "typing", "ast", "dis", "symtable", "enum", "dataclasses"),
    "testing": ("unittest", "doctest", "pdb", "bdb", "logging", "traceback", "trace", "pstats", "timeit", "warnings"),
    "files": ("tarfile", "zipfile", "pathlib", "_pyio", "shutil", "tempfile", "gzip", "os", "codecs", "configparser"),
}
VOCABULARY, LENGTH = 2000, 32
_LEAST_WORDS = 4
_LEAST_TEXTS = 500


class Docstring(NamedTuple):
    """One docstring: its words in lower case, the topic of its module, and whether it is a class's."""

    words: tuple[str, ...]
    topic: int
    of_class: bool


@functools.cache
def docstrings() -> tuple[Docstring, ...]:
    """All docstrings of four words or more in the modules of `TOPICS`, each text once, in the order of the files.

    Raises:
        RelumeError: this Python comes without the sources of its standard library.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[tuple[str, ...], Docstring] = {}
    for topic, modules in enumerate(TOPICS.values()):
        for module in modules:
            for tree in _sources(root, module):
                for node in ast.walk(tree):
                    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                        continue
                    words = tuple(re.findall(r"[a-z]+", (ast.get_docstring(node) or "").lower()))[:LENGTH]
                    if len(words) >= _LEAST_WORDS:
                        found.setdefault(words, Docstring(words, topic, isinstance(node, ast.ClassDef)))
    if len(found) < _LEAST_TEXTS:
        raise RelumeError(
            f"found {len(found)} docstrings under {root}: this Python comes without the sources of its standard library"
        )
    return tuple(found.values())


def _sources(root: Path, module: str) -> Iterator[ast.Module]:
    files = sorted((root / module).rglob("*.py")) if (root / module).is_dir() else [root / f"{module}.py"]
    for file in files:
        if file.is_file() and not {"test", "tests"} & set(file.parts[len(root.parts) :]):
            yield ast.parse(file.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Docstrings(Task):
    """The topic of a docstring's module, from its first 32 words: their mean embedding, then linear layers.

    Words are known if they are among the 1998 most frequent of the training part. Docstrings that agree in their first
    32 words are one; near-copies within a module may still lie on both sides of the split.
    """

    name: str = "docstrings"
    kind: Kind = "classification"
    metric: str = "accuracy"
    higher_is_better: bool = True
    outputs: int = len(TOPICS)
    about: str = "docstrings of Python's standard library (real text), by the topic of their module; mean embedding"

    def texts(self, seed: int) -> list[tuple[tuple[str, ...], int]]:
        """Words and label of each text."""
        return [(d.words, d.topic) for d in docstrings()]

    def data(self, seed: int = 0) -> Split:
        return _tokens(self, seed)

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return text_mlp(choice, VOCABULARY, self.outputs, width, depth)


@dataclass(frozen=True)
class DocstringsTransformer(Docstrings):
    """The same by a small transformer."""

    name: str = "docstrings-transformer"
    about: str = "docstrings of Python's standard library (real text), by the topic of their module; a transformer"

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return Transformer(choice, VOCABULARY, LENGTH, self.outputs, width, depth)


@dataclass(frozen=True)
class DocstringKinds(Docstrings):
    """Is it a class's docstring, or a function's? As many of each, so that half are right by chance."""

    name: str = "docstring-kinds"
    outputs: int = 2
    about: str = "docstrings of Python's standard library (real text): a class's or a function's? As many of each"

    def texts(self, seed: int) -> list[tuple[tuple[str, ...], int]]:
        of_class = [(d.words, 1) for d in docstrings() if d.of_class]
        others = [(d.words, 0) for d in docstrings() if not d.of_class]
        drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[: len(of_class)]
        return of_class + [others[i] for i in drawn.tolist()]


@functools.lru_cache(maxsize=64)
def _tokens(task: Docstrings, seed: int) -> Split:
    texts = task.texts(seed)
    rows = Split.of(torch.arange(len(texts)), torch.tensor([label for _, label in texts]), seed)
    parts = [([texts[i][0] for i in part.x.tolist()], part.y) for part in (rows.train, rows.validation, rows.test)]
    vocabulary = Vocabulary(parts[0][0], VOCABULARY, LENGTH)
    return Split(*(Part(vocabulary.rows(said), y) for said, y in parts))


TASKS = (Docstrings(), DocstringsTransformer(), DocstringKinds())
