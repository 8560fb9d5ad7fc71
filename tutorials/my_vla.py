"""My VLA: the pieces that make knowledge insulation, written by you. Pages 04 to 08 ask for them one after the other.

    python -m tutorials.build            # which pieces are right, and what is wrong with the others
    python -m tutorials.build train      # trains a policy with your pieces in place of the library's: does it reach .8?

The rest stays the library's: world, VLM, FAST, optimisers. Rule: the standard library and torch; no nano_ki; what is given
stays as it is. Tensors may come after a transpose: `view` refuses such a tensor, `reshape` does not. Start over: git checkout tutorials/my_vla.py
"""
import torch  # noqa: F401


def path(action, noise, t):
    """Page 04. x_t: noise at t = 0, the action at t = 1, a straight line between. action, noise [..., H, A]; t [...], one time for
    each chunk (another shape: ValueError)."""
    raise NotImplementedError


def target(action, noise):
    """Page 04. The velocity along that line, which the expert is trained to predict: [..., H, A]."""
    raise NotImplementedError


def memory_for_expert(memory, insulate):
    """Page 06. What the expert may read of the VLM's memory, a list of (k, v), one for each layer: the same values, but with
    `insulate` no gradient goes back through them. The VLM's own memory keeps its gradients."""
    raise NotImplementedError


def expert_attention(q, k, v, memory):
    """Page 06. Action tokens attend to the memory and to each other, in one softmax. q, k, v [B, N, H, K] (q and k normalised);
    memory (k, v), each [B, N, T, K]. Returns [B, N, H, K], with logits q . k * 10 / K."""
    raise NotImplementedError


def cross_entropy(logits, answer, pad):
    """Page 08. The VLM's loss: logits [B, F, V], answer ids [B, F] with `pad` behind -> the mean over all real tokens."""
    raise NotImplementedError


def training_step(losses, parts, alpha, limit):
    """Page 08. One update. losses {"ce", "flow"}: two scalars; parts {"vlm": (weights, optimisers), "expert": ...}: lists, of what is
    to be updated. The weights may still hold the gradients of the step before, which must not count. Cross-entropy plus alpha times flow,
    its backward pass, each part's gradient clipped to norm `limit` on its own, and a step of each optimiser. Returns {part: its
    gradient norm before clipping}, floats."""
    raise NotImplementedError
