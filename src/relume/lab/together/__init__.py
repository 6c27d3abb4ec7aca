"""Networks of one shape as one network: their layers stacked, their parameters in one flat tensor, counted apart.

`layers.py` and `activations.py` say how each kind of layer is stacked, `parameters.py` holds and steps the parameters,
`network.py` puts it together.
"""

from relume.lab.together.layers import CantStackError as CantStackError
from relume.lab.together.network import Network as Network
