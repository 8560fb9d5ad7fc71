"""Exercise 02.1. How many tokens does the VLM read before it answers?

side: of a square picture, in pixels; stride: pixels from one picture token to the next (it divides side); slots: words of the prompt.
Returns an int.

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Easy, 3 minutes. Check: python -m tutorials.check 02.1 (--hint: a hint, --solution: a worked one)
"""


def prefix_tokens(side, stride, slots):
    raise NotImplementedError("exercise 02.1")
