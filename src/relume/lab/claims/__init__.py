"""The essay's claims about dying units and their remedies, each with what would support it written down before it was
run; settled by trainings on one laptop.

    python docs/verdicts.py          # the page, from the stored runs
    python docs/verdicts.py --run    # what is missing is trained first
"""

from relume.lab.claims import cost, death, drelu, remedies
from relume.lab.claims.question import Effect as Effect
from relume.lab.claims.question import Judged as Judged
from relume.lab.claims.question import MissingRunsError as MissingRunsError
from relume.lab.claims.question import Question as Question
from relume.lab.claims.question import judge as judge
from relume.lab.claims.runs import Run as Run
from relume.lab.claims.runs import Runs as Runs
from relume.lab.claims.training import carry_out as carry_out

QUESTIONS: tuple[Question, ...] = (*death.QUESTIONS, *cost.QUESTIONS, *remedies.QUESTIONS, *drelu.QUESTIONS)
