"""Pre-flight: can these parameters be kept in 16 bits? Asked before the GPU hours, of the checkpoint itself.

Most of what 16 bits lose can be counted from the weights and the hyperparameters alone. Adam's updates are about as
large as the learning rate, whatever the gradients are, so which weights would stand still follows from the gaps around
them (`analysis.updates`). Which constants survive follows from their formats (`training.hyperparameters`). What it
costs in bytes follows from the optimizer (`training.memory`). `preflight` asks all of it of every named storage
configuration and says which is the cheapest that loses nothing that float32 keeps. What losing means is said in
`criterion`.
"""

from precision_lab.training.preflight.report import PreflightReport
from precision_lab.training.preflight.run import preflight

__all__ = ["PreflightReport", "preflight"]
