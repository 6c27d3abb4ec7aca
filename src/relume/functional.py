"""Activation functions, and what keeps units alive, as functions of tensors. torch has the standard ones."""

from relume.activations.drelu import drelu as drelu
from relume.activations.dynamic_relu import dynamic_relu as dynamic_relu
from relume.activations.namesakes import displaced_relu as displaced_relu
from relume.activations.namesakes import drelu_gate as drelu_gate
from relume.activations.namesakes import dual_relu as dual_relu
from relume.activations.namesakes import quick_gelu as quick_gelu
from relume.activations.namesakes import squared_relu as squared_relu
from relume.activations.penalty import liveness_penalty as liveness_penalty
