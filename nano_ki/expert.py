"""The action expert: a small transformer that reads the VLM's memory and predicts flow velocities.

It has weights of its own (queries, keys, values, output, MLP) at its own width, one layer per layer of
the VLM. In layer l its action tokens attend to the memory (K, V) that the VLM's layer l left and to
each other (arXiv 2505.23705, section 4). Flow time enters every layer by adaptive RMSNorm: scale, shift
and gate computed from t. The gates start at 0. Beware when testing: a closed gate lets no gradient through,
so at step 0 the flow loss does not reach the VLM even without the detach.

Nothing here knows of the detach: model.py decides whether the memory is detached.

Try it: python -m nano_ki.expert          Read next: model.py
"""
import torch
from torch import nn

from nano_ki.vit import attend, heads, linear, norm, squared_relu

FREQUENCIES = 16

class ExpertBlock(nn.Module):
    def __init__(self, width, inner):
        """width: E of the expert. inner: N*K of the VLM, so that the expert's queries match its keys."""
        super().__init__()
        self.q, self.k, self.v = (linear(width, inner) for _ in range(3))
        self.o = linear(inner, width)
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)
        self.adapt = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.adapt.weight)
        nn.init.zeros_(self.adapt.bias)

    def forward(self, x, time, memory, mask):
        """x [B, R, H, E], time [B, R, E], memory (k, v) [B, N, T, K], mask bool [R * H, T + R * H]."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.adapt(time)[:, :, None].chunk(6, -1)
        h = (norm(x) * (1 + scale1) + shift1).flatten(1, 2)
        q, k, v = norm(heads(self.q(h))), norm(heads(self.k(h))), heads(self.v(h))
        k, v = torch.cat((memory[0], k), 2), torch.cat((memory[1], v), 2)
        x = x + gate1 * self.o(attend(q, k, v, mask)).view_as(x)
        h = norm(x) * (1 + scale2) + shift2
        return x + gate2 * self.down(squared_relu(self.up(h)))

class Expert(nn.Module):
    def __init__(self, width, inner, depth, horizon, dims):
        super().__init__()
        self.enter, self.leave = nn.Linear(dims, width), nn.Linear(width, dims)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.position = nn.Parameter(.5 * torch.randn(horizon, width))
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width),
                                  nn.SiLU())
        self.blocks = nn.ModuleList(ExpertBlock(width, inner) for _ in range(depth))
        self.register_buffer("rate", 2 * torch.pi * 2 ** torch.linspace(-2, 5, FREQUENCIES), False)

    def forward(self, x, t, memory):
        """Noisy chunks x [B, R, H, A] at times t [B, R], memory of B prefixes -> velocity [B, R, H, A].
        The R draws of one sample share its memory and do not see each other.
        """
        wave = t[..., None] * self.rate
        time = self.time(torch.cat((wave.sin(), wave.cos()), -1))
        h = self.enter(x) + self.position
        mask = draw_mask(memory[0][0].shape[2], *x.shape[1:3], x.device)
        for block, kv in zip(self.blocks, memory, strict=True):
            h = block(h, time, kv, mask)
        return self.leave(norm(h))

def draw_mask(prefix, draws, horizon, device=None):
    """bool [R * H, T + R * H]: every action token sees the whole memory and the tokens of its own draw."""
    own = torch.eye(draws, dtype=torch.bool, device=device)
    own = own.repeat_interleave(horizon, 0).repeat_interleave(horizon, 1)
    return torch.cat((own.new_ones(draws * horizon, prefix), own), 1)

if __name__ == "__main__":
    expert = Expert(width=96, inner=64, depth=4, horizon=16, dims=3)
    memory = [(torch.randn(8, 2, 43, 32), torch.randn(8, 2, 43, 32))] * 4
    x = torch.randn(8, 2, 16, 3)
    print(f"noisy chunks {tuple(x.shape)} -> velocity {tuple(expert(x, torch.rand(8, 2), memory).shape)}")
