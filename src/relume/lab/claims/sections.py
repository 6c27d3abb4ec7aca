"""The essay's claims as sections of the page: what each says, how it was put to the test, and what has to be known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """Attributes:
    number: of the claim.
    title: the claim, shortly.
    how: how it was tested.
    reservations: what the measurement does not say.
    """

    number: int
    title: str
    how: str
    reservations: str


SECTIONS = (
    Section(
        1, "Units die more with depth",
        "Networks of 2, 4, 8 and 16 hidden layers, all else equal. Each seed gives a slope on the logarithm of depth. "
        "Born dead are units that were silent in all of the first 50 steps.",
        "Width and learning rate stay the same, so a deeper network also has a smaller best learning rate. Units are "
        "counted over all layers.",
    ),
    Section(
        2, "Units die more with the learning rate",
        "Learning rates from 0.001 to 0.1, all else equal. Each seed gives a slope on the logarithm of the rate.",
        "Steps are the same for all rates. A run that diverged counts as one without dead units, which speaks against "
        "the claim.",
    ),
    Section(
        3, "Bad initialization kills units",
        "“Bad” was fixed beforehand as drawn by a rule that was not made for the activation: torch's default for "
        "`nn.Linear`, whose weights are too small for ReLU by √6 and whose biases are drawn too, against He's. Then "
        "He's own weakness: deep narrow networks, against RAI.",
        "Scales and shifts of one's own choice are no setting of a member, so weights far too large or biases far "
        "below zero were not run here. That biases started at −3 bury a ReLU network for good is shown in "
        "[drelu.md](drelu.md); what is born dead by depth and width is in [reproductions.md](reproductions.md).",
    ),
    Section(
        4, "Dying costs accuracy, convergence and generalization",
        "*Cause*, twice. First, trainings at learning rates that kill, left alone, against the same trainings under "
        "`relume.guard` with the policy that only revives the dead: same weights to begin with, same batches, same "
        "rate; what differs, differs because units were revived. Second, ReLU against Leaky ReLU with a slope of 0.01 "
        "below zero: nearly the same function, whose units can't die. *Association*: among untreated trainings of one "
        "task and one rate, do those in which more died do worse? What made more die may also be what made them worse.",
        "Each test of cause changes more than death. Revival comes late, when a window of 50 of the 300 steps has "
        "shown the dead, and its new weights are moved by a rate that killed the old ones, which may do harm of its "
        "own: where revival does worse than death, that is a finding about revival at such a rate as well. The "
        "trainings with revival were made twice: at first a revived unit's second moments in Adam began at 0, so that "
        "its next steps were up to 6.6 times the rate, and the claim had no support (accuracy +0.8 [−0.3, 2.0] points "
        "at 0.03, +11.5 [8.2, 14.8] at 0.1). That was mended in `relume.revive`, and all of them, nothing else, were "
        "made again. A slope "
        "also lets gradients through units that are only silent on a batch. Where nothing is learnt either "
        "way, a task's effect is zero and pulls the mean towards zero. Convergence is the training loss "
        "averaged over all steps, which needs no target to be chosen. A smaller gap is no merit where training itself "
        "fails: read the rows on generalization together with those on accuracy.",
    ),
    Section(
        5, "Leaky ReLU, PReLU, RReLU and ELU help",
        "At the rate that kills a quarter to a third of the units of a ReLU network; and, where everyone has the rate "
        "that suits it best, in the contest of claims 8 and 9.",
        "That none of the four has dead units follows from their formulas: they have no flat zone. What is measured is "
        "how many ReLU has, and whether it matters for the score.",
    ),
    Section(
        6, "Normalization helps",
        "Batch and layer normalization before each ReLU, at the rate that kills.",
        "One normalization placed in one way. With it the same learning rate is a smaller step in what the network "
        "computes; its own best rate was not looked for.",
    ),
    Section(
        7, "Initialization and dropout help",
        "He's initialization, LSUV and RAI against torch's default, at depth 8 and a rate that does not kill much.",
        "Dropout is no setting of a member, so what it does was **not run**: no verdict.",
    ),
    Section(
        8, "DReLU converges faster than all others",
        "The contest described under claim 9, by its training loss averaged over all steps.",
        "The learning rate was chosen by the validation score at the end, not by speed; the same rule for all.",
    ),
    Section(
        9, "DReLU generalizes better than all others",
        "A contest with equal budgets. Each of 14 activations has 5 learning rates of Adam (0.001 to 0.1) × 3 seeds on "
        "each of 8 tasks; the rate of the best mean validation score is taken; test scores were not looked at. Then 20 "
        "fresh seeds at that rate, each with its own split of the data, initial weights (He's, by each activation's "
        "own gain) and order of batches, the same for all activations, so that runs are compared in pairs. The claim "
        "says *all*, so it is judged by the rival that comes off best, with intervals that hold for all 13 at once "
        "(Bonferroni).",
        "The essay's “DReLU” has no formula, and the works that it cites for it, Zhang et al. (2019) and Ma et al. "
        "(2020), could not be found; what is tested is relume's own, built from its description "
        "([drelu.md](drelu.md)), with its defaults (α = 0.1, running τ). Nothing was tuned in its favour. `dual_relu`, "
        "`drelu_gate` and `dynamic_relu` take two inputs or a network of their own and can't stand in for the others. "
        "Tasks that were left out for their cost: docstrings-transformer, docstring-kinds, spoken-digits-cnn, "
        "cartpole, the autoencoders; and all that need a download. Networks have 3 layers: an activation made for "
        "deep ones has no chance to show it here. Splits of one data set overlap, so intervals are somewhat too short "
        "for other data sets.",
    ),
)  # fmt: skip

NOT_RUN = ((7, "Dropout helps.", "dropout is no setting of a member of the lab"),)

EVERYWHERE = """\
*Settings* of claims 1 to 7, unless a row says otherwise: ReLU, 4 hidden layers of 32 units (text 16), He's \
initialization, 300 steps of Adam at learning rate 0.003 in batches of 64 (text 32); images are `digits`, text is \
`complaints`, speech is `spoken-digits` ([tasks.md](tasks.md)). Scores are percent of right answers; a regression's \
are 100 (1 − RMSE / standard deviation of what is predicted), never below zero. A run without a finite output has the \
score of chance, and a loss above that of a constant answer counts as that of a constant answer. Differences of loss \
are 100 times the logarithm of a ratio: small ones are percent.

“By itself on 1 of 3 tasks” says on how many tasks the claim would be supported if each were the only one: a mean over \
tasks may be made by one of them.

*Reservations.* All of this is small: networks of 16 to 32 units a layer (convolutions 6), 200 to 400 steps of Adam, \
a few thousand inputs. Images are 8 × 8; text is what Python's standard library says; speech is synthetic \
(espeak-ng), far more regular than people's. Verdicts hold for these settings, and are evidence, no more, for others. \
Claims 1 to 7 have one split of each task's data: their intervals are over initial weights and orders of batches. \
Intervals are 95 %, by Student's t over seeds, each seed averaged over tasks; where several things are tried for one \
claim they are widened to hold at once, but rows of different claims are not corrected for each other. What is called \
too small to matter (1 point of dead units, 0.5 points of score, 2 % of loss) was fixed before the first run, and so \
was what would support each claim, but for the rows that say they were added later. The two learning rates that kill \
were chosen in a trial with other seeds, by how many units died, not by scores. Members are trained together, so a \
run made again beside others differs by rounding, which a training at a high rate can amplify to points of score."""
