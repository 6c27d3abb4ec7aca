"""What the store keeps of a member: a head of what tables show, as JSON, and the rest of its result, compressed."""

from __future__ import annotations

import json
import time
import zlib
from typing import Any

from relume.lab import tasks
from relume.lab.result import Result
from relume.lab.runners.work import Outcome

Head = dict[str, Any]

_IN_HEAD = ("member", "scores", "causes", "seconds", "diverged")
_COUNTS = ("units", "dead", "dormant", "born_dead", "died")


def head_of(outcome: Outcome) -> Head:
    """What is kept of a member for tables: settings, scores, counts; or why it failed."""
    result = outcome.result
    if result is None:
        return {"member": outcome.member.to_dict(), "error": outcome.error, "at": time.time()}
    sites = result.sites.values()
    return {
        "member": outcome.member.to_dict(),
        "scores": dict(result.scores),
        "best": _best(result),
        "units": result.units,
        "dead": result.dead,
        "dormant": sum(len(site.dormant) for site in sites),
        "born_dead": sum(len(site.born_dead) for site in sites),
        "died": sum(len(site.died_at) for site in sites),
        "diverged": result.diverged,
        "causes": None if result.causes is None else dict(result.causes),
        "seconds": result.seconds,
        "at": time.time(),
    }


def _best(result: Result) -> float:
    """The best validation score of all windows; NaN where none is a number."""
    scores = [score for score in result.curves.validation if score == score]
    better = max if tasks.get(result.member.task).higher_is_better else min
    return better(scores) if scores else float("nan")


def packed(result: Result) -> bytes:
    """What is kept of a result beside its head."""
    sites = {name: vars(site) for name, site in result.sites.items()}
    return zlib.compress(json.dumps({"curves": vars(result.curves), "sites": sites}).encode(), 6)


def read_head(status: str, text: str) -> Head:
    """A head as it was written.

    Raises:
        ValueError, KeyError: it is none.
    """
    head = {"status": status, **json.loads(text)}
    wanted = ("error",) if status == "failed" else (*_IN_HEAD, *_COUNTS, "best")
    missing = [name for name in ("member", *wanted) if name not in head]
    if missing:
        raise ValueError(f"a run has no {', '.join(missing)}")
    return head


def result_of(head: Head, body: bytes) -> Result:
    """The result that was kept in two parts.

    Raises:
        ValueError, KeyError, TypeError, zlib.error: these are none.
    """
    return Result.from_dict({**{name: head[name] for name in _IN_HEAD}, **json.loads(zlib.decompress(body))})
