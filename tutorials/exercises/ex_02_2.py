"""Exercise 02.2. Each word also hears the one before it.

words: float tensor [B, slots, D], the embedded prompt. Returns [B, slots, D]: each slot is the sum of its own word and of
the word in the slot before. Nothing comes before the first slot. Gradients come back to all words; the dtype stays.

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Tensors may come after a transpose: `view` refuses such a tensor, `reshape` does not.
Easy, 5 minutes. Check: python -m tutorials.check 02.2 (--hint: a hint, --solution: a worked one)
"""
import torch  # noqa: F401


def token_shift(words):
    raise NotImplementedError("exercise 02.2")
