"""`python -m relume.lab.tasks.speech OUT.npz`: as many spoken digits as you like, by espeak-ng."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from relume.errors import RelumeError
from relume.lab.tasks.speech.synthesize import SPEAKERS, synthesize


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 where the settings are wrong or there is no espeak-ng."""
    parser = argparse.ArgumentParser(prog="python -m relume.lab.tasks.speech", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT.npz")
    parser.add_argument("--renditions", type=int, default=8, help="of each digit by each of the voices (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of accents, speeds, pitches and noise (default 0)")
    given = parser.parse_args(arguments)
    if given.renditions < 1 or given.seed < 0:
        parser.error("renditions are at least 1, and the seed is not below 0")
    try:
        made = synthesize(SPEAKERS, given.renditions, given.seed)
    except RelumeError as error:
        print(error, file=sys.stderr)
        return 2
    np.savez_compressed(given.out, **made)  # type: ignore[arg-type]
    print(f"{len(made['digit'])} utterances in {len(SPEAKERS)} voices: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
