"""How each torch operation carries layouts, producers and feeds along: one rule per kind of operation.

A rule takes (flow, args, kwargs, out) of a call that has run, and sets the nodes of its outputs. To teach relume an
operation, write a rule in the file of its kind and name it in `table.py`.
"""

from relume.sites.rules.common import by_shape as by_shape
from relume.sites.rules.table import follow as follow
from relume.sites.rules.table import through_module as through_module
