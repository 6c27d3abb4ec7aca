"""Initializers that go by the activations a model applies and by its data, and a prediction before training.

    relume.init.he_(model, batch)               # or glorot_, orthogonal_: scale by fan-in and the activation's gain
    relume.init.lsuv_(model, batches)           # or data_dependent_: scale by what each layer's output really is
    relume.init.rai_(model)                     # fewer networks born dead; zero_, identity_: no chance at all
    relume.init.check(model, batch)             # variance, gradients, units dead at birth: before the first step

A name that ends with `_` changes the model in place.
"""

from relume.init.biases import alive_ as alive_
from relume.init.biases import bias_ as bias_
from relume.init.born_dead import BornDead as BornDead
from relume.init.born_dead import born_dead_probability as born_dead_probability
from relume.init.born_dead import simulate_born_dead as simulate_born_dead
from relume.init.data_dependent import data_dependent_ as data_dependent_
from relume.init.lsuv import lsuv_ as lsuv_
from relume.init.prediction import Prediction as Prediction
from relume.init.prediction import SitePrediction as SitePrediction
from relume.init.prediction import check as check
from relume.init.rai import rai_ as rai_
from relume.init.scaled import glorot_ as glorot_
from relume.init.scaled import he_ as he_
from relume.init.scaled import orthogonal_ as orthogonal_
from relume.init.summary import Initialization as Initialization
from relume.init.zero import identity_ as identity_
from relume.init.zero import zero_ as zero_
