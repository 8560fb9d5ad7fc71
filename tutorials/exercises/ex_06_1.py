"""Exercise 06.1. The line that this code base is about. A bug hunt: find it and mend it.

memory: a list of (k, v), one for each layer. Returns what the expert reads: the same values; with `insulate` no gradient
may come back through any of them, without it all must.

Rule: the standard library and torch; no nano_ki; what is given stays as it is, and so do global random generators.
Tensors may come after a transpose: `view` refuses such a tensor, `reshape` does not.
Easy, 5 minutes. Check: python -m tutorials.check 06.1 (--hint: a hint, --solution: a worked one)
"""


def memory_for_expert(memory, insulate):
    if insulate:
        memory = [(k.detach(), v) for k, v in memory]
    return memory
