"""Exercise 10.1. Freeze the VLM, train the expert. A bug hunt: find it and mend it.

vlm, expert: lists of parameters. The VLM is insulated: whoever trains clears its old gradients, and new ones are None or
zeros. Returns an AdamW optimiser with this learning rate and weight decay that trains the expert and leaves every VLM weight as
it is, to the bit.

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Easy, 5 minutes. Check: python -m tutorials.check 10.1 (--hint: a hint, --solution: a worked one)
"""
import torch


def freeze(vlm, expert, rate, decay):
    for p in vlm:
        p.grad = torch.zeros_like(p)
    return torch.optim.AdamW([*vlm, *expert], lr=rate, weight_decay=decay)
