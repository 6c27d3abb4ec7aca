"""From replays to a `Confirmation`: what became of a finding's units with one thing changed, said by numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from relume.diagnose.finding import Confirmation, Finding, Remedy
from relume.diagnose.remedies import REMEDIES
from relume.diagnose.replay.change import Change
from relume.diagnose.replay.episode import AT_BIRTH, Episode
from relume.diagnose.replay.plans import CAUSE_OF, FOR_DEATHS, Plan, own_changes

if TYPE_CHECKING:
    from relume.diagnose.replay.player import Played
    from relume.diagnose.replay.replay import Replay

# A change saves units when more than this share of those that died without it live with it.
MOST = 0.5
# Two trainings are the same when their ends differ by no more than this share of the way gone: by rounding.
ROUNDING = 1e-3
# Of the units dead in the training, so many must be dead in the replay without a change.
SAME = 0.9
# Words in a remedy by which it is known that a change has measured its gain.
_REMEDY_OF = {
    "lr": "learning rate", "lr_100": "learning rate", "unit": "normalize what comes in", "clip": "clip",
    "decay": "weight decay", "standardize": "standardize",
    "centre": "centre", "lsuv": "init.lsuv_", "he": "init.he_", "norm": "γ", "relu": "ReLU-like",
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One change, and who was still ill with it."""

    change: Change
    ill: frozenset[int]


def unplayed(finding: Finding, why: str, steps: tuple[int, int] = (0, 0)) -> Finding:
    """A finding that could not be tried."""
    return replace(finding, confirmation=Confirmation(None, "", steps, 0, 0, f"could not be replayed: {why}"))


def confirm(replay: Replay, finding: Finding, episode: Episode) -> Finding:
    """A finding with what replays said of it."""
    steps = (episode.first, episode.last)
    plan = Plan(replay.watch, finding, episode.segments)
    base = replay.played(episode, Change(), plan)
    if isinstance(base, str):
        return unplayed(finding, base, steps)
    why = _differs(finding, episode, base)
    if why:
        return unplayed(finding, why, steps)
    ill = _ill(finding, base)
    if not ill:
        return unplayed(finding, "without a change none of its units was ill at the end of the steps kept", steps)
    trials: list[Trial] = []
    own = own_changes(finding)
    for key in own:
        trial = _try(replay, finding, episode, plan, key, ill)
        if trial is not None:
            trials.append(trial)
            if _saves(trial, ill):
                return _said(finding, steps, base, ill, trials, trial)
    if finding.units and "lsuv" not in own:
        further = (_try(replay, finding, episode, plan, key, ill) for key in FOR_DEATHS if key not in own)
        trials += [trial for trial in further if trial is not None]
    if not trials:
        return unplayed(finding, "there is nothing to change: without an optimizer no setting of its is known", steps)
    return _said(finding, steps, base, ill, trials, None)


def _differs(finding: Finding, episode: Episode, base: Played) -> str:
    """Why the replay without a change is not what happened; "" where it is."""
    hints = "; ".join(dict.fromkeys(h for s in episode.segments for h in s.hints))
    hint = f" (perhaps because {hints})" if hints else ""
    if not base.apart <= ROUNDING:
        return (
            f"run again without a change, steps {episode.first} to {episode.last} end elsewhere than the training did, "
            f"by {base.apart:.2g} of the way{hint}"
        )
    if episode.expected:
        same = episode.expected & _ill(finding, base)
        if len(same) < SAME * len(episode.expected):
            return f"without a change, {len(same)} of {len(episode.expected)} of its units are dead{hint}"
    return ""


def _ill(finding: Finding, played: Played) -> frozenset[int]:
    """Units of a finding that are ill at the end of a replay; {0} stands for the whole network."""
    if not finding.units:
        return frozenset({0}) if finding.code in played.codes else frozenset()
    if played.census is None or finding.site not in played.census:
        return frozenset()
    site = played.census[finding.site]
    bad = (site.saturated if finding.code == "saturation" else site.fired == 0) | (site.nonfinite > 0)
    return frozenset(u for u in finding.units if u < site.units and bool(bad[u]))


def _try(replay: Replay, finding: Finding, episode: Episode, plan: Plan, key: str, ill: frozenset[int]) -> Trial | None:
    change = plan.change(key)
    if change is None:
        return None
    played = replay.played(episode, change, plan)
    return None if isinstance(played, str) else Trial(change, _ill(finding, played) & ill)


def _saves(trial: Trial, ill: frozenset[int]) -> bool:
    return len(ill) - len(trial.ill) > MOST * len(ill)


def _said(
    finding: Finding,
    steps: tuple[int, int],
    base: Played,
    ill: frozenset[int],
    trials: Sequence[Trial],
    by: Trial | None,
) -> Finding:
    of = int(finding.evidence.get("of", len(finding.units)))
    tried = tuple((t.change.words, len(t.ill)) for t in trials)
    saviours = [t for t in trials if _saves(t, ill)]
    shown = by or (trials[0] if own_changes(finding) else min(trials, key=lambda t: len(t.ill)))
    units = len(ill) if finding.units else 0
    what = f"with {shown.change.words} the same {base.passes} batches"
    does = _does(finding, shown.ill, ill, of)
    if by is not None:
        text = f"confirmed: {what} {does}"
    elif shown in saviours:  # of a cause that is not known
        text = f"{what} {does}" + (", which nothing else tried does" if len(saviours) == 1 else "")
    else:
        text = f"not confirmed: {what} still {does}"
    others = [f"{len(t.ill)} with {t.change.words}" for t in saviours if t is not shown]
    text += f"; {', '.join(others)}" if others and by is None else ""
    dead = len(shown.ill) if units else 0
    said = Confirmation(by is not None, shown.change.words, steps, units, dead, text, tried)
    finding = replace(finding, confirmation=said, remedies=_with_gains(finding, finding.remedies, ill, trials))
    if by is None and len(saviours) == 1 and finding.code != "silent-site":
        return _recast(finding, saviours[0], ill, of, trials)
    return finding


def _recast(finding: Finding, saviour: Trial, ill: frozenset[int], of: int, trials: Sequence[Trial]) -> Finding:
    """A finding whose cause was not known, or was refuted, under the one cause whose change saved its units."""
    code = CAUSE_OF.get(saviour.change.key)
    if code is None or code == finding.code or finding.confirmation is None:
        return finding
    saved = len(ill) - len(saviour.ill)
    text = (
        f"{len(finding.units)} of {of} units of '{finding.site}' died between steps {finding.steps[0]} and "
        f"{finding.steps[1]}; of all that was tried in a replay, only {saviour.change.words} saved most of them: "
        f"{saved} of {len(ill)}."
    )
    return replace(
        finding,
        code=code,
        sentence=text,
        evidence={**finding.evidence, "code_before_replay": finding.code, "saved_in_replay": saved},
        remedies=_with_gains(finding, REMEDIES.get(code, ()), ill, trials),
        confirmation=replace(
            finding.confirmation,
            confirmed=True,
            change=saviour.change.words,
            dead=len(saviour.ill),
        ),
    )


def _does(finding: Finding, now: frozenset[int], before: frozenset[int], of: int) -> str:
    if not finding.units:
        good = not now
        if "first_step" in finding.evidence:
            return "do not diverge" if good else "diverge"
        return "bring the gradient through" if good else "do not bring the gradient through"
    if finding.code in AT_BIRTH:
        return f"leave {len(now)} of {of} units dead instead of {len(before)}"
    if finding.code == "saturation":
        return f"leave {len(now)} of {of} units saturated instead of {len(before)}"
    return f"kill {len(now)} of {of} units instead of {len(before)}"


def _with_gains(
    finding: Finding, remedies: Sequence[Remedy], ill: frozenset[int], trials: Sequence[Trial]
) -> tuple[Remedy, ...]:
    """Remedies, with what a replay measured of them."""
    gained = list(remedies)
    for trial in trials:
        word = _REMEDY_OF.get(trial.change.key)
        saved = len(ill) - len(trial.ill)
        for i, remedy in enumerate(gained):
            if word and word in f"{remedy.text} {remedy.call}" and not remedy.gain:
                what = "lived" if finding.code != "saturation" else "were free"
                gain = f"{saved} of {len(ill)} units {what} in the replay, with {trial.change.words}"
                gained[i] = replace(remedy, gain=gain if finding.units else "")
                break
    # What was measured to help comes first, the most helpful of it before the rest.
    return tuple(sorted(gained, key=lambda r: -_saved(r)))


def _saved(remedy: Remedy) -> int:
    return int(remedy.gain.split()[0]) if remedy.gain else 0
