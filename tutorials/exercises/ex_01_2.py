"""Exercise 01.2. Which samples stay, when demonstrations that failed are dropped?

owner: int tensor [n], the episode that each sample comes from. finished: int tensor [m], episodes that succeeded. Returns
bool [n]: True where the sample's episode succeeded.

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Tensors may come after a transpose: `view` refuses such a tensor, `reshape` does not.
Easy, 5 minutes. Check: python -m tutorials.check 01.2 (--hint: a hint, --solution: a worked one)
"""
import torch  # noqa: F401


def keep(owner, finished):
    raise NotImplementedError("exercise 01.2")
