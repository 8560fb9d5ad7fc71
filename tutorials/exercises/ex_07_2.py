"""Exercise 07.2. A test that cannot fail. A bug hunt: find it and mend it.

The expert's gates are made as zeros. Through a closed gate no gradient flows, so a test of insulation passes on any model.
gates: a list of parameters. Fill each in place (in the memory that it has) with random numbers (normal, standard deviation .5)
from one generator of this seed (not the global one), without autograd noticing, so that a leak can be seen.

Rule: the standard library and torch; no nano_ki.
Tensors may come after a transpose: `view` refuses such a tensor, `reshape` does not.
Medium, 5 minutes. Check: python -m tutorials.check 07.2 (--hint: a hint, --solution: a worked one)
"""
import torch


def open_gates(gates, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gate in gates:
            gate.add_(gate * torch.randn(gate.shape, generator=generator) * .5)
