"""Claims 8 and 9: that DReLU converges faster, and generalizes better, than all other activations."""

from __future__ import annotations

from relume.lab.claims import contest
from relume.lab.claims.effects import all_of
from relume.lab.claims.measures import LOWER_LOSS, TEST, Measure
from relume.lab.claims.members import CONTEST_TASKS, FRESH_SEEDS, RATES, RIVALS, TUNING_SEEDS
from relume.lab.claims.question import Effect, Question
from relume.lab.claims.runs import Runs
from relume.lab.stats import simultaneous
from relume.lab.verdicts import Claim

ESSAY = "the essay; it cites Zhang et al. (2019) and Ma et al. (2020), of which no such publication was found"
RAN = (
    f"{len(CONTEST_TASKS)} tasks; for each of {len(RIVALS) + 1} activations {len(RATES)} learning rates × "
    f"{len(TUNING_SEEDS)} seeds to choose by validation, then {len(FRESH_SEEDS)} fresh seeds"
)
_AT_ONCE = simultaneous(0.95, len(RIVALS))


def _beats_all(number: int, id: str, text: str, measure: Measure, measured: str) -> Question:
    support = (
        f"{measured} than that of each of {len(RIVALS)} others by {measure.beyond}, mean over tasks, by intervals "
    )
    claim = Claim(id, text, ESSAY, support + "that hold for all at once", "more", measure.margin)

    def effect(runs: Runs) -> Effect:
        found = {rival: contest.against(runs, "drelu", rival, measure, _AT_ONCE) for rival in RIVALS}
        best = min(found, key=lambda rival: found[rival].overall.estimate)
        return all_of(found, f"against {best}, the best of the others")

    return Question(number, claim, measure, lambda runs: contest.needs(runs, ("drelu", *RIVALS)), effect, RAN)


QUESTIONS = (
    _beats_all(8, "faster", "DReLU converges faster than all others.", LOWER_LOSS,
               "its training loss, averaged over all steps, is lower"),
    _beats_all(9, "better", "DReLU generalizes better than all others.", TEST, "its test score is higher"),
)  # fmt: skip
