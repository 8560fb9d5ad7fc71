"""Exercise 07.1. Is it insulated? A test with both halves.

losses(): a new {"flow": ..., "ce": ...} of scalars each time it is called; vlm, expert: lists of parameters that require
gradients. Returns True if the flow loss reaches no VLM parameter and at least one of the expert, and the cross-entropy reaches
every VLM parameter. (.grad may be changed. For a loss that requires no gradient PyTorch's own error will do as False.)

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Hard, 15 minutes. Check: python -m tutorials.check 07.1 (--hint: a hint, --solution: a worked one)
"""
import torch  # noqa: F401


def insulated(losses, vlm, expert):
    raise NotImplementedError("exercise 07.1")
