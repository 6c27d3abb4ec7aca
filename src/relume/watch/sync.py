"""`Ranks`: the processes that train one model together, whose counts are added up at the end of each window.

First they meet, through the store that `torch.distributed` was set up with: each rank that is at a window's end says
so; when the last one has come the window ends, and when somebody has waited for too long it goes on, for all of them.
So nobody enters a collective that another rank may never come to. Then, over a gloo group of relume's own, which
leaves training's collectives and streams as they are:

1. A header of ten numbers from every rank: which window, which phases were counted, a hash of the sites it knows.
2. Lists of sites that are not known everywhere yet, each once; `Agreement` gives every site in them one name.
3. One sum and one maximum over all units.
4. One more sum, of squared deviations from the mean that is known now.

That is 80 bytes per unit and phase, whatever the number of ranks. A rank that fails says so as it leaves, or is
missed: the others go on, each with its own counts, and say it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist

from relume.sites import Site
from relume.watch.joining import Agreement, add_up
from relume.watch.recording import PHASES, PhaseCounts, Window, held

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Seconds that a rank waits for the others at a window's end, after having missed them there, and when it closes.
PATIENCE, SHORT_PATIENCE, CLOSING = 5.0, 0.5, 30.0
# Ends of windows missed in a row after which ranks are not expected to meet again.
_MISSES = 3
# Seconds for one collective, in which all ranks are known to take part.
TIMEOUT = 30.0


class Apart(Exception):  # noqa: N818 - not an error: training goes on
    """The ranks can't be added up, now or later; says why."""


class Header(NamedTuple):
    """What each rank says of itself before a merge; whole numbers all."""

    window: int
    first_step: int
    last_step: int
    observed: int
    complete: int
    closing: int
    phases: int  # a bit for each of PHASES
    sites: int  # hash of the list of sites
    size: int  # bytes of that list


class Merged(NamedTuple):
    """What all ranks together saw, or this one if they are apart; `window` is None when that is nothing."""

    window: Window | None
    sites: tuple[Site, ...]
    notes: tuple[str, ...]
    parted: str | None = None  # why it is of this rank alone, said once


def replicated(model: nn.Module) -> nn.Module:
    """The module inside a `DistributedDataParallel`, which calls it; any other module is itself."""
    inner = getattr(model, "module", None)
    return inner if isinstance(model, nn.parallel.DistributedDataParallel) and isinstance(inner, nn.Module) else model


def ranks_of(model: nn.Module, sync: bool | ProcessGroup, about: Mapping[str, Any]) -> Ranks | None:
    """The ranks to add up with; None when there are no others.

    Args:
        model: as the loop calls it: a `DistributedDataParallel` says which ranks it is replicated on.
        sync: True: those of the model, or all; False: none; or a process group.
        about: what all ranks must have in common.

    Raises:
        TypeError: sync is something else.
    """
    if not dist.is_available():
        return None
    if not isinstance(sync, bool | dist.ProcessGroup) and sync is not dist.GroupMember.NON_GROUP_MEMBER:
        raise TypeError(f"sync is True, False or a torch.distributed process group, not {sync!r}")
    if not isinstance(sync, bool | dist.ProcessGroup) or sync is False or not dist.is_initialized():
        return None
    group = sync if isinstance(sync, dist.ProcessGroup) else getattr(model, "process_group", None)
    if not isinstance(group, dist.ProcessGroup):
        group = dist.group.WORLD
    members = dist.get_process_group_ranks(group)
    if len(members) < 2 or dist.get_rank() not in members or dist.get_backend(group) == "fake":
        return None
    return Ranks(members, about)


class Ranks:
    """The ranks that watch one model together, seen from one of them. Making it waits for nobody.

    Args:
        members: their numbers in the default group.
        about: what all of them must have in common.
    """

    _begun: ClassVar[dict[str, int]] = {}  # watches begun so far, of the same ranks and model: in step on all ranks

    def __init__(self, members: Sequence[int], about: Mapping[str, Any]) -> None:
        self.members = tuple(members)
        self.rank = self.members.index(dist.get_rank())
        name = f"relume/{_hash(json.dumps([self.members, dict(about)], sort_keys=True))}"
        number = Ranks._begun[name] = Ranks._begun.get(name, -1) + 1
        self._group: Any = None
        self._apart: str | None = None
        self._turn = 0  # of meeting: the same number means the same meeting on all ranks
        self._missed = 0
        self._closing = False
        self._left = False
        self._said = False
        self._agreement = Agreement()
        self._lists: dict[int, dict[str, str]] = {}  # of each list that all ranks know: the agreed name of each name
        self._described: tuple[tuple[Site, ...], tuple[str, ...], bytes] = ((), (), b"")
        self._notes: dict[str, None] = {}
        try:
            default = dist.distributed_c10d._get_default_store()
            self._store = dist.PrefixStore(f"{name}/{number}", default)  # type: ignore[attr-defined]
            self._store.set(f"began/{self.rank}", "1")
        except Exception as error:
            self._apart = f"torch.distributed offers no store to meet at ({_first_line(error)})"

    @property
    def first(self) -> bool:
        """Is this the rank that writes files and says what is to be said once?"""
        return self.rank == 0

    @property
    def apart(self) -> str | None:
        """Why the ranks are not added up any more; None while they are."""
        return self._apart

    @property
    def quiet(self) -> bool:
        """Need this rank not say that it is alone? Another does, or it was its own doing."""
        return self.rank != 0 or self._left

    @property
    def agreed(self) -> bool:
        """Do sites have the names that all ranks agreed on?"""
        return bool(self._agreement.sites)

    def meet(self, *, closing: bool = False) -> bool:
        """Wait, for a short while, until all ranks are at the end of a window: may it end now?

        If so `merge` must follow, as it will on the other ranks; if not, the window goes on, and no count is lost.

        Args:
            closing: this rank watches no longer after this window, and waits longer.
        """
        if self._apart is not None:
            return True
        self._closing = closing
        try:
            met = self._met(CLOSING if closing else PATIENCE if not self._missed else SHORT_PATIENCE)
            if not met and (closing or self._missed >= _MISSES):
                raise Apart(
                    "it closed its watch, and another did not do so soon after"
                    if closing
                    else "another missed the ends of several windows: it makes other numbers of steps, or has ended"
                )
            return met
        except Exception as error:
            self._part(error)
            return True

    def merge(self, window: Window, sites: Iterable[Site], notes: Iterable[str]) -> Merged:
        """Add this rank's window to those of the others, which call this too: see `meet`.

        Args:
            window: what was counted here, maybe nothing.
            sites, notes: all known here so far.
        """
        sites = tuple(sites)
        if self._apart is None:
            try:
                with torch._C.DisableTorchFunction(), torch.inference_mode(False), torch.no_grad():
                    if self._group is None:
                        self._group = dist.ProcessGroupGloo(
                            self._store, self.rank, len(self.members), timedelta(seconds=TIMEOUT)
                        )
                    merged = self._merge(window, sites, tuple(notes))
                if self._closing:
                    self._group = None  # torch's own threads must not outlive the interpreter
                return merged
            except Exception as error:
                self._part(error)
        own = _renamed(window, self._agreement.learn(sites))
        parted = None if self._said else f"the counts are of rank {self.members[self.rank]} alone ({self._apart})"
        self._said = True
        return Merged(own if own.counts else None, tuple(self._agreement.sites.values()), (), parted)

    def so_far(self, window: Window, sites: Iterable[Site]) -> Window:
        """This rank's part of the window in progress, by the names that are agreed on."""
        return _renamed(window, copy.deepcopy(self._agreement).learn(sites))

    def leave(self, why: str, *, quiet: bool = True) -> None:
        """Watch no longer, without a last merge; whoever waits for this rank hears of it at once."""
        if self._apart is None:
            self._left = quiet
            self._part(Apart(why))

    def __del__(self) -> None:
        if not self._closing:
            self.leave("its watch was dropped without close()")

    # Meeting

    def _met(self, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while True:
            turn, self._turn = self._turn, self._turn + 1
            verdict = f"{turn}/verdict"
            late = self._store.check([verdict])
            if self._store.add(f"{turn}/here", 1) == len(self.members):
                self._store.compare_set(verdict, "", "met")
            pause = 0.0005
            while not self._store.check([verdict]):
                self._raise_for_leavers()
                if time.monotonic() > deadline:
                    self._store.compare_set(verdict, "", "missed")  # unless the last one has come just now
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
            if self._store.get(verdict) == b"met":
                self._missed = 0
                return True
            if time.monotonic() > deadline or not (late or self._closing):
                self._raise_for_absent()
                self._missed += 1
                return False

    def _raise_for_leavers(self) -> None:
        if self._store.check(["left"]):
            raise Apart(self._store.get("left").decode(errors="replace"))

    def _raise_for_absent(self) -> None:
        absent = [self.members[r] for r in range(len(self.members)) if not self._store.check([f"began/{r}"])]
        if absent:
            raise Apart(
                f"rank {_listed(absent)} does not watch the same model with the same window: call relume.watch "
                "alike on every rank, or with sync=False"
            )

    def _part(self, error: Exception) -> None:
        """Go on alone from here, and let nobody wait."""
        self._group = None  # closes its connections
        try:
            self._raise_for_leavers()
            own = isinstance(error, Apart)
            self._apart = str(error) if own else f"a rank has died or is cut off ({_first_line(error)})"
            self._store.compare_set("left", "", f"rank {self.members[self.rank]}: {self._apart}")
        except Apart as left:
            self._apart = str(left)
        except Exception:  # the store has gone, and so has the rank that kept it
            self._apart = f"the ranks lost each other ({_first_line(error)})"

    # Merging

    def _merge(self, window: Window, sites: tuple[Site, ...], notes: tuple[str, ...]) -> Merged:
        described = self._describe(sites, notes)
        mine = Header(
            window=window.index,
            first_step=window.first_step,
            last_step=window.last_step,
            observed=window.observed,
            complete=window.complete,
            closing=self._closing,
            phases=sum(1 << i for i, phase in enumerate(PHASES) if phase in window.counts),
            sites=_hash(described),
            size=len(described),
        )
        headers = self._headers(mine)
        for r, header in enumerate(headers):
            if header.window != headers[0].window:
                raise Apart(f"ranks {self.members[0]} and {self.members[r]} are at different windows")
        self._share_lists(headers, described)
        names, agreed = self._lists[mine.sites], tuple(self._agreement.sites.values())
        counts: dict[str, Callable[[], PhaseCounts]] = {}
        for i, phase in enumerate(PHASES):
            if any(h.phases >> i & 1 for h in headers):
                own = window.counts[phase]() if phase in window.counts else {}
                counts[phase] = held(add_up({names[n]: c for n, c in own.items()}, agreed, self._all_reduce))
        leavers = [self.members[r] for r, h in enumerate(headers) if h.closing]
        if leavers and len(leavers) < len(headers):
            self._apart = f"rank {_listed(leavers)} closed its watch before the others"
        whole = Window(
            window.index,
            min(h.first_step for h in headers),
            max(h.last_step for h in headers),
            max(h.observed for h in headers),
            any(h.complete for h in headers),
            counts,
            window.settings,
        )
        return Merged(whole if counts else None, agreed, tuple(self._notes))

    def _describe(self, sites: tuple[Site, ...], notes: tuple[str, ...]) -> bytes:
        if self._described[:2] != (sites, notes) or not self._described[2]:
            text = json.dumps([[s.to_dict() for s in sites], notes])
            self._described = (sites, notes, text.encode())
        return self._described[2]

    def _share_lists(self, headers: Sequence[Header], described: bytes) -> None:
        """Make all ranks know all lists, and learn them in the same order everywhere."""
        senders: dict[int, int] = {}
        for r, header in enumerate(headers):
            if header.sites not in self._lists:
                senders.setdefault(header.sites, r)
        everywhere = len({h.sites for h in headers}) == 1
        for key, sender in senders.items():
            text = described if everywhere else self._broadcast(described, headers[sender].size, sender)
            sites, notes = json.loads(text)
            self._lists[key] = self._agreement.learn([Site.from_dict(s) for s in sites])
            self._notes |= dict.fromkeys(notes)

    # Collectives

    def _headers(self, mine: Header) -> list[Header]:
        gathered = [torch.zeros(len(mine), dtype=torch.int64) for _ in self.members]
        self._group.allgather([gathered], [torch.tensor([int(v) for v in mine])]).wait()
        return [Header(*row.tolist()) for row in gathered]

    def _broadcast(self, mine: bytes, size: int, sender: int) -> bytes:
        data = bytearray(mine if self.rank == sender else size)
        options = dist.BroadcastOptions()
        options.rootRank = sender
        options.rootTensor = 0
        self._group.broadcast([torch.frombuffer(data, dtype=torch.uint8)], options).wait()
        return bytes(data)

    def _all_reduce(self, values: Tensor, largest: bool) -> None:
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM  # type: ignore[assignment]
        self._group.allreduce([values], options).wait()


def _hash(value: Any) -> int:
    data = value if isinstance(value, bytes) else str(value).encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:7], "big")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")


def _renamed(window: Window, names: Mapping[str, str]) -> Window:
    """The same counts by agreed names."""
    counts = {phase: held({names[n]: c for n, c in get().items()}) for phase, get in window.counts.items()}
    return replace(window, counts=counts)


def tensor_parallel(model: nn.Module) -> bool:
    """Are units of the model spread over ranks? Parameters that FSDP gathers before use are not."""
    gathered: set[int] = set()
    for module in model.modules():
        if any(c.__name__ == "FSDPModule" for c in type(module).__mro__):
            gathered |= {id(p) for p in module.parameters()}
    return any(
        sum(place.is_shard() for place in getattr(p, "placements", ())) > (id(p) in gathered)
        for p in model.parameters()
    )


def on_this_rank(x: Tensor) -> Tensor | None:
    """The values, waited for if they are still on their way; None for a DTensor, of which each rank holds a part."""
    if hasattr(x, "placements") and hasattr(x, "to_local"):
        return None
    return x.trigger_wait() if hasattr(x, "trigger_wait") else x
