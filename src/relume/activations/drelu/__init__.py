"""DReLU: `functional.drelu`, `nn.DReLU`, and `relume.backend`, which says what computes it.

`formula.py` is what it is; `operator.py` decides what computes it; `kernels/` computes it in one pass; `statistics.py`
lets τ follow the data; `module.py` puts that into a module.
"""

from relume.activations.drelu.backend import backend as backend
from relume.activations.drelu.entry import entry as entry
from relume.activations.drelu.function import drelu as drelu
from relume.activations.drelu.module import DReLU as DReLU
