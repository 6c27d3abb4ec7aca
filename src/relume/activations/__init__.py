"""Activation functions: what relume knows of each, and how to make your own known."""

from relume.activations.lookup import activation as activation
from relume.activations.lookup import activation_of as activation_of
from relume.activations.lookup import all_activations as all_activations
from relume.activations.registry import Activation as Activation
from relume.activations.registry import register_activation as register_activation
from relume.activations.zones import Zone as Zone
