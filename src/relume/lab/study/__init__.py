"""Studies: many trainings as a file describes them, run anywhere, resumed after any kill, as one tidy table.

    study = relume.lab.study("examples/study.toml")
    study.table().to_pandas().groupby("activation").score_test.mean()

`config.py` reads the file, `plan.py` says which members follow from it, `store.py` keeps what became of them, and
`study.py` has them run by a runner of `relume.lab.runners`.
"""

from relume.lab.study.config import Config as Config
from relume.lab.study.errors import ConfigError as ConfigError
from relume.lab.study.errors import StoreError as StoreError
from relume.lab.study.study import Counts as Counts
from relume.lab.study.study import Study as Study
from relume.lab.study.study import study as study
from relume.lab.study.table import Table as Table
