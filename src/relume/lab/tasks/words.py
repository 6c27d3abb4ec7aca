"""Words to numbers: the vocabulary is made of training texts alone."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# 0 fills up a text.
UNKNOWN = 1


class Vocabulary:
    """The most frequent words of some texts, by number from 2 on.

    Args:
        texts: to train on, each a sequence of words.
        size: numbers in all, those of padding and of unknown words included.
        length: of a row of numbers; longer texts are cut.
    """

    def __init__(self, texts: Iterable[Sequence[str]], size: int, length: int) -> None:
        counted = Counter(word for words in texts for word in words[:length])
        # By the alphabet where they are equally frequent.
        known = sorted(counted, key=lambda word: (-counted[word], word))[: size - 2]
        self.length = length
        self.numbers = {word: number for number, word in enumerate(known, start=2)}

    def rows(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Texts as numbers, int64 [texts, length]."""
        numbers = array("q", bytes(8 * len(texts) * self.length))
        for row, words in enumerate(texts):
            start = row * self.length
            for place, word in enumerate(words[: self.length], start):
                numbers[place] = self.numbers.get(word, UNKNOWN)
        return torch.tensor(numbers, dtype=torch.int64).view(len(texts), self.length)
