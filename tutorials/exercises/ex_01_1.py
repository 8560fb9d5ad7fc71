"""Exercise 01.1. Minimum-jerk motion: how far along the way a smooth stroke is at time t.

t: float tensor, 0 to 1, any shape, also none. Returns the same shape and dtype: 0 at t = 0, 1 at t = 1, with speed and acceleration 0 at both
ends, by the one polynomial of degree 5 that does this.

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Tensors may come after a transpose: `view` refuses such a tensor, `reshape` does not.
Medium, 10 minutes. Check: python -m tutorials.check 01.1 (--hint: a hint, --solution: a worked one)
"""
import torch  # noqa: F401


def min_jerk(t):
    raise NotImplementedError("exercise 01.1")
