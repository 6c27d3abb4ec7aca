"""The page about tasks lists them all."""

import re
from pathlib import Path

from relume.lab import tasks

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"


def test_every_task_is_on_the_page():
    listed = re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(listed) >= set(tasks.names()), "run: python docs/tasks.py"
