"""Exercise 03.2. Which FAST tokens may come next, so that whatever is drawn decodes?

lengths: int64 tensor [V], the coefficients that each token stands for; used: how many the tokens so far stand for; size: how
many a chunk has. Returns bool [V + 1]: for each token, and last for stop. (Where nothing fits and the chunk is
not full, nothing is allowed.)

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Tensors may come after a transpose: `view` refuses such a tensor, `reshape` does not.
Easy, 5 minutes. Check: python -m tutorials.check 03.2 (--hint: a hint, --solution: a worked one)
"""
import torch  # noqa: F401


def allowed(lengths, used, size):
    raise NotImplementedError("exercise 03.2")
