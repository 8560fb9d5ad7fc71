"""Exercise 04.1. Training times that lean to the noisy end.

u: float tensor, uniform on 0 to 1 (so is 1 - u). Returns flow times t of the same shape and dtype, where t = 0 is noise and t = 1 the action, with
noise level 1 - t = .999 b + .001 and b ~ Beta(1.5, 1).

Hint 1: Beta(1.5, 1) has the distribution function b^1.5 on 0 to 1. Invert it.
Hint 2: the mean noise level is .600. Public code that draws b another way has .558.

Rule: the standard library and torch; no nano_ki; what is given stays as it is. Check: python -m tutorials.check 04.1
"""
import torch  # noqa: F401


def sample_time(u):
    raise NotImplementedError("exercise 04.1")
