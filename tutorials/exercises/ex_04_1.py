"""Exercise 04.1. Training times that lean to the noisy end.

u: float tensor, uniform on 0 to 1 (so is 1 - u). Returns flow times t of the same shape and dtype, where t = 0 is noise and t = 1 the action, with
noise level 1 - t = .999 b + .001 and b ~ Beta(1.5, 1).

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Tensors may come after a transpose: `view` refuses such a tensor, `reshape` does not.
Medium, 10 minutes. Check: python -m tutorials.check 04.1 (--hint: a hint, --solution: a worked one)
"""
import torch  # noqa: F401


def sample_time(u):
    raise NotImplementedError("exercise 04.1")
