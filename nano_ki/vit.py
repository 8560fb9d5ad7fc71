"""The eye: a picture -> image tokens, by a small vision transformer; and the block everything is made of.

A puck is nine pixels wide and its outline is what tells a star from a cross. So a token is made in two steps: small
overlapping windows (8 x 8 pixels, every 4) become features, then 4 x 4 of these (16 x 16 pixels, every 8) become one
token. One linear map per 8 x 8 patch, the usual way, needs twice the steps to ground words in pictures (measured).
Positions are 2-D sines and cosines (learned ones did not ground, measured); then come bidirectional transformer blocks.

Try it: python -m nano_ki.vit          Read next: decoder.py
"""
import torch
import torch.nn.functional as F
from torch import nn

HEAD = 32                    # size of one attention head, everywhere: the two streams share it
STRIDE = 8                   # pixels from one image token to the next
FEATURES = 64                # of one small window

def linear(inputs, outputs, zero=False):
    """A linear map without bias; zero: starts at 0, so that its block starts as the identity."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(layer.weight) if zero else nn.init.normal_(layer.weight, std=inputs ** -.5)
    return layer

class Norm(torch.autograd.Function):
    """x / (root mean square of x) over the last axis. F.rms_norm is one kernel on a GPU, but on a CPU it is taken apart:
    this is twice as fast there, and with its backward pass four times."""

    @staticmethod
    def forward(ctx, x):
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(x.shape[-1] ** -.5).add_(1e-6)
        y = x / size
        if ctx:
            ctx.save_for_backward(y, size)
        return y

    @staticmethod
    def backward(ctx, gradient):
        y, size = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, y)[..., None]
        return torch.addcmul(gradient, y, along, value=-1 / y.shape[-1]).div_(size)

def norm(x):
    """RMSNorm without parameters over the last axis."""
    if x.is_cuda:
        return F.rms_norm(x, x.shape[-1:], eps=1e-12)
    return Norm.apply(x) if x.requires_grad else Norm.forward(None, x)

def heads(x):
    """[B, L, N*K] -> [B, N, L, K]."""
    return x.unflatten(-1, (-1, HEAD)).transpose(1, 2)

def queries_keys_values(h, q, k, v):
    """h [B, L, D] by the linear maps q, k and v, in one product -> three of [B, N, L, K]; q and k normalised per head."""
    qk, v = F.linear(h, torch.cat((q.weight, k.weight, v.weight))).split((2 * len(q.weight), len(v.weight)), -1)
    return *norm(heads(qk)).chunk(2, 1), heads(v)

def attend(q, k, v, mask=None):
    """softmax(q k^T * 10/K) v, heads merged: [B, N, L, K] x [B, N, S, K] -> [B, L, N*K].
    q and k are normalised per head (norm), so 10/K bounds the logits by +-10. mask: bool, True = sees."""
    return F.scaled_dot_product_attention(q, k, v, mask, scale=10 / HEAD).transpose(1, 2).flatten(2)

class SquaredRelu(torch.autograd.Function):
    """relu(x)^2. Autograd's own chain takes three passes over the widest tensors to go back; this takes one."""

    @staticmethod
    def forward(ctx, x):
        x = F.relu(x)
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return (gradient * ctx.saved_tensors[0]).mul_(2)

def squared_relu(x):
    return SquaredRelu.apply(x) if x.requires_grad else F.relu(x).square()

class Block(nn.Module):
    """Pre-norm attention and MLP, with residuals. The ViT and the decoder are stacks of it."""

    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v = (linear(width, width) for _ in range(3))
        self.o = linear(width, width, zero=True)
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width, zero=True)

    def forward(self, x, mask=None, past=None):
        """x [B, L, D] -> ([B, L, D], (k, v) [B, N, S, K]); past: (k, v) of tokens before x."""
        q, k, v = queries_keys_values(norm(x), self.q, self.k, self.v)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        x = x + self.o(attend(q, k, v, mask))
        return x + self.down(squared_relu(self.up(norm(x)))), (k, v)

class ViT(nn.Module):
    def __init__(self, width, depth, size):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.small, self.bias = linear(3 * 8 * 8, FEATURES), nn.Parameter(torch.zeros(FEATURES))
        self.large = linear(FEATURES * 4 * 4, width)
        self.register_buffer("position", sine_cosine(size // STRIDE, width), persistent=False)

    def forward(self, image):
        """uint8 [B, S, S, 3] -> [B, (S/8)^2, D], row by row."""
        x = image.permute(0, 3, 1, 2).to(self.small.weight.dtype) / 127.5 - 1
        # The weights are kept as matrices (for Muon) and used as convolution kernels.
        x = F.conv2d(x, self.small.weight.view(FEATURES, 3, 8, 8), self.bias, stride=4, padding=2)
        x = squared_relu(x)
        x = F.conv2d(x, self.large.weight.view(-1, FEATURES, 4, 4), stride=2, padding=1)
        x = x.flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x, _ = block(x)
        return x

def sine_cosine(side, width):
    """[side^2, width]: sines and cosines of the row and of the column, row by row."""
    rate = side ** -torch.linspace(0, 1, width // 4)      # periods from 4 tokens to 4 x side
    angle = torch.arange(side)[:, None] * torch.pi / 2 * rate
    wave = torch.cat((angle.sin(), angle.cos()), 1)
    return torch.cat((wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)), -1).flatten(0, 1)

if __name__ == "__main__":
    vit, image = ViT(width=64, depth=2, size=48), torch.randint(0, 256, (8, 48, 48, 3), dtype=torch.uint8)
    print(f"picture {tuple(image.shape)} -> tokens {tuple(vit(image).shape)}")
