"""Exercise 04.2. Where the flow is at time t: x_t, a straight line from noise to action.

action, noise: [..., H, A]; t: [...], one time for each chunk, all of one dtype. Returns [..., H, A] of it. A t of the wrong
shape must raise ValueError: it would broadcast over waypoints without a word.

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Tensors may come after a transpose: `view` refuses such a tensor, `reshape` does not.
Easy, 5 minutes. Check: python -m tutorials.check 04.2 (--hint: a hint, --solution: a worked one)
"""
import torch  # noqa: F401


def path(action, noise, t):
    raise NotImplementedError("exercise 04.2")
