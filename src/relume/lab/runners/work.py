"""`Block`: members that one worker trains in one go, and `work`, which trains them and never fails because of one."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from relume.errors import MissingExtraError
from relume.lab import tasks
from relume.lab.alone import run_member
from relume.lab.batched import run_batched
from relume.lab.member import Member
from relume.lab.result import Result
from relume.lab.tasks import Choice
from relume.lab.together import Network


@dataclass(frozen=True)
class Outcome:
    """What became of a member: a result, or why there is none."""

    member: Member
    result: Result | None = None
    error: str = ""


@dataclass(frozen=True)
class Block:
    """Members that are trained in one go: as one where that can be done, else it is a single one.

    Attributes:
        diagnose: ask what killed the units that died.
    """

    members: tuple[Member, ...]
    together: bool = False
    diagnose: bool = False

    def alone(self) -> list[Block]:
        """Its members in blocks of their own."""
        return [Block((member,), False, self.diagnose) for member in self.members]


def work(block: Block) -> list[Outcome]:
    """Train a block's members. An error in one is its outcome, and the others' are as without it.

    Raises:
        MissingExtraError: what the data come from is not installed, which is no fault of the members.
    """
    if block.together:
        try:
            return [Outcome(result.member, result) for result in run_batched(block.members)]
        except MissingExtraError:
            raise
        except Exception:
            pass  # each by itself: whose fault it was comes out, and the others have their results
    return [_alone(member, block.diagnose) for member in block.members]


def _alone(member: Member, diagnose: bool) -> Outcome:
    try:
        return Outcome(member, run_member(member, diagnose=diagnose))
    except MissingExtraError:
        raise
    except Exception as error:
        return failed(member, f"{type(error).__name__}: {error}")


def failed(member: Member, reason: str) -> Outcome:
    """The outcome of a member that has no result."""
    return Outcome(member, None, " ".join(reason.split())[:500])


def blocks(members: Iterable[Member], *, together: int, diagnose: bool) -> Iterator[Block]:
    """Members in blocks, by nothing but the members and their order: so a study that is resumed, or run elsewhere, has
    the same blocks, and to the last bit the same results.

    Args:
        together: members that are trained as one, at most.
        diagnose: each is then trained by itself.
    """
    open_blocks: dict[tuple[object, ...], list[Member]] = {}
    for member in members:
        if together < 2 or diagnose or not can_be_stacked(member):
            yield Block((member,), False, diagnose)
            continue
        waiting = open_blocks.setdefault(member.shape, [])
        waiting.append(member)
        if len(waiting) == together:
            yield Block(tuple(waiting), True)
            del open_blocks[member.shape]
    for waiting in open_blocks.values():
        yield Block(tuple(waiting), True)


def can_be_stacked(member: Member) -> bool:
    """Can members such as this be trained as one?"""
    return member.treatment == "none" and _stacks(
        member.task, member.activation, member.norm, member.width, member.depth, member.optimizer
    )


@functools.lru_cache(maxsize=65536)
def _stacks(task: str, activation: str, norm: str, width: int, depth: int, optimizer: str) -> bool:
    of = tasks.get(task)
    if of.kind == "control":
        return False  # learns from its own play
    member = Member(task, activation=activation, norm=norm, width=width, depth=depth, optimizer=optimizer)
    try:
        Network([of.network(Choice(activation, norm), width, depth)], [member])
    except Exception:
        return False  # where the network can't even be made, training by itself says why
    return True
