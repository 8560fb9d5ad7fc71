"""Exercise 06.2. The expert's attention: to the memory and to itself.

q, k, v: [B, N, H, K] of the action tokens (q and k are normalised); memory: (k, v), each [B, N, T, K]. Returns [B, N, H, K]:
softmax over the T + H keys, with logits q . k * 10 / K. Gradients come back to all that is given, as q . k has them: nothing is
normalised again. (The heads were split off by a transpose: `view` may refuse such a tensor, `reshape` does not.)

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Medium, 10 minutes. Check: python -m tutorials.check 06.2 (--hint: a hint, --solution: a worked one)
"""
import torch  # noqa: F401


def expert_attention(q, k, v, memory):
    raise NotImplementedError("exercise 06.2")
