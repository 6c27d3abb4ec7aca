"""IMDB: is a film review for or against the film?"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from relume.lab.tasks.networks import Choice, text_mlp
from relume.lab.tasks.real.source import Brought, MissingDataError, Raw
from relume.lab.tasks.task import Kind, Part, Split
from relume.lab.tasks.words import Vocabulary

VOCABULARY, LENGTH = 10_000, 256
_KINDS = ("neg", "pos")


@dataclass(frozen=True)
class Imdb(Brought):
    """Does a reviewer like the film? From the first 256 words: their mean embedding, then linear layers.

    Words are known if they are among the 9,998 most frequent of the training part. A tenth of the published training
    part, drawn by the seed, is for validation; films are shared between these two, but not with the test part.

    Source: Maas et al. 2011, Learning Word Vectors for Sentiment Analysis.
    """

    name: str = "imdb"
    kind: Kind = "classification"
    metric: str = "accuracy"
    higher_is_better: bool = True
    outputs: int = 2
    about: str = (
        "IMDB: 50,000 real film reviews, for or against (Maas et al. 2011); mean embedding; you bring the files"
    )
    places: tuple[str, ...] = ("aclImdb",)
    download: str = "and unpack https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
    hub: str = "stanfordnlp/imdb"

    def read(self, files: Path) -> Raw:
        parts = []
        for part in ("train", "test"):
            texts: list[str] = []
            labels: list[int] = []
            for label, kind in enumerate(_KINDS):
                if not (files / part / kind).is_dir():
                    raise MissingDataError(f"{files / part / kind} is missing; unpack the archive as a whole")
                found = [file.read_text(encoding="utf-8") for file in sorted((files / part / kind).glob("*.txt"))]
                texts += found
                labels += [label] * len(found)
            parts.append((texts, labels))
        return _raw(parts)

    def fetch(self, loaded: Any) -> Raw:
        return _raw([(loaded[part]["text"], loaded[part]["label"]) for part in ("train", "test")])

    def split(self, raw: Raw, train: list[int], validation: list[int], test: list[int]) -> Split:
        (texts, others), (y, other_y) = raw.inputs, raw.labels
        vocabulary = Vocabulary((texts[i] for i in train), VOCABULARY, LENGTH)
        parts = ((texts, y, train), (texts, y, validation), (others, other_y, test))
        return Split(*(Part(vocabulary.rows([said[i] for i in kept]), of[kept]) for said, of, kept in parts))

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return text_mlp(choice, VOCABULARY, self.outputs, width, depth)


def _raw(parts: Sequence[tuple[Sequence[str], Sequence[int]]]) -> Raw:
    words = tuple([_words(text) for text in texts] for texts, _ in parts)
    keys = tuple([hashlib.sha256(" ".join(said).encode()).digest() for said in part] for part in words)
    return Raw(words, tuple(torch.tensor(list(labels), dtype=torch.int64) for _, labels in parts), keys)


def _words(text: str) -> tuple[str, ...]:
    """Its first words in lower case; reviews hold line breaks of HTML."""
    words = re.findall(r"[a-z']+", text.replace("<br />", " ").lower())[:LENGTH]
    return tuple(map(sys.intern, words))  # millions of words, but few different ones


TASKS = (Imdb(),)
