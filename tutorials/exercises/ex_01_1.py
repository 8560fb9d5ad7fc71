"""Exercise 01.1. Minimum-jerk motion: how far along the way a smooth stroke is at time t.

t: float tensor, 0 to 1, any shape, also none. Returns the same shape and dtype: 0 at t = 0, 1 at t = 1, with speed and acceleration 0 at both
ends, by the one polynomial of degree 5 that does this.

Hint 1: six conditions, six coefficients; three of them are 0 by what holds at t = 0.
Hint 2: what remains is t^3 times a quadratic.

Rule: the standard library and torch; no nano_ki; what is given stays as it is. Check: python -m tutorials.check 01.1
"""
import torch  # noqa: F401


def min_jerk(t):
    raise NotImplementedError("exercise 01.1")
