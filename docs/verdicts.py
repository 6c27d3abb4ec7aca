"""Makes docs/verdicts.md and docs/verdicts/*.svg from the trainings stored in docs/verdicts.csv.gz.

`python docs/verdicts.py` takes seconds; `--run` first trains what is missing, and may be stopped and called again.
"""

import sys
from pathlib import Path

import torch

from relume.lab.claims import QUESTIONS, Runs, carry_out, judge
from relume.lab.claims.page import page, plots

HERE = Path(__file__).parent
STORED = HERE / "verdicts.csv.gz"


def main(run: bool) -> None:
    if run:
        torch.set_num_threads(1)
        runs = carry_out(QUESTIONS, STORED, lambda text: print(text, file=sys.stderr))
    else:
        runs = Runs.read(STORED)
    judged = [judge(question, runs) for question in QUESTIONS]
    (HERE / "verdicts").mkdir(exist_ok=True)
    for name, drawing in plots(judged, runs).items():
        (HERE / "verdicts" / name).write_text(drawing, encoding="utf-8")
    (HERE / "verdicts.md").write_text(page(judged, runs), encoding="utf-8")


if __name__ == "__main__":
    main(run="--run" in sys.argv[1:])
