"""Watching: what is counted in a step, how counts add up over a run, and how a run is kept."""

from relume.watch.once import census as census
from relume.watch.recording import History as History
from relume.watch.recording import Recording as Recording
from relume.watch.recording import Window as Window
from relume.watch.store import Run as Run
from relume.watch.store import load as load
from relume.watch.watch import Watch as Watch
from relume.watch.watch import watch as watch
