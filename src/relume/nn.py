"""Activation modules that torch lacks, and what keeps a model's units alive. torch has the standard ones."""

from relume.activations.drelu import DReLU as DReLU
from relume.activations.dynamic_relu import DynamicReLU as DynamicReLU
from relume.activations.model_penalty import LivenessPenalty as LivenessPenalty
from relume.activations.namesakes import DisplacedReLU as DisplacedReLU
from relume.activations.namesakes import DReLUGatedMLP as DReLUGatedMLP
from relume.activations.namesakes import DualReLU as DualReLU
from relume.activations.namesakes import QuickGELU as QuickGELU
from relume.activations.namesakes import SquaredReLU as SquaredReLU
