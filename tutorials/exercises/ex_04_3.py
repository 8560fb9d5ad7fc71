"""Exercise 04.3. Acting: follow the velocity from noise to an action, in `steps` equal steps.

velocity(x, t) -> like x, with t of shape x.shape[:-2]; noise [..., H, A]. Returns [..., H, A], of its dtype.

Hint: velocity is asked at the start of each step: at 0, 1 / steps, ... and never at 1.

Rule: the standard library and torch; no nano_ki; what is given stays as it is. Check: python -m tutorials.check 04.3
"""
import torch  # noqa: F401


def euler(velocity, noise, steps):
    raise NotImplementedError("exercise 04.3")
