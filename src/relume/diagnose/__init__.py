"""Why units died: what moved their pre-activations, and which causes that speaks for."""
