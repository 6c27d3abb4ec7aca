"""Results of reproductions in one JSON file, and the Markdown page beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from relume.errors import RelumeError
from relume.lab.reproduce import NAMES, show
from relume.lab.reproduce.reproduction import Reproduction


def read(path: Path) -> dict[str, Reproduction]:
    """By name; empty if there is no such file.

    Raises:
        RelumeError: the file is not one of stored reproductions.
    """
    if not path.exists():
        return {}
    try:
        found = [Reproduction.from_dict(one) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise RelumeError(f"{path} does not hold stored reproductions ({error}): give another file") from error
    return {one.name: one for one in found}


def add(path: Path, new: Iterable[Reproduction]) -> Path:
    """Put these into the file, each in place of an earlier one of its name, and write the page of the file's name.

    Returns:
        Path of the page.

    Raises:
        RelumeError: as `read`; the file is then left as it is.
    """
    held = {**read(path), **{one.name: one for one in new}}
    ordered = [held[name] for name in NAMES if name in held]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([one.to_dict() for one in ordered], indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    written = path.with_suffix(".md")
    written.write_text(show.page(ordered), encoding="utf-8")
    return written
