"""Training and evaluation: typed configuration, loop, losses, metrics, checkpoints.

Nothing is imported here: reading the arguments alone needs neither torch nor PEFT.
"""
