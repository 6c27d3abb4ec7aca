"""The lab: many small trainings, each under watch, compared.

    member = lab.Member("digits", activation="drelu", lr=0.1, seed=3)
    lab.run_member(member).scores["validation"]         # one training
    lab.run_batched([lab.Member("digits", lr=lr, seed=s) for lr in (0.1, 0.3) for s in range(16)])  # 32 as one
    lab.study("examples/study.toml").table()            # as many as a file describes, kept as they land

`tasks` is what can be learnt; `Member` are the settings of one training, `Result` what became of it.
"""

from relume.lab import tasks as tasks
from relume.lab.alone import run_member as run_member
from relume.lab.batched import run_batched as run_batched
from relume.lab.member import Member as Member
from relume.lab.result import Curves as Curves
from relume.lab.result import Result as Result
from relume.lab.result import SiteSummary as SiteSummary
from relume.lab.study import Study as Study
from relume.lab.study import study as study
from relume.lab.together import CantStackError as CantStackError
