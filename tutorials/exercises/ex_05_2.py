"""Exercise 05.2. Who sees whom in the expert, when several noises of one sample share its memory.

Returns bool [draws * horizon, prefix + draws * horizon]: every action token sees the whole memory and the tokens of its own
draw, and nothing of the other draws.

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Each call returns a new tensor.
Medium, 10 minutes. Check: python -m tutorials.check 05.2 (--hint: a hint, --solution: a worked one)
"""
import torch  # noqa: F401


def draw_mask(prefix, draws, horizon):
    raise NotImplementedError("exercise 05.2")
