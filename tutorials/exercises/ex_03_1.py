"""Exercise 03.1. The orthonormal DCT-II: coefficients = C @ signal.

Returns float64 [H, H]; row k, column n: sqrt(2 / H) cos(pi k (n + 1/2) / H), and row 0 divided by sqrt(2).

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Each call returns a new tensor.
Medium, 10 minutes. Check: python -m tutorials.check 03.1 (--hint: a hint, --solution: a worked one)
"""
import torch  # noqa: F401


def dct_matrix(horizon):
    raise NotImplementedError("exercise 03.1")
