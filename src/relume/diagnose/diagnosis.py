"""`diagnose`: what is the matter with a run, asked of a living watch or of one that was read from disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from relume.diagnose.causes import diagnose as _findings
from relume.diagnose.finding import Finding
from relume.errors import EmptyCensusError, RelumeError
from relume.watch import Recording, Watch


def diagnose(run: Recording, confirm: bool = False) -> list[Finding]:
    """What is the matter with a training: what killed its units, with the numbers that say so and what to do.

    It may be asked at any time, in `on_window` too, and speaks of all whole windows so far. What a run file kept gives
    the same findings as the watch that wrote it gave after its last window.

    Args:
        run: a watch, living or closed, or a run from `relume.load`.
        confirm: run recent training again with one thing changed, and say what then lives. It takes a watch with
            `replay=True`; what was confirmed stays with the watch and in its run file.

    Returns:
        list[Finding], gravest and nearest to the root first; empty where nothing is the matter. Losses of less than a
        fifth of a site's units, and units that fire rarely yet live, are notes.

    Raises:
        RelumeError: the run kept nothing to diagnose by, or nothing that a replay could run again.
        EmptyCensusError: no training pass has been observed yet.
        RunFileError: what the run file keeps for diagnosis is damaged, or of a newer relume.
    """
    if not isinstance(run, Recording):
        raise TypeError(
            f"diagnose takes a watch or what relume.load gives, not {type(run).__name__}; for a trained model there is "
            "relume.census(model, batches)"
        )
    if confirm and not isinstance(run, Watch):
        raise RelumeError(
            "a replay needs the living run: diagnose(watch, confirm=True) while it is there, and the run file keeps "
            "what it said"
        )
    record = run.kept_record()
    if record is None:
        if not isinstance(run, Watch) and not run.windows:
            raise EmptyCensusError(f"there is nothing to diagnose yet: {_why_empty(run)}")
        raise RelumeError(_why_none(run))
    if record.off and not record.traces:
        raise RelumeError(f"nothing was recorded to diagnose by: {record.off}")
    try:
        replay = getattr(run, "replay", None)
        findings = [replace(finding, _replay=replay) for finding in _findings(run, record)]
    except EmptyCensusError as error:
        raise EmptyCensusError(f"there is nothing to diagnose yet: {_why_empty(run)}") from error
    if not confirm:
        return [_as_confirmed(finding, record.confirmed) for finding in findings]
    findings = _confirmed(run, findings)
    if isinstance(run, Watch):
        run.keep_confirmed()
    return findings


def _as_confirmed(finding: Finding, confirmed: Mapping[tuple[str, str], Finding]) -> Finding:
    """What a replay has made of a finding before, if it was about the same units."""
    said = confirmed.get((finding.code, finding.site))
    return finding if said is None or said.units != finding.units else replace(said, _replay=finding._replay)


def _why_none(run: Recording) -> str:
    if isinstance(run, Watch):
        return "this watch keeps nothing to diagnose by: leave out diagnose=False in relume.watch(model, optimizer)"
    return (
        "this run file keeps nothing to diagnose by: it was written with diagnose=False, or by a relume that could not "
        "diagnose yet; its census, history and timelines are there"
    )


def _why_empty(run: Recording) -> str:
    if run.windows:
        return "no training pass was observed, only evaluation"
    if isinstance(run, Watch) and run.step and not run.sites:
        return "no activation that relume knows was seen in any training pass"
    return "no training pass was observed"


def _confirmed(run: Recording, findings: Sequence[Finding]) -> list[Finding]:
    replay = getattr(run, "replay", None)
    if replay is None:
        raise RelumeError(
            "nothing is kept that could be run again: relume.watch(model, optimizer, replay=True) keeps snapshots and "
            "recent batches"
        )
    from relume.diagnose.replay import confirmed  # it draws on much else, and few ask for it

    return confirmed(findings, replay)
