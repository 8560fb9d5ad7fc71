"""Exercise 09.1. A rate deserves an interval: Wilson's, at 95 % (z = 1.96; 1.959964 will do).

hits: successes in n trials; p = hits / n. Returns (low, high), floats within 0 to 1, not rounded.

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Easy, 10 minutes. Check: python -m tutorials.check 09.1 (--hint: a hint, --solution: a worked one)
"""
import math  # noqa: F401


def wilson(hits, n):
    raise NotImplementedError("exercise 09.1")
