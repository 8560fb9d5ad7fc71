"""The optimisers: Muon for hidden matrices, AdamW for the rest, and each part of the policy clipped on its own.

Muon (arXiv 2502.16982) makes each update of a matrix about orthogonal, so that rare directions are learned as fast as
frequent ones. AdamW alone stays longer on the plateau before words are grounded in pictures.
"""
import torch

from nano_ki import ranks

HIDDEN = ("blocks.", "adapt.", "small.", "large.")      # names of modules whose matrices Muon trains

class Muon(torch.optim.Muon):
    """PyTorch's Muon, but all matrices of one shape are made orthogonal together, on a CPU in float32: that takes 25 ms of a
    training step where PyTorch's way, one by one in bfloat16, took 250 (AMD Zen 3). FSDP2's pieces are put together first."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            same = {}                                         # shape -> [(matrix, its update)]
            for p in group["params"]:
                if p.grad is not None:
                    if p not in self.state:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                    mean = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                    update = p.grad.lerp(mean, group["momentum"])                              # (Nesterov)
                    same.setdefault(p.shape, []).append((p, ranks.plain(update)))
            for (rows, columns), pairs in same.items():
                updates = torch.stack([u for _, u in pairs])
                updates = updates.bfloat16() if updates.is_cuda else updates
                updates = orthogonal(updates, group["ns_coefficients"], group["ns_steps"])
                rate = group["lr"] * max(1, rows / columns) ** .5
                for (p, _), update in zip(pairs, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(ranks.cut_like(update, p), alpha=rate)

def orthogonal(x, coefficients, steps):
    """Matrices [n, rows, columns] -> about U V^T of each (singular values .7 to 1.2), by Newton-Schulz iteration."""
    a, b, c = coefficients
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT, coefficients, steps).mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x

def optimisers(part, muon_rate, adam_rate):
    """[Muon on the hidden matrices of a module, AdamW on the rest]. Each group keeps its rate in "peak", for `set_rates`."""
    trained = {name: p for name, p in part.named_parameters() if p.requires_grad}
    hidden = {name: p for name, p in trained.items() if p.ndim == 2 and name.removeprefix("vit.").startswith(HIDDEN)}
    rest = [p for name, p in trained.items() if name not in hidden]
    return [Muon([{"params": list(hidden.values()), "peak": muon_rate}], lr=muon_rate, momentum=.95, weight_decay=0.),
            torch.optim.AdamW([{"params": rest, "peak": adam_rate}], lr=adam_rate, betas=(.9, .95), weight_decay=0.)]

def set_rates(optimisers, step, steps, warmup, flat=0.):
    """Learning rates of this step: linear warm-up to their peak, which they keep up to a share `flat` of the steps, then linear to 0."""
    for group in [group for optimiser in optimisers for group in optimiser.param_groups]:
        group["lr"] = group["peak"] * min(1, (step + 1) / warmup, (1 - step / steps) / (1 - flat))

def clip(part, limit):
    """Scale the gradients of one part down to norm `limit`; returns the norm before, a float. (One norm over both parts
    would let a large gradient of the expert shrink the VLM's step.)"""
    return ranks.plain(torch.nn.utils.clip_grad_norm_(part.parameters(), limit)).item()
