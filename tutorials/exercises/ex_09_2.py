"""Exercise 09.2. Is the difference real? A paired bootstrap over scenes.

ours, theirs: bool tensors [n], success in the same n scenes. Returns (low, high): the 2.5 % and 97.5 % quantiles of the mean
difference over `resamples` resamples of the scenes, drawn with a generator of this seed.

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Tensors may come after a transpose: `view` refuses such a tensor, `reshape` does not.
Medium, 15 minutes. Check: python -m tutorials.check 09.2 (--hint: a hint, --solution: a worked one)
"""
import torch  # noqa: F401


def paired_interval(ours, theirs, resamples, seed):
    raise NotImplementedError("exercise 09.2")
