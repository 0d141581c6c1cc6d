"""One step of a classifier in C++: the next rows of some histories, from their states to probabilities.

`packing` copies the weights of a classifier into arrays, or says why it can't; `native` calls the kernel
(kernels/). torch's step (`Classifier.step`) is the reference: the probabilities differ by about 1e-7.
"""

from balancer.models.step.native import INSTRUCTION_SETS, NativeStep, StepState, absence, instruction_set
from balancer.models.step.packing import refuses

__all__ = ["INSTRUCTION_SETS", "NativeStep", "StepState", "absence", "instruction_set", "refuses"]
