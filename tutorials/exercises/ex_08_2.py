"""Exercise 08.2. Clip the gradients of both parts. A bug hunt: find it and mend it.

vlm, expert: lists of parameters with .grad. Scale the gradients in place, so that each part's norm is at most `limit`.
Returns the two norms from before, (vlm, expert), as floats, not rounded.

Rule: the standard library and torch; no nano_ki; the weights stay as they are.
Tensors may come after a transpose: `view` refuses such a tensor, `reshape` does not.
Easy, 5 minutes. Check: python -m tutorials.check 08.2 (--hint: a hint, --solution: a worked one)
"""
import torch


def clip(vlm, expert, limit):
    norm = torch.nn.utils.clip_grad_norm_([*vlm, *expert], limit)
    return float(norm), float(norm)
