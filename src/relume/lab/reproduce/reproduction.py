"""`Reproduction`: what a paper reports beside what was measured here, row by row, with whether the two agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from relume.lab.stats.interval import Interval
from relume.lab.verdicts import Claim, Says, verdict

#: Told how far a reproduction is, 0 to 1, and what it does.
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Row:
    """One thing that was published, and ours.

    Attributes:
        what: what was measured.
        published: the figure or the statement, in words.
        ours: the same quantity measured here, or the effect that the statement is about.
        agrees: None where the data do not say.
        why: how that was judged.
        same_setting: is the published figure one of this very setting? Otherwise it is a statement that is tested, on
            other data than the paper's.
    """

    what: str
    published: str
    ours: Interval
    agrees: bool | None
    why: str
    same_setting: bool = False


@dataclass(frozen=True)
class Reproduction:
    """A paper's findings, measured again.

    Attributes:
        name: as in `relume reproduce NAME`.
        title: what it is about.
        source: the paper.
        rows: see Row.
        ran: data, networks, training, seeds, in words.
        notes: what has to be known to read the rows.
        seed, full: as it was called.
        seconds: that it took.
    """

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    ran: str
    notes: tuple[str, ...] = ()
    seed: int = 0
    full: bool = False
    seconds: float = 0.0

    @property
    def disagree(self) -> tuple[Row, ...]:
        """Rows where ours contradicts what was published."""
        return tuple(row for row in self.rows if row.agrees is False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Reproduction:
        """Inverse of `to_dict`.

        Raises:
            ValueError: it is not what `to_dict` gives.
        """
        try:
            rows = tuple(Row(**{**row, "ours": Interval(**row["ours"])}) for row in stored["rows"])
            return cls(**{**stored, "rows": rows, "notes": tuple(stored["notes"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is not a stored reproduction: {error}") from error


#: What a reproduction's `run` returns: rows, what was run, notes.
Rows = tuple[tuple[Row, ...], str, tuple[str, ...]]


def figure(what: str, published: float, said: str, ours: Interval) -> Row:
    """A figure of this very setting: it agrees when it lies in our interval."""
    inside = published in ours
    level = f"{100 * ours.confidence:.4g} % interval"
    return Row(what, said, ours, inside, f"{'inside' if inside else 'outside'} our {level}", True)


def statement(claim: Claim, effect: Interval, ran: str, *, what: str = "", same_setting: bool = False) -> Row:
    """A statement, tested by the verdict on the effect that it is about."""
    found = verdict(claim, effect, ran)
    agrees = {"supported": True, "contradicted": False, "undecided": None}[found.outcome]
    return Row(what or claim.support, claim.text, effect, agrees, found.why, same_setting)


def statements(id_: str, source: str, ran: str) -> Callable[..., Row]:
    """Makes rows of what one source says, of text, what would support it, effect, `says` and `margin`."""

    def row(text: str, support: str, effect: Interval, says: Says = "more", margin: float = 0.0) -> Row:
        return statement(Claim(id_, text, source, support, says, margin), effect, ran)

    return row
