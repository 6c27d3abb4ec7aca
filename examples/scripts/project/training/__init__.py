"""A package whose training is started by `python -m training`."""
