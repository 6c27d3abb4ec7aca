"""Where a model applies activations: discovery, names, unit axis, producers and consumers."""

from relume.sites.plan import Plan as Plan
from relume.sites.site import Site as Site
from relume.sites.site import Zones as Zones
from relume.sites.tracker import Found as Found
from relume.sites.tracker import Tracker as Tracker
