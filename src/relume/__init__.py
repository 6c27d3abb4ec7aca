"""relume finds the units of a PyTorch network that have died while it trains.

    with relume.watch(model, optimizer) as watch:
        ...                             # an unchanged training loop
    print(watch.census())

Import from here; everything else is private.
"""

from relume._version import __version__ as __version__
from relume.activations import register_activation as register_activation
from relume.census import Census as Census
from relume.census import SiteCensus as SiteCensus
from relume.census import Timeline as Timeline
from relume.errors import RelumeError as RelumeError
from relume.errors import RelumeWarning as RelumeWarning
from relume.sites import Site as Site
from relume.watch import Run as Run
from relume.watch import Watch as Watch
from relume.watch import census as census
from relume.watch import load as load
from relume.watch import watch as watch
