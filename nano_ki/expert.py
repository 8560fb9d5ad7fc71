"""The action expert: a small transformer that reads the VLM's memory and predicts flow velocities.

It has weights of its own (queries, keys, values, output, MLP) at its own width, and as many layers as the VLM. In layer l its
action tokens attend to each other, and to the memory (K, V) that layer l of the VLM left (arXiv 2505.23705, section 4). Flow
time enters every layer by adaptive RMSNorm: scale, shift and gate computed from t. The gates start at 0. Beware when testing:
a closed gate lets no gradient through, so at step 0 the flow loss does not reach the VLM even without the detach.

Try it: python -m nano_ki.expert          Read next: model.py
"""
import torch
from torch import nn

from nano_ki.vit import attend, linear, norm, queries_keys_values, squared_relu

FREQUENCIES = 16
PATCH = 2                    # waypoints in one action token: half the tokens, and no worse (measured)

class ExpertBlock(nn.Module):
    def __init__(self, width, inner):
        """width: E of the expert. inner: N*K of the VLM, so that the expert's queries match its keys."""
        super().__init__()
        self.q, self.k, self.v = (linear(width, inner) for _ in range(3))
        self.o = linear(inner, width)
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)

    def forward(self, x, modulation, memory, mask):
        """x [B, R, S, E]: S action tokens in each of R draws. modulation [B, R, 6, 1, E], memory (k, v) [B, N, T, K], mask bool [R * S, T + R * S] or None."""
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation.unbind(-3)
        h = torch.addcmul(shift1, norm(x), scale1).flatten(1, 2)
        q, k, v = queries_keys_values(h, self.q, self.k, self.v)
        k, v = torch.cat((memory[0], k), 2), torch.cat((memory[1], v), 2)
        x = torch.addcmul(x, gate1, self.o(attend(q, k, v, mask)).view_as(x))
        h = torch.addcmul(shift2, norm(x), scale2)
        return torch.addcmul(x, gate2, self.down(squared_relu(self.up(h))))

class Expert(nn.Module):
    def __init__(self, width, inner, depth, horizon, dims):
        super().__init__()
        self.enter, self.leave = nn.Linear(PATCH * dims, width), nn.Linear(width, PATCH * dims)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.position = nn.Parameter(.5 * torch.randn(horizon // PATCH, width))
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.adapt = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(depth))    # one for each layer
        for layer in self.adapt:
            nn.init.zeros_(layer.weight)
            layer.bias.data = torch.tensor((1., 0, 0, 1, 0, 0)).repeat_interleave(width)      # scale 1, shift 0, gate 0
        self.blocks = nn.ModuleList(ExpertBlock(width, inner) for _ in range(depth))
        self.register_buffer("rate", 2 * torch.pi * 2 ** torch.linspace(-2, 5, FREQUENCIES), False)

    def modulation(self, t):
        """Flow times [...] -> scale, shift and gate of both halves of each layer, [..., depth, 6, 1, E]."""
        wave = t[..., None] * self.rate
        time = self.time(torch.cat((wave.sin(), wave.cos()), -1))
        return torch.stack([layer(time) for layer in self.adapt], -2).unflatten(-1, (6, 1, -1))

    def forward(self, x, t, memory, modulation=None):
        """Noisy chunks x [B, R, H, A] at times t [B, R], memory of B samples -> velocity [B, R, H, A].
        The R draws of one sample share its memory and do not see each other. modulation: of t, where it is known."""
        modulation = self.modulation(t) if modulation is None else modulation
        h = self.enter(x.unflatten(2, (-1, PATCH)).flatten(3)) + self.position                     # [B, R, S = H / PATCH, E]
        mask = draw_mask(memory[0][0].shape[2], *h.shape[1:3], h.device) if h.shape[1] > 1 else None
        for block, layer, kv in zip(self.blocks, modulation.unbind(-4), memory, strict=True):
            h = block(h, layer, kv, mask)
        return self.leave(norm(h)).view_as(x)

def draw_mask(prefix, draws, tokens, device=None):
    """bool [R * S, T + R * S]: each of S action tokens sees the whole memory and the tokens of its own draw."""
    own = torch.eye(draws, dtype=torch.bool, device=device)
    own = own.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    return torch.cat((own.new_ones(draws * tokens, prefix), own), 1)

if __name__ == "__main__":
    expert, x = Expert(width=96, inner=64, depth=4, horizon=16, dims=3), torch.randn(8, 2, 16, 3)
    memory = [(torch.randn(8, 2, 45, 32), torch.randn(8, 2, 45, 32))] * 4
    print(f"noisy chunks {tuple(x.shape)} -> velocity {tuple(expert(x, torch.rand(8, 2), memory).shape)}")
