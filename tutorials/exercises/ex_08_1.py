"""Exercise 08.1. The VLM's loss over real tokens. A bug hunt: find it and mend it.

logits [B, F, V], answer ids [B, F] with the id `pad` behind the real ones. Returns a scalar: the mean over all real tokens of the
batch, so that it does not depend on how much padding there is.

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Tensors may come after a transpose: `view` refuses such a tensor, `reshape` does not.
Easy, 5 minutes. Check: python -m tutorials.check 08.1 (--hint: a hint, --solution: a worked one)
"""
import torch.nn.functional as F


def cross_entropy(logits, answer, pad):
    loss = F.cross_entropy(logits.transpose(1, 2), answer, reduction="none", ignore_index=pad)
    return loss.mean()
