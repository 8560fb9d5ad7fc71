"""Exercise 05.1. Who sees whom in the VLM. A bug hunt: find it and mend it.

Returns bool [L, L], L = prefix + answer; True where the row's token sees the column's. The prefix is read both ways, the
answer is causal, and the prefix sees no answer.

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Each call returns a new tensor.
Easy, 5 minutes. Check: python -m tutorials.check 05.1 (--hint: a hint, --solution: a worked one)
"""
import torch


def prefix_mask(prefix, answer):
    length = prefix + answer
    mask = torch.ones(length, length, dtype=torch.bool)
    mask[:prefix, prefix:] = False
    return mask
