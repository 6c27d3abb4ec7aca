"""Activation functions: what relume knows of each, and how to make your own known."""

from relume.activations.registry import Activation as Activation
from relume.activations.registry import register_activation as register_activation
from relume.activations.zones import Zone as Zone
