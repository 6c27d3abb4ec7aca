"""Counterfactual replay: recent steps of a training run again on copies, with one thing changed."""

from relume.diagnose.replay.replay import LIMIT as LIMIT
from relume.diagnose.replay.replay import Replay as Replay
from relume.diagnose.replay.replay import confirmed as confirmed
