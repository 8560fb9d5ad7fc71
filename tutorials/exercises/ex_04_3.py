"""Exercise 04.3. Acting: follow the velocity from noise to an action, in `steps` equal steps.

velocity(x, t) -> like x, with t of shape x.shape[:-2]; noise [..., H, A]. Returns [..., H, A], of its dtype.

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Tensors may come after a transpose: `view` refuses such a tensor, `reshape` does not.
Medium, 10 minutes. Check: python -m tutorials.check 04.3 (--hint: a hint, --solution: a worked one)
"""
import torch  # noqa: F401


def euler(velocity, noise, steps):
    raise NotImplementedError("exercise 04.3")
