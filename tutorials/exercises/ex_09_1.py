"""Exercise 09.1. A rate deserves an interval: Wilson's, at 95 % (z = 1.96).

hits: successes in n trials; p = hits / n. Returns (low, high), floats within 0 to 1.

Hint: centre (p + z^2 / 2n) / (1 + z^2 / n); half width z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2).

Rule: the standard library and torch; no nano_ki; what is given stays as it is. Check: python -m tutorials.check 09.1
"""
import math  # noqa: F401


def wilson(hits, n):
    raise NotImplementedError("exercise 09.1")
