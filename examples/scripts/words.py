"""Text for the language models beside it: what Python's own documentation says, in ids of its most frequent words."""

import pydoc_data.topics
import re
from collections import Counter

PAD, MASK, OTHER, FIRST = range(4)


def blocks(vocabulary: int, length: int, count: int) -> list[list[int]]:
    """The first `count` blocks of `length` word ids, all below `vocabulary`."""
    words = re.findall(r"\w+|[^\w\s]", " ".join(pydoc_data.topics.topics[k] for k in sorted(pydoc_data.topics.topics)))
    ids = {w: i for i, (w, _) in enumerate(Counter(words).most_common(vocabulary - FIRST), FIRST)}
    return [[ids.get(w, OTHER) for w in words[i * length : (i + 1) * length]] for i in range(count)]
