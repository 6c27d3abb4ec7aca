"""`relume run`: someone's own training script, unchanged, under watch.

`program` runs it as Python would. `imports` waits until it imports torch. `finder` then finds the models that train
and the optimizers that train them, `names` what to call them, and `session` keeps the run files and says in the end
what was seen. None of it imports torch before the script does.
"""
