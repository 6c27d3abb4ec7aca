"""What was counted, and what follows from it: census, bounds, timeline."""

from relume.census.bounds import never_fired_bound as never_fired_bound
from relume.census.census import Census as Census
from relume.census.census import Phase as Phase
from relume.census.counts import Counts as Counts
from relume.census.site_census import STATES as STATES
from relume.census.site_census import SiteCensus as SiteCensus
from relume.census.table import percent as percent
from relume.census.timeline import Timeline as Timeline
