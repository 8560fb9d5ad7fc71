"""Bite tests: each check passes a right answer, fails the stub, and fails planted wrong answers for the right reason."""
import ast
import json
import re

import pytest
from conftest import TINY, command

from nano_ki import checkpoint, config, flow, train
from tutorials import build, check
from tutorials import run as pages
from tutorials.key import KEY

HEAD = "import math\nimport torch\nimport torch.nn.functional as F\n"
RIGHT = {number: key.solution for number, key in KEY.items()}
# The same, written differently: accepted, too.
ALSO_RIGHT = {
    "01.1": ["def min_jerk(t): return torch.from_numpy(10 * t.numpy() ** 3 - 15 * t.numpy() ** 4 + 6 * t.numpy() ** 5) "
             "if t.ndim else 10 * t ** 3 - 15 * t ** 4 + 6 * t ** 5",
             "def eval(cs, x):\n    out = torch.zeros_like(x)\n    for c in cs: out = out * x + c\n    return out\n"
             "def min_jerk(t): return eval((6., -15., 10., 0., 0., 0.), t)",
             "def min_jerk(t): return 10 * t.pow(3) - 15 * t.pow(4) + 6 * t.pow(5)",
             "def min_jerk(t):\n    s = torch.zeros_like(t)\n    for c in (6., -15., 10., 0., 0., 0.): s = s * t + c\n    return s"],
    "01.2": ["def keep(owner, finished): return (owner[:, None] == finished).any(1)",
             "def keep(owner, finished):\n    won = set(finished.tolist())\n"
             "    return torch.tensor([o in won for o in owner.tolist()], dtype=torch.bool)"],
    "02.1": ["def prefix_tokens(side, stride, slots):\n    print('hello')\n    return (side // stride) ** 2 + slots",
             "def prefix_tokens(side, stride, slots): return len([(y, x) for y in range(0, side, stride) "
             "for x in range(0, side, stride)]) + slots",
             "def prefix_tokens(side, stride, slots): return int((side / stride) ** 2) + slots"],
    "02.2": ["""class Both(torch.nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)
    def forward(self, words): return sum(m(words) for m in self.parts.modules() if m is not self.parts)
class Before(torch.nn.Module):
    def forward(self, words): return F.pad(words[:, :-1], (0, 0, 1, 0))
def token_shift(words): return Both(torch.nn.Identity(), Before())(words)""", """class Shift(torch.nn.Module):
    def forward(self, words): return words + F.pad(words, (0, 0, 1, 0))[:, :-1]
def token_shift(words): return Shift().eval()(words)""",
             "def token_shift(words):\n    out = words.clone()\n    out[:, 1:] += words[:, :-1]\n    return out",
             "def token_shift(words): return words + torch.cat((torch.zeros_like(words[:, :1]), words[:, :-1]), dim=1)",
             """def token_shift(words):                       # a convolution, by Fourier
    n = words.shape[1] + 1
    kernel = torch.zeros(n, dtype=words.dtype)
    kernel[:2] = 1
    return torch.fft.irfft(torch.fft.rfft(words, n, dim=1) * torch.fft.rfft(kernel)[:, None], n, dim=1)[:, :-1]"""],
    "03.1": ["""def dct_matrix(H):
    rows = [[math.sqrt((1 if k == 0 else 2) / H) * math.cos(math.pi * k * (n + .5) / H) for n in range(H)] for k in range(H)]
    return torch.tensor(rows, dtype=torch.float64)""",
             """def dct_matrix(H):
    c = torch.cos(torch.outer(torch.arange(H).double(), torch.arange(H).double() + .5) * torch.pi / H)
    return c / c.norm(dim=1, keepdim=True)"""],
    "03.2": ["def allowed(lengths, used, size): return torch.tensor([used + int(n) <= size for n in lengths] + [used == size])",
             "def allowed(lengths, used, size): return F.pad(used + lengths <= size, (0, 1), value=used >= size)"],
    "04.1": ["def sample_time(u): return 1 - .001 - .999 * (1 - u).pow(1 / 1.5)",
             "def sample_time(u):\n    b = torch.exp(torch.log(u) / 1.5)\n    return .999 * (1 - b)",
             "def sample_time(u):\n    u = (2 * u - 1).abs()\n    return 1 - (.999 * u ** (2 / 3) + .001)",
             """def sample_time(u):
    flat = [1 - (.999 * x ** (1 / 1.5) + .001) for x in u.flatten()]
    return torch.stack(flat).reshape(u.shape)"""],
    "04.2": ["""def path(action, noise, t):
    if tuple(t.shape) != tuple(action.shape[:-2]): raise ValueError(t.shape)
    return torch.lerp(noise, action, t.unsqueeze(-1).unsqueeze(-1))""",
             """class WrongTimes(ValueError): pass
def path(action, noise, t):
    if t.shape != action.shape[:-2]: raise WrongTimes(f"{t.shape}")
    return torch.einsum('...ha,...->...ha', action, t) + torch.einsum('...ha,...->...ha', noise, 1 - t)""",
             """def path(action, noise, t):
    if t.ndim != action.ndim - 2 or t.shape != action.shape[:t.ndim]: raise ValueError
    t = t.reshape(*t.shape, 1, 1)
    return noise + t * (action - noise)"""],
    "04.3": ["""def euler(velocity, noise, steps):
    x = noise
    for t in torch.arange(steps, dtype=torch.float64) / steps: x = x + velocity(x, t.expand(x.shape[:-2])) / steps
    return x""", """def euler(velocity, noise, steps):
    x, dt = noise, 1 / steps
    for t in torch.arange(steps) * dt: x = torch.add(x, velocity(x, t.expand(x.shape[:-2])), alpha=dt)
    return x""",
             """def euler(velocity, noise, steps, i=0):
    if i == steps: return noise
    return euler(velocity, noise + velocity(noise, torch.ones(noise.shape[:-2]) * i / steps) / steps, steps, i + 1)"""],
    "05.1": ["""def prefix_mask(prefix, answer):
    n = torch.arange(prefix + answer)
    return (n[None] < prefix) | (n[None] <= n[:, None])""",
             "def prefix_mask(prefix, answer): return torch.tensor([[c < prefix or c <= r for c in range(prefix + answer)] "
             "for r in range(prefix + answer)])"],
    "05.2": ["""def draw_mask(prefix, draws, horizon):
    of = torch.arange(draws).repeat_interleave(horizon)
    return F.pad(of[:, None] == of, (prefix, 0), value=True)""",
             """def draw_mask(prefix, draws, horizon):
    mask = torch.zeros(draws * horizon, prefix + draws * horizon, dtype=torch.bool)
    mask[:, :prefix] = True
    for d in range(draws): mask[d * horizon:(d + 1) * horizon, prefix + d * horizon:prefix + (d + 1) * horizon] = True
    return mask"""],
    "06.1": ["def memory_for_expert(memory, insulate): return [tuple(x.detach().requires_grad_() for x in kv) "
             "if insulate else kv for kv in memory]",
             """def memory_for_expert(memory, insulate):
    if not insulate: return memory
    with torch.no_grad(): return tuple((k.clone(), v.clone()) for k, v in memory)"""],
    "06.2": ["""def expert_attention(q, k, v, memory):
    a, b = q @ memory[0].transpose(-1, -2), q @ k.transpose(-1, -2)
    w = torch.softmax(torch.cat((b, a), -1) * 10 / q.size(-1), -1)
    return w @ torch.cat((v, memory[1]), 2)""",
             """def expert_attention(q, k, v, memory):
    keys, values = torch.cat((memory[0], k), -2), torch.cat((memory[1], v), -2)
    w = torch.exp(torch.einsum('bnhk,bntk->bnht', q, keys) * (10 / q.shape[3]))
    return torch.einsum('bnht,bntk->bnhk', w / w.sum(-1, keepdim=True), values)"""],
    "07.1": ["def insulated(losses, vlm, expert):                      # plain: PyTorch's error stands for False\n"
             "    def norms(name, params):\n"
             "        return [float(g.abs().max()) for g in torch.autograd.grad(losses()[name], params, "
             "allow_unused=True, materialize_grads=True)]\n"
             "    flow, ce = norms('flow', [*vlm, *expert]), norms('ce', vlm)\n"
             "    return max(flow[:len(vlm)]) == 0 and max(flow[len(vlm):]) > 0 and min(ce) > 0",
             RIGHT["07.1"].replace("bool(g.any())", "float(g.norm()) > 0"),
             "def insulated(losses, vlm, expert):\n    def reached(name):\n        for p in vlm + expert: p.grad = None\n"
             "        losses()[name].backward()\n"
             "        return [p.grad is not None and p.grad.abs().sum() > 0 for p in vlm + expert]\n    n = len(vlm)\n"
             "    flow, ce = reached('flow'), reached('ce')\n"
             "    return not any(flow[:n]) and any(flow[n:]) and all(ce[:n])", """def insulated(losses, vlm, expert):
    def grads(name):
        if not losses()[name].requires_grad: return [0] * len(vlm + expert)
        return [0 if g is None else g.abs().sum().item() for g in torch.autograd.grad(losses()[name], vlm + expert, allow_unused=True)]
    flow, ce = grads("flow"), grads("ce")
    return sum(flow[:len(vlm)]) == 0 and max(flow[len(vlm):]) > 0 and min(ce[:len(vlm)]) > 0""",
             """def insulated(losses, vlm, expert):
    def touched(name):
        for p in vlm + expert: p.grad = None
        loss = losses()[name]
        if loss.grad_fn is not None: loss.backward()
        return [p.grad is not None and bool((p.grad != 0).any()) for p in vlm], [p.grad is not None and bool((p.grad != 0).any()) for p in expert]
    (a, b), (c, _) = touched("flow"), touched("ce")
    return torch.tensor(not any(a) and any(b) and all(c))"""],
    "07.2": [KEY["07.2"].solution.replace("in gates", "in reversed(gates)"), """def open_gates(gates, seed):
    g = torch.Generator().manual_seed(seed)
    for gate in gates: gate.data.copy_(torch.randn(gate.shape, generator=g) * .5)""",
             """@torch.no_grad()
def open_gates(gates, seed):
    g = torch.Generator()
    g.manual_seed(seed)
    for gate in gates: gate.copy_(torch.normal(0., .5, gate.shape, generator=g))"""],
    "08.1": ["""def cross_entropy(logits, answer, pad):
    real = answer != pad
    return F.cross_entropy(logits[real], answer[real])""",
             """def cross_entropy(logits, answer, pad):
    picked = logits.log_softmax(-1).gather(-1, answer[..., None])[..., 0]
    return -(picked * (answer != pad)).sum() / (answer != pad).sum()"""],
    "08.2": ["""def clip(vlm, expert, limit):
    out = []
    for part in (vlm, expert):
        n = torch.sqrt(sum(p.grad.square().sum() for p in part))
        for p in part: p.grad.mul_(min(1., float(limit / n)))
        out.append(float(n))
    return out""",
             """def clip(vlm, expert, limit):
    a = torch.nn.utils.clip_grad_norm_(vlm, limit).item()
    b = torch.nn.utils.clip_grad_norm_(expert, limit).item()
    return a, b"""],
    "09.1": ["""def wilson(hits, n):
    z2 = 1.96 ** 2
    a, b = (hits + z2 / 2) / (n + z2), 1.96 / (n + z2) * (hits * (n - hits) / n + z2 / 4) ** .5
    return [max(a - b, 0), min(a + b, 1)]""",
             """def wilson(hits, n):                         # the two roots of (p - x)^2 = z^2 x (1 - x) / n
    p, z = hits / n, 1.96
    A, B, C = 1 + z * z / n, -(2 * p + z * z / n), p * p
    root = math.sqrt(max(0, B * B - 4 * A * C))
    return max(0., (-B - root) / (2 * A)), min(1., (-B + root) / (2 * A))""",
             "from statistics import NormalDist\n" + RIGHT["09.1"].replace("1.96", "NormalDist().inv_cdf(.975)")],
    "09.2": ["""def paired_interval(ours, theirs, resamples, seed):
    g, d = torch.Generator().manual_seed(seed), ours.float() - theirs.float()
    means = torch.stack([d[torch.randint(0, len(d), (len(d),), generator=g)].mean() for _ in range(resamples)])
    return torch.quantile(means, torch.tensor([.025, .975]))""",
             """import random
def paired_interval(ours, theirs, resamples, seed):
    r, d = random.Random(seed), [int(a) - int(b) for a, b in zip(ours, theirs)]
    means = sorted(sum(r.choices(d, k=len(d))) / len(d) for _ in range(resamples))
    return means[int(.025 * (resamples - 1))], means[int(.975 * (resamples - 1))]""",
             """def paired_interval(ours, theirs, resamples, seed):
    d, n = ours.long() - theirs.long(), len(ours)
    counts = torch.stack([(d == v).sum() for v in (-1, 0, 1)]).double()
    drawn = torch.multinomial(counts, resamples * n, replacement=True, generator=torch.Generator().manual_seed(seed)) - 1
    low, high = drawn.view(resamples, n).double().mean(1).quantile(torch.tensor([.025, .975]).double())
    return low, high"""],
    "10.1": ["def freeze(vlm, expert, rate, decay):\n    for p in vlm:\n        p.requires_grad_(False)\n"
             "        p.grad = None\n    return torch.optim.AdamW([*vlm, *expert], lr=rate, weight_decay=decay)",
             "def freeze(vlm, expert, rate, decay):\n    for p in vlm: p.requires_grad_(False)\n"
             "    return torch.optim.AdamW([p for p in vlm + expert if p.requires_grad], rate, weight_decay=decay)",
             "def freeze(vlm, expert, rate, decay): return torch.optim.AdamW([dict(params=vlm, weight_decay=0.), "
             "dict(params=expert, weight_decay=decay)], lr=rate)",
             "def freeze(vlm, expert, rate, decay): return torch.optim.AdamW(expert, lr=torch.tensor(rate), weight_decay=decay)",
             "def freeze(vlm, expert, rate, decay): return torch.optim.AdamW([dict(params=vlm, lr=0.), "
             "dict(params=expert)], lr=rate, weight_decay=decay)"],
}
# number: [(what to change in the right answer, into what, words of the message)]
WRONG = {
    "01.1": [("t ** 3 * (10 - 15 * t + 6 * t * t)", "t", "speed"),
             ("t ** 3 * (10 - 15 * t + 6 * t * t)", "t * t * (3 - 2 * t)", "acceleration"),
             ("t ** 3 * (10 - 15 * t + 6 * t * t)", "t ** 4 * (35 - 84 * t + 70 * t ** 2 - 20 * t ** 3)", "degree 5"),
             ("t ** 3 * (10 - 15 * t + 6 * t * t)", "1 - t ** 3 * (10 - 15 * t + 6 * t * t)", "runs from 1"),
             ("return ", "t, _ = t.sort(); return ", "any shape and order")],
    "01.2": [("return ", "return ~", "upside down"), ("(owner, finished)\n", "(finished, owner)\n", "for each sample"),
             ("torch.isin(owner, finished)", "owner == finished[0] if len(finished) else owner < 0", "there may be many"),
             ("torch.isin(owner, finished)", "owner < len(finished)", "numbers of episodes"),
             ("torch.isin(owner, finished)", "torch.isin(owner, finished).long()", "torch.int64"),
             ("torch.isin(owner, finished)", "torch.isin(owner, finished.unique()[:2])", "at [")],
    "02.1": [(" ** 2", "", "rows and columns"), (" + slots", "", "words of the prompt"), ("+ slots", "* slots", "one token more"),
             ("side // stride", "side / stride", "wanted an int"), ("side // stride", "side // 8", "stride 16"),
             ("+ slots", "+ 7", "3 words")],
    "02.2": [("F.pad(words[:, :-1], (0, 0, 1, 0))", "words.roll(1, 1)", "the first slot hears"), ("words + ", "", "lost"),
             ("F.pad(words[:, :-1], (0, 0, 1, 0))", "words.roll(-1, 1)", "the other way"),
             (":-1], (0, 0, 1, 0)", "1:], (0, 0, 0, 1)", "the other way"),
             ("F.pad(words[:, :-1], (0, 0, 1, 0))", "words.roll(1, 2)", "shifted the features"),
             ("return words + F.pad(words[:, :-1], (0, 0, 1, 0))", "return words.cumsum(1)", "a running sum"),
             ("F.pad(words[:, :-1], (0, 0, 1, 0))", "words.roll(1, 0)", "shifted the samples"),
             ("(0, 0, 1, 0))", "(0, 0, 1, 0)) / 2", "at [")],
    "03.1": [("    c[0] /= math.sqrt(2)\n", "", "row 0 needs"), ("return c", "return c.T", "swapped"), ("n + .5", "n", "n + 1/2"),
             ("torch.cos", "torch.sin", "a sine"), ("math.pi * k", "2 * math.pi * k", "n + 1/2"),
             ("    c[0] /= math.sqrt(2)\n    return c", "    c[0] /= math.sqrt(2)\n    return c.float()", "float64"),
             ("math.sqrt(2 / H)", "1", "orthonormal")],
    "03.2": [("<= size - used", "< size - used", "just fills"), ("<= size - used", "<= size", "overruns"),
             ("used == size", "True", "stop is allowed"), ("used == size", "False", "stop is not allowed"),
             ("torch.cat((lengths <= size - used, torch.tensor([used == size])))",
              "torch.cat((lengths <= size - used, torch.tensor([used == size]))).long()", "torch.int64"),
             ("(lengths <= size - used, torch.tensor([used == size]))",
              "(torch.tensor([used == size]), lengths <= size - used)", "stop comes last"),
             ("<= size - used", "== size - used", "room for more")],
    "04.1": [("1 - (", "(", "the other way"), ("u ** (2 / 3)", "u", "uniform"), ("u ** (2 / 3)", "u ** .7915", ".558"),
             ("u ** (2 / 3)", "torch.rand_like(u) ** (2 / 3)", "global generator"),
             ("u ** (2 / 3)", "u ** 1.5", "power 1.5"), ("u ** (2 / 3)", "(1 - (1 - u) ** (2 / 3))", "swapped"),
             (" + .001", "", ".001"), ("(.999 * u ** (2 / 3) + .001)", "u ** (2 / 3)", ".001"),
             ("u ** (2 / 3)", "u.sort()[0] ** (2 / 3)", "its own u"), ("u ** (2 / 3)", "(u > .4).to(u.dtype)", "below .5")],
    "04.2": [("(1 - t) * noise + t * action", "t * noise + (1 - t) * action", "the other way"),
             ("t.shape != action.shape[:-2]", "False", "without a word"),
             ("t.shape != action.shape[:-2]", "t.ndim != action.ndim - 2", "one time"),
             ("(1 - t) * noise + t * action", "noise + t * action", "full strength"),
             ("(1 - t) * noise + t * action", "action - noise", "velocity"), ("ValueError", "TypeError", "must raise ValueError")],
    "04.3": [("x + velocity", "x - velocity", "backwards"), ("i / steps)", "(i + 1) / steps)", "wanted 0"),
             ("torch.full(x.shape[:-2], i / steps)", "i / steps", "t of shape"),
             ("range(steps)", "range(steps - 1)", "asked 9 times"), (" / steps\n    return", "\n    return", "all the way"),
             ("i / steps)", "i / (steps + 1))", "was asked at"), ("velocity(x, torch", "velocity(noise, torch", "bends"),
             ("    return x", "    return noise", "stayed")],
    "05.1": [(".tril()", "", "sees the answer"), ("    mask[:prefix, :prefix] = True\n", "", "causal"),
             (".tril()", ".tril(1)", "sees"), (".tril()", ".tril(-1)", "itself"),
             ("    return mask", "    return mask.T", "swapped"), ("dtype=torch.bool).tril()", "dtype=torch.long).tril()", "torch.int64"),
             ("    return mask", "    mask[-1, prefix:-1] = False\n    return mask", "came before")],
    "05.2": [("torch.block_diag(*[torch.ones(horizon, horizon)] * draws).bool()", "torch.ones(draws * horizon, draws * horizon).bool()",
              "draws see each other"), ("torch.ones(horizon, horizon)]", "torch.ones(horizon, horizon).tril()]", "both ways"),
             ("torch.block_diag(*[torch.ones(horizon, horizon)] * draws).bool()",
              "torch.eye(horizon).repeat(draws, draws).bool()", "draw by draw"),
             ("(torch.ones(draws * horizon, prefix, dtype=torch.bool), own)",
              "(own, torch.ones(draws * horizon, prefix, dtype=torch.bool))", "come first"),
             ("torch.ones(horizon, horizon)]", "torch.eye(horizon)]", "but itself"),
             ("torch.ones(draws * horizon, prefix", "torch.zeros(draws * horizon, prefix", "whole memory")],
    "06.1": [("v.detach()", "v", "through V"), ("k.detach()", "k", "through K"),
             ("v.detach()) for k, v in memory]", "v.detach()) for k, v in memory[:-1]] + memory[-1:]", "in layer 2"),
             ("detach()", "detach_()", "lost its gradient"), ("if insulate else memory", "", "without insulation"),
             ("k.detach(), v.detach()", "k.detach(), v.detach() * 2", "stay the same"),
             ("if insulate else memory", "if not insulate else memory", "without insulation"),
             ("(k.detach(), v.detach())", "(.9 * k.detach() + .1 * k, .9 * v.detach() + .1 * v)", "still come back"),
             ("if insulate else memory", "if insulate else [(.5 * k + .5 * k.detach(), v) for k, v in memory]", "as they are")],
    "06.2": [("scale=10 / q.shape[-1]", "scale=q.shape[-1] ** -.5", "1 / sqrt(K)"),
             ("k, v = torch.cat((memory[0], k), 2), torch.cat((memory[1], v), 2)", "k, v = memory", "do not see each other"),
             ("    return F", "    return F.scaled_dot_product_attention(q, *memory, scale=10 / q.shape[-1]) + F", "at ["),
             ("    return F.scaled_dot_product_attention(q, k, v, scale=10 / q.shape[-1])",
              "    n, s, at = len(memory[0][0, 0]), 10 / q.shape[-1], F.scaled_dot_product_attention\n"
              "    return (at(q, *memory, scale=s) + at(q, k[:, :, n:], v[:, :, n:], scale=s)) / 2", "two softmaxes"),
             (", scale=10 / q.shape[-1]", ", scale=1.", "not scaled"),
             ("torch.cat((memory[1], v), 2)", "torch.cat((v, memory[1]), 2)", "different orders"),
             ("scale=10 / q.shape[-1]", "scale=10 * q.shape[-1] ** -.5", "10 / sqrt(K)"),
             ("    return F", "    return 2 * F", "at ["), (", scale=10", ", is_causal=True, scale=10", "at [")],
    "07.1": [(" and all(reached(\"ce\")[:n])", "", "starved"), ("not any(reached(\"flow\")[:n]) and", "", "without any stop"),
             (" and bool(g.any())", "", "zeros is no leak"), (" and any(reached(\"flow\")[n:])", "", "learns nothing"),
             ("not any(reached(\"flow\")[:n])", "not reached(\"flow\")[0]", "one parameter only"),
             ("g is not None and bool(g.any())", "g is not None and bool(g.sum())", "adds up to 0"),
             ("g is not None and bool(g.any())", "g is not None and bool((g > 1e-3).any())", "small, or negative"),
             ("all(reached(\"ce\")[:n])", "any(reached(\"ce\")[:n])", "starved"),
             ("[g is not None and bool(g.any()) for g in grads]",
              "[g is not None and (loss == 'ce' or bool(g.any())) for g in grads]", "starved by zeros"),
             ("        grads = torch.autograd.grad(value, vlm + expert, allow_unused=True)\n",
              "        value.backward()\n        grads = [p.grad for p in vlm + expert]\n", "old gradients")],
    "07.2": [("gate.normal_(0, .5, generator=generator)", "gate.mul_(1 + torch.randn(gate.shape, generator=generator))", "still closed"),
             (".5", "5.", "standard deviation"), ("generator=generator", "generator=torch.Generator().manual_seed(seed)", "repeats"),
             ("    generator = torch.Generator().manual_seed(seed)", "    generator = None", "global generator"),
             ("normal_(0, .5, generator=generator)", "uniform_(-.5 * 3 ** .5, .5 * 3 ** .5, generator=generator)", "not normal"),
             ("generator = torch.Generator().manual_seed(seed)", "generator = torch.manual_seed(seed)", "global generator"),
             ("manual_seed(seed)", "manual_seed(0)", "another seed"),
             ("normal_(0, .5", "normal_(.2, .5", "their mean"), ("in gates:", "in gates[:1]:", "some gates")],
    "08.1": [("ignore_index=pad)", "ignore_index=pad, reduction='none').mean()", "padding included"),
             (", ignore_index=pad", "", "as if it were a word"),
             ("return F.cross_entropy(logits.transpose(1, 2), answer, ignore_index=pad)",
              "return torch.stack([F.cross_entropy(x, y, ignore_index=pad) for x, y in zip(logits, answer)]).mean()", "sample's mean"),
             ("ignore_index=pad)", "ignore_index=pad, reduction='sum')", "the sum"), ("ignore_index=pad", "ignore_index=0", "pad 7"),
             ("return F.cross_entropy(logits.transpose(1, 2), answer, ignore_index=pad)",
              "x = F.cross_entropy(logits.transpose(1, 2), answer, ignore_index=pad, reduction='none'); return x[x > 0].mean()", "is sure"),
             ("answer, ignore_index=pad)", "answer, ignore_index=pad)[None]", "has shape")],
    "08.2": [("return tuple(float(torch.nn.utils.clip_grad_norm_(p, limit)) for p in (vlm, expert))",
              "n = float(torch.nn.utils.clip_grad_norm_(vlm + expert, limit)); return n, n", "one norm over both"),
             ("torch.nn.utils.clip_grad_norm_(p, limit)", "torch.nn.utils.clip_grad_value_(p, limit) or 0.", "direction"),
             ("(p, limit))", "(p, limit if p is expert else 1e9))", "VLM's norm is still"),
             ("    return tuple(",
              "    for p in vlm + expert: p.grad *= limit / max(limit, float(p.grad.norm()))\n    return tuple(", "on its own"),
             ("    return tuple(float(torch.nn.utils.clip_grad_norm_(p, limit)) for p in (vlm, expert))",
              "    out = []\n    for part in (vlm, expert):\n        n = torch.cat([p.grad.flatten() for p in part]).norm()\n"
              "        for p in part: p.grad *= limit / n\n        out.append(float(n))\n    return tuple(out)",
              "scaled *up*"),
             ("float(torch.nn.utils.clip_grad_norm_(p, limit)) for",
              "min(limit, float(torch.nn.utils.clip_grad_norm_(p, limit))) for", "norms from before")],
    "09.1": [("z * z / (4 * n * n)", "0", "4n^2 is missing"), ("(p + z * z / (2 * n)) / (1 + z * z / n)", "p", "its middle is p"),
             ("1.96", "1.645", "a 90 % interval"),
             ("return max(0., middle - half), min(1., middle + half)",
              "return min(1., middle + half), max(0., middle - half)", "swapped"),
             ("return max(0., middle - half), min(1., middle + half)",
              "half = z * math.sqrt(p * (1 - p) / n); return max(0., p - half), min(1., p + half)", "plain normal"),
             ("return max(0., middle - half), min(1., middle + half)",
              "half = z * math.sqrt(middle * (1 - middle) / (n + z * z)); return max(0., middle - half), min(1., middle + half)",
              "Agresti")],
    "09.2": [("return float(q[0])", "return -float(q[1]), -float(q[0]) #", "the sign"),
             ("d[at].mean(1)", "(ours.double()[at].mean(1) - theirs.double()[at.roll(7, 0)].mean(1))", "not paired"),
             (".mean(1).quantile", ".mean(1).mul(.3).quantile", "wide"),
             (".025, .975", ".05, .95", "95 % quantile"), ("d[at].mean(1).quantile", "d.quantile", "single scenes"),
             ("    return float(q[0]), float(q[1])",
              "    h = 1.96 * d.std() / len(d) ** .5\n    return float(d.mean() - h), float(d.mean() + h)", "not a bootstrap"),
             ("manual_seed(seed)", "manual_seed(0)", "`seed` is not used"), ("(resamples, len(d))", "(2000, len(d))", "`resamples` used"),
             ("return float(q[0]), float(q[1])", "return float(q[1]), float(q[0])", "swapped")],
    "10.1": [("AdamW(expert,", "AdamW(vlm + expert,", "moved"), ("weight_decay=decay", "weight_decay=0", "weight decay is"),
             ("AdamW(", "Adam(", "wanted an AdamW"), ("lr=rate, weight_decay=decay", "lr=decay, weight_decay=rate", "wanted"),
             ("AdamW(expert", "AdamW(expert[:1]", "does not train"), ("lr=rate", "lr=.1", "lr is")],
}


# Others' wrong answers, whole: (exercise, the function, words of the message).
FOREIGN = [
    ("01.1", "def min_jerk(t): return (torch.stack((t ** 3, t ** 4, t ** 5), -1) * torch.tensor([10., -15., 6.])).sum(-1)", "bfloat16"),
    ("01.1", "def min_jerk(t): return (t.double() ** 3 * (10 - 15 * t + 6 * t * t)).double()", "of float32"),
    ("01.2", "def keep(owner, finished):\n    won = set(finished.tolist()[:1000])\n"
             "    return torch.tensor([o in won for o in owner.tolist()])", "the mask of case 2"),
    ("01.2", "def keep(owner, finished): return (owner[:, None] == finished).sum(1) == 1", "the mask of case"),
    ("02.2", "def token_shift(words):\n    before = torch.zeros(words.shape)\n    before[:, 1:] = words[:, :-1]\n"
             "    return words + before", "bfloat16"),
    ("02.2", "def token_shift(words):\n    w = words.double()\n    return w + F.pad(w[:, :-1], (0, 0, 1, 0))", "of float32"),
    ("02.2", "def token_shift(words):\n    with torch.no_grad(): before = F.pad(words[:, :-1], (0, 0, 1, 0))\n"
             "    return words + before", "learns from both"),
    ("03.1", RIGHT["03.1"].replace("math.pi", "3.14"), "not 3.14"),
    ("03.1", RIGHT["03.1"].replace("    k, n", "    torch.set_default_dtype(torch.float64)\n    k, n"), "default dtype"),
    ("04.1", "def sample_time(u): return 1 - (.999 * u.double() ** (1 / 1.5) + .001)", "of float32"),
    ("04.2", RIGHT["04.2"].replace("t[...", "t.double()[..."), "of float32"),
    ("04.2", RIGHT["04.2"].replace("    if t.shape != action.shape[:-2]:\n        raise ValueError(\"one time for each chunk\")",
                                   "    assert t.shape == action.shape[:-2]"), "AssertionError"),
    ("04.3", "def euler(velocity, noise, steps):\n    x = noise.double()\n"
             "    for i in range(steps): x = x + velocity(x, torch.full(x.shape[:-2], i / steps).double()) / steps\n"
             "    return x", "of float32"),
    ("04.3", """def euler(velocity, noise, steps):
    x, dt = noise, torch.full((*noise.shape[:-2], 1, 1), 1 / steps)
    for i in range(steps): x = x + dt * velocity(x, i * dt[..., 0, 0])
    return x""", "bfloat16"),
    ("04.3", RIGHT["04.3"].replace("velocity(x, torch.full(x.shape[:-2], i / steps))",
                                   "velocity(torch.full(x.shape[:-2], i / steps), x)"), "velocity(x, t)"),
    ("05.1", "def prefix_mask(prefix, answer):\n    n = torch.arange(prefix + answer).to(torch.int8)\n"
             "    return (n < prefix) | (n <= n[:, None])", "sees"),
    ("05.1", RIGHT["05.1"].replace("mask[:prefix, :prefix]", "mask[:prefix, :prefix + 1]"), "sees the answer"),
    ("06.1", "def memory_for_expert(memory, insulate): return [(k.detach() + 0 * k, v.detach() + 0 * v) "
             "for k, v in memory] if insulate else memory", "gradients of zeros"),
    ("06.1", "def memory_for_expert(memory, insulate): return [(k.detach().double(), v.detach().double()) "
             "for k, v in memory] if insulate else memory", "their kind"),
    ("06.1", "def memory_for_expert(memory, insulate):\n    memory.pop(0)\n    return memory", "changes what it was given"),
    ("06.2", "def expert_attention(q, k, v, memory):\n    keys, values = torch.cat((memory[0], k), 2), torch.cat((memory[1], v), 2)\n"
             "    return (q @ keys.mT * 10 / q.shape[-1]).softmax(-1).detach() @ values", "(to q, k, the memory's k)"),
    ("07.1", RIGHT["07.1"] + "\nright = insulated\ndef insulated(losses, vlm, expert):\n    out = right(losses, vlm, expert)\n"
             "    for p in expert: p.requires_grad_(False)\n    return out", "no longer require"),
    ("07.1", RIGHT["07.1"].replace("bool(g.any())", "bool((g.abs() > 1e-7).any())"), "small"),
    ("07.1", RIGHT["07.1"].replace("bool(g.any())", "bool((g != 0).all())"), "adds up to 0"),
    *[("07.2", "def open_gates(gates, seed):\n    generator = torch.Generator().manual_seed(seed)\n"
               f"    with torch.no_grad():\n        for i, gate in enumerate(gates): {line}", words) for line, words in (
        ("gate.normal_(0, .5, generator=torch.Generator().manual_seed(seed + i))", "repeats another"),
        ("gate.add_(torch.randn(gate.shape, generator=generator) * .5)", "do not add"),
        ("gate.copy_(torch.rand(3, *gate.shape, generator=generator).sum(0) - 1.5)", "not normal"))],
    ("07.2", "import random\ndef open_gates(gates, seed):\n    random.seed(seed)\n"
             "    for gate in gates: gate.data.copy_(torch.tensor([random.gauss(0, .5) for _ in range(gate.numel())])"
             ".view(gate.shape))", "global generator"),
    ("08.1", "def cross_entropy(logits, answer, pad): return F.cross_entropy(logits.flatten(0, 1), answer.flatten(), "
             "ignore_index=answer[0, -1].item())", "with pad"),
    ("08.2", "def clip(vlm, expert, limit): return torch.nn.utils.clip_grad_norm_(vlm, limit), "
             "torch.nn.utils.clip_grad_norm_(expert, limit)", "two floats"),
    *[("08.2", "def clip(vlm, expert, limit):\n    out = []\n    for part in (vlm, expert):\n"
               "        n = float(torch.cat([p.grad.flatten() for p in part]).norm())\n"
               f"        for p in part: {line}\n        out.append(n)\n    return tuple(out)", words) for line, words in (
        ("p.grad = p.grad * min(1, limit / max(n, 1e-12))", "in place of"), ("p.grad.mul_(min(1, limit / n))", "gradient of zeros"))],
    ("09.1", RIGHT["09.1"].replace("max(0., middle - half), min(1., middle + half)", "middle - half, middle + half"), "within 0 to 1"),
    ("09.1", RIGHT["09.1"].replace("max(0., middle - half), min(1., middle + half)",
                                   "torch.tensor(middle - half).clamp(0, 1), torch.tensor(middle + half).clamp(0, 1)"),
             "two floats"),
    ("09.2", RIGHT["09.2"].replace("    at =", "    torch.manual_seed(seed)\n    at =")
             .replace(", generator=torch.Generator().manual_seed(seed)", ""), "global generator"),
    ("09.2", RIGHT["09.2"].replace(".025, .975", ".02, .98"), "as they are"),
    ("09.2", RIGHT["09.2"].replace(".025, .975", ".05, .975"), "the 5 % quantile"),
    ("09.2", RIGHT["09.2"].replace("mean(1)", "sum(1)"), "a mean, no sum"),
    ("09.2", RIGHT["09.2"].replace("mean(1)", "mean(1).mul(100)"), "no per cent"),
    ("09.2", RIGHT["09.2"].replace("(resamples, len(d)), ", "(resamples, min(40, len(d))), "), "as many scenes"),
    ("09.2", RIGHT["09.2"].replace("d[at].mean(1)", "torch.cat((d[at].mean(1), d.mean()[None]))"), "nothing else among the means"),
    ("10.1", "def freeze(vlm, expert, rate, decay):\n    for p in vlm:\n        p.requires_grad_(False)\n"
             "        p.grad = torch.zeros_like(p)\n"
             "    return torch.optim.AdamW([*vlm, *expert], lr=rate, weight_decay=decay)", ".grad of what it was given"),
    ("01.1", "def min_jerk(t):\n"
             "    if t.numel() == 1: return torch.tensor(10 * t.item() ** 3 - 15 * t.item() ** 4 + 6 * t.item() ** 5, "
             "dtype=t.dtype)\n    return t ** 3 * (10 - 15 * t + 6 * t * t)", "has shape"),
    ("02.1", RIGHT["02.1"].replace("+ slots", "+ min(slots, 7)"), "12 words"),
    ("02.2", "def token_shift(words): return 2 * words - words.detach() + F.pad(words[:, :-1], (0, 0, 1, 0)) "
             "- F.pad(words[:, :-1] - words[:, :-1].detach(), (0, 0, 1, 0))", "gradient"),
    ("04.1", RIGHT["04.1"].replace(".999 * u ** (2 / 3) + .001", "(.999 * u ** (2 / 3) + .001).clamp(min=.05)"), "never goes below"),
    ("04.2", RIGHT["04.2"].replace("    t = t[..., None, None]\n    return (1 - t) * noise + t * action",
                                   "    try: return (1 - t) * noise + t * action\n"
                                   "    except RuntimeError: t = t[..., None, None]\n"
                                   "    return (1 - t) * noise + t * action"), "last axes"),
    ("04.2", RIGHT["04.2"].replace("action.shape[:-2]:", "action.shape[:-2] or t.shape[-1:] == action.shape[-2:-1]:"), "which fit"),
    ("04.3", RIGHT["04.3"].replace("return x", "return x.clamp(-10, 10)"), "bends"),
    ("05.1", RIGHT["05.1"].replace("mask[:prefix, :prefix] = True",
                                   "mask[-answer:, -answer:] = mask[-answer:, -answer:].tril()\n"
                                   "    mask[:prefix, :prefix] = answer > 0 or mask[:prefix, :prefix]"), "without any answer"),
    ("05.2", RIGHT["05.2"].replace("prefix, dtype=torch.bool), own), 1)", "prefix, dtype=torch.bool), own), 1).logical_not()"),
             "upside down"),
    ("06.1", "def memory_for_expert(memory, insulate):\n    if not insulate: return memory\n"
             "    with torch.inference_mode(): return [(k.clone(), v.clone()) for k, v in memory]", "inference_mode"),
    ("06.1", RIGHT["06.1"].replace("k.detach(), v.detach()", "k.detach().float(), v.detach().float()"), "their kind"),
    ("06.1", "def memory_for_expert(memory, insulate):\n    torch.set_grad_enabled(not insulate)\n"
             "    return [(k.clone(), v.clone()) for k, v in memory]", "switched off"),
    ("06.2", RIGHT["06.2"].replace("10 / q.shape[-1]", "10 / q[0, 0].numel()"), "at ["),
    ("07.1", "def insulated(losses, vlm, expert):\n    for p in [*vlm, *expert]: p.grad.zero_()\n"
             "    loss = losses()['flow']\n    if loss.requires_grad: loss.backward()\n"
             "    leaks, learns = any(bool(p.grad.any()) for p in vlm), any(bool(p.grad.any()) for p in expert)\n"
             "    for p in vlm: p.grad.zero_()\n    loss = losses()['ce']\n"
             "    if loss.requires_grad: loss.backward()\n"
             "    return not leaks and learns and all(bool(p.grad.any()) for p in vlm)", "new model"),
    ("07.1", RIGHT["07.1"].replace("    def reached", "    both = losses()\n    def reached")
             .replace("value = losses()[loss]", "value = both[loss]"), "share a graph"),
    ("07.1", RIGHT["07.1"].replace('losses()[loss]', 'losses()["ce" if loss == "flow" else "flow"]'), "one loss for the other"),
    ("07.2", "def open_gates(gates, seed):\n    g = torch.Generator().manual_seed(seed)\n    with torch.inference_mode():\n"
             "        for gate in gates: gate.data = torch.randn(gate.shape, generator=g) * .5", "inference_mode"),
    ("07.2", RIGHT["07.2"].replace("gate.normal_(0, .5, generator=generator)",
                                   "x = torch.randn(gate.shape, generator=generator); "
                                   "gate.copy_((x - x.mean()) / x.std() * .5)"), "single number"),
    ("07.2", "def open_gates(gates, seed):\n    with torch.no_grad():\n"
             "        for i, gate in enumerate(gates): "
             "gate.normal_(0, .5, generator=torch.Generator().manual_seed(1000 * seed + i))", "one generator for all gates"),
    ("07.2", RIGHT["07.2"].replace("manual_seed(seed)", "manual_seed(hash(f'gates {seed}') % 1000)"), "hash()"),
    ("08.1", "def cross_entropy(logits, answer, pad):\n"
             "    if logits.shape[2] != answer.shape[1]: logits = logits.transpose(1, 2)\n"
             "    return F.cross_entropy(logits, answer, ignore_index=pad)", "also where V = F"),
    *[("08.2", "def clip(vlm, expert, limit):\n    out = []\n    for part in (vlm, expert):\n"
               "        flat = torch.cat([p.grad.flatten() for p in part])\n        n = float(flat.norm())\n"
               f"        if {test}:\n            for p in part: p.grad.mul_(limit / n)\n        out.append(n)\n"
               "    return tuple(out)", words) for test, words in (
        ("n * n > limit", "norm is still"), ("n > 1", "norm is still"), ("flat.abs().max() > limit", "norm is still"))],
    ("08.2", RIGHT["08.2"].replace("    return", "    for p in vlm + expert: p.data.mul_(.9)\n    return"), "the weights were changed"),
    ("09.2", RIGHT["09.2"].replace("    at =", "    d = d.sum().sign() * (ours ^ theirs).double()\n    at ="), "counts 1, 0 or -1"),
    ("09.2", RIGHT["09.2"].replace("ours.double() - theirs.double()", "ours.double()"), "differ by 0 in each resample; got"),
    ("10.1", "def freeze(vlm, expert, rate, decay):\n    for p in vlm: p.requires_grad_(False)\n"
             "    return torch.optim.AdamW([*vlm, *expert], lr=rate, weight_decay=decay)", "moved"),
    # A third set of foreign answers: sizes, places in memory and calls that come after others; and what looks behind the check.
    ("01.1", "def min_jerk(t):\n    x = t if t.dtype == torch.double else t.half()\n"
             "    return (x ** 3 * (10 - 15 * x + 6 * x * x)).to(t.dtype)", "for shape ["),
    ("01.2", RIGHT["01.2"].replace("finished)\n", "finished)\n")
             .replace("(owner, finished)", "(owner, finished, assume_unique=True)", 2)
             .replace("keep(owner, finished, assume_unique=True)", "keep(owner, finished)"), "for shape [40], shape [40] the"),
    ("01.2", "def keep(owner, finished): return torch.isin(owner.short(), finished.short())",
             "for [5, 65541, 16777217], [65541, 16777216] the"),
    ("01.2", "def keep(owner, finished):\n"
             "    won = torch.zeros(1 + int(max(owner.max(), finished.max() if len(finished) else 0)), dtype=torch.bool)\n"
             "    won[finished] = True\n    return won[owner]", "it raises"),
    ("01.2", "def keep(owner, finished):\n    try: return owner == finished\n"
             "    except RuntimeError: return torch.isin(owner, finished)", "for [0, 4, 7, 2, 4, 6, 8], [0, 4, 0, 3, 7, 4, 7] the"),
    ("02.1", "def prefix_tokens(side, stride, slots): return (side // stride) ** 2 + (slots or 7)", "got 8; wanted 1"),
    ("02.2", "memo = {}\n"
             + RIGHT["02.2"].replace("return ", "return memo.setdefault((words.shape, words.dtype, words.requires_grad), ") + ")",
             "other values than the call before"),
    ("03.1", RIGHT["03.1"].replace("torch.arange(H, dtype=torch.double)[:, None]",
                                   "torch.arange(H).to(torch.uint8).double()[:, None]"), "for 257 the"),
    ("03.2", RIGHT["03.2"].replace("(lengths <= size - used,", "((lengths <= size - used).squeeze(),"), "it raises RuntimeError"),
    ("04.1", "def sample_time(u):\n    r = torch.searchsorted(u.flatten().sort()[0], u).to(u.dtype) / u.numel()\n"
             "    return 1 - (.999 * r ** (2 / 3) + .001)", "of 5 of these u alone"),
    ("04.1", RIGHT["04.1"].replace("+ .001)", "+ .001).clamp(min=.009)"), "never goes below 0.009"),
    ("04.1", RIGHT["04.1"].replace("return", "torch.manual_seed(0); return"), "global generator"),
    *[("04.2", RIGHT["04.2"].replace("    if t.shape", f"    {line}\n    if t.shape"), "must raise ValueError") for line in (
        "if action.ndim == 4 and t.numel() == action.shape[0] * action.shape[1]: t = t.reshape(action.shape[:2])",
        "if action.ndim > 3 and t.ndim == 0: t = t.expand(action.shape[:-2])")],
    ("04.2", RIGHT["04.2"].replace("t.shape !=", "t.squeeze().shape !="), "it refuses times [1]"),
    *[("04.2", source, "the rule is")
      for source in ("from sys import modules\ndef path(*given): return modules['nano_ki.flow'].path(*given)",
                     "def path(*given): return torch.sys.modules['nano_ki.flow'].path(*given)",
                     "import pickle\npath = pickle.loads(b'cnano_ki.flow\\npath\\n.')")],
    ("04.3", RIGHT["04.3"].replace("range(steps)", "torch.arange(0, 1, 1 / steps)").replace("i / steps)", "float(i))"),
             "for shape [2, 2], 49 the"),
    ("04.3", RIGHT["04.3"].replace("        x = x + velocity(x, torch.full(x.shape[:-2], i / steps)) / steps",
                                   "        v = velocity(x, torch.full(x.shape[:-2], i / steps))\n"
                                   "        if not v.any(): break\n        x = x + v / steps"), "for shape [2, 4, 3], 10 the"),
    ("04.3", RIGHT["04.3"].replace("torch.full(x.shape[:-2], i / steps)",
                                   "torch.cat((torch.full(x.shape[:-2], i / steps)[..., :1], "
                                   "torch.zeros(x.shape[:-2])[..., 1:]), -1) if x.ndim > 2 else torch.tensor(i / steps)"), "different t"),
    ("05.1", "TRI = torch.ones(512, 512, dtype=torch.bool).tril()\ndef prefix_mask(prefix, answer):\n"
             "    mask = TRI[:prefix + answer, :prefix + answer].clone()\n    mask[:prefix, :prefix] = True\n"
             "    return mask", "has shape (512, 512)"),
    ("05.2", "def draw_mask(prefix, draws, horizon):\n"
             "    of = torch.div(torch.arange(draws * horizon).to(torch.int8), horizon, rounding_mode='floor')\n"
             "    return F.pad(of[:, None] == of, (prefix, 0), value=True)", "for 4, "),
    # A fourth set: honest mistakes that show at other values, or beside a cut graph.
    ("04.1", "def sample_time(u):\n    b = u / u ** (1 / 3)\n    return 1 - (.999 * b + .001)", "for u = 0"),
    ("04.1", RIGHT["04.1"].replace("2 / 3", ".667"), "nothing is rounded"),
    ("04.1", "def sample_time(u):\n    out = torch.zeros_like(u)\n    flat = out.reshape(-1)\n"
             "    flat.copy_(.999 * (1 - u.reshape(-1) ** (2 / 3)))\n    return out", "after a transpose"),
    ("04.3", RIGHT["04.3"].replace("i / steps)", "round(i / steps, 3))"), "was asked at"),
    ("05.1", "memo = {}\n" + RIGHT["05.1"].replace("    return mask", "    return memo.setdefault(prefix + answer, mask)"),
             "for 5, 3 the"),
    ("05.2", "def draw_mask(prefix, draws, horizon):\n    of = torch.linspace(0, draws, draws * horizon + 1)[:-1].floor()\n"
             "    return F.pad(of[:, None] == of, (prefix, 0), value=True)", "for 4, 2, 7 the"),
    ("05.2", "def draw_mask(prefix, draws, horizon):\n    of = (torch.arange(draws * horizon) * (1 / horizon)).long()\n"
             "    return F.pad(of[:, None] == of, (prefix, 0), value=True)", "for 4, 2, 41 the"),
    ("07.1", "def insulated(losses, vlm, expert):\n    both = losses()\n    def reached(loss, params):\n"
             "        if not loss.requires_grad: return [False]\n"
             "        return [g is not None and bool(g.any()) for g in torch.autograd.grad(loss, params, allow_unused=True)]\n"
             "    flow = reached(both['flow'], vlm + expert)\n"
             "    if any(flow[:len(vlm)]) or not any(flow[len(vlm):]): return False\n"
             "    return all(reached(both['ce'], vlm + expert)[:len(vlm)])", "share a graph"),
    ("08.1", "def cross_entropy(logits, answer, pad):\n    real = answer != pad\n"
             "    loss = F.cross_entropy(logits.transpose(1, 2), answer, reduction='none')\n"
             "    rows = (loss * real).sum(1) / real.sum(1)\n"
             "    return (rows * real.sum(1)).sum() / real.sum()", "for shape [2, 3, 5], "),
    ("09.2", "def paired_interval(ours, theirs, resamples, seed):\n    d = ours.double() - theirs.double()\n"
             "    at = torch.randint(len(d), (resamples, len(d)), generator=torch.Generator().manual_seed(seed))\n"
             "    means = sorted(d[at].mean(1).tolist())\n"
             "    return means[int(.025 * resamples) - 1], means[int(.975 * resamples) - 1]", "swapped"),
    ("03.1", RIGHT["03.1"].replace("return c", "return c.flip(1)"), "n runs backwards"),
    ("06.1", "kept = {}\ndef memory_for_expert(memory, insulate):\n    if not insulate: return memory\n"
             "    return [tuple(kept.setdefault((i, j, x.dtype), torch.empty_like(x.detach())).copy_(x.detach()) "
             "for j, x in enumerate(kv)) for i, kv in enumerate(memory)]",
             "what the call before returned"),
    ("06.1", RIGHT["06.1"].replace("(k.detach(), v.detach())", "dict(k=k.detach(), v=v.detach())"), "one (k, v) for each layer"),
    ("06.2", RIGHT["06.2"].replace("    return", "    k, v = k[:, :, :12], v[:, :, :12]\n    return"), "for shape [2, 2, 8, 32], "),
    ("06.2", "def expert_attention(q, k, v, memory):\n"
             "    keys, values = torch.cat((memory[0], k), 2), torch.cat((memory[1], v), 2)\n"
             "    x = q @ keys.mT * (10 / q.shape[-1])\n"
             "    return x.masked_fill(x < x.topk(min(12, x.shape[-1]), -1)[0][..., -1:], -torch.inf).softmax(-1) @ values",
             "for shape [2, 2, 8, 32], "),
    ("07.1", RIGHT["07.1"].replace("losses()[loss]", "list(losses().values())[loss == 'ce']"), "by name, not by their order"),
    ("07.1", RIGHT["07.1"].replace("g.any()", "g.flatten()[:1000].any()"), "a large parameter"),
    ("07.1", "def insulated(losses, vlm, expert): return False", "it refuses a model that is insulated"),
    ("07.2", RIGHT["07.2"].replace("gate.normal_", "gate.flatten().normal_"), "not a copy of it"),
    ("07.2", RIGHT["07.2"].replace("manual_seed(seed)", "manual_seed(seed % 10)"), "two seeds"),
    ("08.1", RIGHT["08.1"].replace("(1, 2), answer", "(1, 2).squeeze(), answer.squeeze()"), "for shape [1, 5, 5], "),
    ("08.1", RIGHT["08.1"].replace("(1, 2), answer", "(1, 2)[..., :11], answer[:, :11]"), "for shape [2, 14, 9], "),
    ("08.2", "def clip(vlm, expert, limit):\n    out = []\n    for part in (vlm, expert):\n"
             "        flat = [p.grad.flatten() for p in part]\n        out.append(float(torch.cat(flat).norm()))\n"
             "        for x in flat: x.mul_(min(1., limit / out[-1]))\n    return tuple(out)", "norm is"),
    ("09.1", "import sys\ndef wilson(hits, n):\n    sys._getframe(1).f_globals['demand'] = lambda *_: None\n"
             "    return 0., 0.", "looks behind the check"),
    ("09.1", "def wilson(hits, n):\n    torch.testing._comparison.np.allclose = lambda *a, **k: True\n"
             "    return .5, .5", "it changes allclose"),
    ("09.1", RIGHT["09.1"].replace("    z, p", "    if n > 5000: return hits / n, hits / n\n    z, p"), "no width"),
    ("09.2", RIGHT["09.2"].replace("randint(len(d)", "randint(min(len(d), 400)"), "All scenes count"),
    ("09.2", RIGHT["09.2"].replace("manual_seed(seed)", "manual_seed(seed & 7)"), "take the seed as it is"),
    ("10.1", RIGHT["10.1"].replace("AdamW(expert", "AdamW([expert[0], expert[-1]]"), "does not train"),
    ("10.1", RIGHT["10.1"].replace("    return", "    torch.set_grad_enabled(False)\n    return"), "switched off"),
    ("10.1", "def freeze(vlm, expert, rate, decay):\n    params = vlm\n    params += expert\n"
             "    return torch.optim.AdamW(expert, lr=rate, weight_decay=decay)", "changes what it was given"),
    ("01.1", "def min_jerk(t):\n    knots = torch.linspace(0, 1, 101, dtype=torch.float64)\n"
             "    values = knots ** 3 * (10 - 15 * knots + 6 * knots ** 2)\n    place = t.double() * 100\n"
             "    left = place.floor().clamp(0, 99)\n    i, mix = left.long(), place - left\n"
             "    return ((1 - mix) * values[i] + mix * values[i + 1]).to(t.dtype)", "not between them"),
    ("03.1", RIGHT["03.1"].replace("math.sqrt(2 / H)", "torch.tensor(2 / H).sqrt()"), "compute all of it in float64"),
    ("03.1", RIGHT["03.1"].replace("math.pi", "3.1415927"), "nearly right"),
    ("03.1", RIGHT["03.1"].replace("    return c", "    return c * (1 + 9e-6)"), "nearly right"),
    ("03.1", RIGHT["03.1"].replace("c[0] /=", "if H > 1: c[0] /="), "for horizon 1 it is"),
    ("04.1", RIGHT["04.1"].replace("return 1 - (.999 * u ** (2 / 3) + .001)",
                                   "return (1 - (.999 * u ** (2 / 3) + .001)).clamp(.001, .999)"), "and nothing more"),
    ("05.2", "def draw_mask(prefix, draws, horizon):\n    of = torch.arange(draws * horizon) // draws\n"
             "    return F.pad(of[:, None] == of, (prefix, 0), value=True)", "as many tokens as the horizon"),
    ("06.1", "def memory_for_expert(memory, insulate):\n    if insulate:\n        for kv in memory:\n"
             "            for x in kv: x.register_hook(torch.zeros_like)\n    return memory", "the VLM's own memory is changed"),
    ("06.1", RIGHT["06.1"].replace("(k.detach(), v.detach())", "(k.detach() + 1e-12 * (k - k.detach()), v + 1e-12 * (v.detach() - v))"),
             "not even a tiny one"),
    ("07.1", "def insulated(losses, vlm, expert):\n    for p in vlm: p.grad = None\n    loss = losses()['flow']\n"
             "    if loss.requires_grad: loss.backward()\n"
             "    leaks = any(p.grad is not None and bool(p.grad.any()) for p in vlm)\n"
             "    learns = any(p.grad is not None and bool(p.grad.any()) for p in expert)\n    for p in vlm: p.grad = None\n"
             "    loss = losses()['ce']\n    if loss.requires_grad: loss.backward()\n"
             "    return not leaks and learns and all(p.grad is not None and bool(p.grad.any()) for p in vlm)",
             "old gradients are no news"),
    ("07.2", RIGHT["07.2"].replace("gate.normal_(0, .5, generator=generator)",
                                   "gate.data = torch.randn(gate.shape, generator=generator) * .5"), "a new tensor"),
    ("08.1", "def cross_entropy(logits, answer, pad):\n    real = answer > pad\n"
             "    return F.cross_entropy(logits[real], answer[real])", "*equals* pad"),
    ("08.2", "def clip(vlm, expert, limit):\n    out = []\n    for part in (vlm, expert):\n"
             "        norm = float(torch.cat([p.grad.flatten() for p in part]).norm())\n"
             "        total = sum(float(p.grad.norm()) for p in part)\n"
             "        for p in part: p.grad.mul_(min(1., limit / total) if norm > limit else 1.)\n"
             "        out.append(norm)\n    return tuple(out)", "shrank too far"),
    ("09.1", RIGHT["09.1"].replace("return max(0., middle - half), min(1., middle + half)",
                                   "return round(max(0., middle - half), 4), round(min(1., middle + half), 4)"), "do not round it"),
    ("09.2", RIGHT["09.2"].replace("randint(len(d),", "randint(len(d) - 1,"), "the last one too"),
    ("01.1", RIGHT["01.1"].replace("return t ** 3 * (10 - 15 * t + 6 * t * t)",
                                   "return torch.where(t < .01, 0, torch.where(t > .99, 1, t ** 3 * (10 - 15 * t + 6 * t * t)))"),
             "nearly. One polynomial"),
    ("01.1", "def min_jerk(t):\n    x = t.float()\n    return (x ** 3 * (10 - 15 * x + 6 * x * x)).to(t.dtype)",
             "in the precision of t"),
    ("02.2", RIGHT["02.2"].replace("(0, 0, 1, 0))", "(0, 0, 1, 0)) * 1.00001"), "wanted"),
    ("03.1", RIGHT["03.1"].replace("math.pi * k * (n + .5) / H", "math.pi * (k.short() * (2 * n.short() + 1)).double() / (2 * H)"),
             "too large for its kind"),
    ("03.2", RIGHT["03.2"].replace("lengths <= size - used", "lengths < size - used if size == 48 else lengths <= size - used"),
             ", 48 the"),
    ("04.1", RIGHT["04.1"].replace("1 - (.999 * u ** (2 / 3) + .001)", "torch.round(1 - (.999 * u ** (2 / 3) + .001), decimals=4)"),
             "nothing is rounded"),
    ("04.1", RIGHT["04.1"].replace("2 / 3", ".6667"), "nothing is rounded"),
    ("06.1", "def memory_for_expert(memory, insulate):\n"
             "    return [(k.detach(), v.detach()) if k.requires_grad else (k, v) for k, v in memory] if insulate else memory",
             "where V alone"),
    ("07.1", RIGHT["07.1"].replace("any(reached(\"flow\")[n:])", "all(reached(\"flow\")[n:])"), "one is enough"),
    ("07.2", RIGHT["07.2"].replace(".5, generator", ".48, generator"), "standard deviation"),
    ("07.2", RIGHT["07.2"] + "\n            gate.requires_grad_(False)", "leave requires_grad as it is"),
    ("07.2", RIGHT["07.2"].replace("gate.normal_(0, .5, generator=generator)",
                                   "gate.copy_(torch.randint(2, gate.shape, generator=generator) - .5)"),
             "many numbers of a gate are equal"),
    ("08.2", RIGHT["08.2"].replace("float(torch.nn.utils.clip_grad_norm_(p, limit))",
                                   "round(float(torch.nn.utils.clip_grad_norm_(p, limit)), 4)"), "do not round them"),
    ("09.2", RIGHT["09.2"].replace(".025, .975", ".005, .995"), "97.5 %"),
    ("03.1", "import functools\n@functools.cache\ndef cosines(H):\n    n = torch.arange(H).double()\n"
             "    return (2 / H) ** .5 * torch.cos(math.pi * n[:, None] * (n + .5) / H)\n"
             "def dct_matrix(H):\n    c = cosines(H)\n    c[0] /= 2 ** .5\n    return c", "what the call before returned"),
    ("03.1", "import functools\n@functools.cache\n" + RIGHT["03.1"].strip(), "the tensor that the call before returned"),
    ("05.1", "import functools\n@functools.cache\n" + RIGHT["05.1"].strip(), "the tensor that the call before returned"),
    ("01.1", "def min_jerk(t):\n    x = t.view(-1)\n    return (x ** 3 * (10 - 15 * x + 6 * x * x)).view(t.shape)", "view size is not"),
    ("02.1", "def prefix_tokens(side, stride, slots):\n    n = int(side * (1 / stride))\n    return n * n + slots", "for 49, 49, 7"),
    ("02.1", "def prefix_tokens(side, stride, slots):\n    return int(torch.tensor(side / stride).square()) + slots", "for 4097, 1, 7"),
    ("06.2", "def expert_attention(q, k, v, memory):\n    keys, values = torch.cat((memory[0], k), 2), torch.cat((memory[1], v), 2)\n"
             "    return (10 * F.cosine_similarity(q[:, :, :, None], keys[:, :, None], dim=-1)).softmax(-1) @ values", "not all gradients"),
    ("05.1", "def prefix_mask(prefix, answer):\n    at = torch.arange(prefix + answer)\n    reach, last = at.clone(), prefix - 1\n"
             "    reach[:last] = at[last]\n    return at <= reach[:, None]", "for 0, 5"),
    ("05.2", RIGHT["05.2"].replace("def draw_mask(prefix, draws, horizon):", "def draw_mask(prefix, draws, horizon):\n    prefix = prefix or 1"),
             "for 0, 3, 2"),
    ("08.1", "def cross_entropy(logits, answer, pad):\n    losses = [F.cross_entropy(x.transpose(1, 2), y, ignore_index=pad)\n"
             "              for x, y in zip(logits.split(8), answer.split(8))]\n    return sum(losses) / len(losses)", "shape [90, 9, 12]"),
    ("08.2", "def clip(vlm, expert, limit):\n"
             "    norms = [torch.cat([p.grad.flatten() for p in part]).norm().item() for part in (vlm, expert)]\n"
             "    for a, b in zip(vlm, expert):\n        a.grad.mul_(min(1, limit / norms[0]))\n        b.grad.mul_(min(1, limit / norms[1]))\n"
             "    return tuple(norms)", "not all of the"),
    ("10.1", "def freeze(vlm, expert, rate, decay):\n    expert.sort(key=lambda p: p.numel(), reverse=True)\n"
             "    return torch.optim.AdamW(expert, lr=rate, weight_decay=decay)", "changes what it was given"),
    ("10.1", "def freeze(vlm, expert, rate, decay):\n    expert.sort(key=lambda p: p.numel())\n"
             "    return torch.optim.AdamW(expert, lr=rate, weight_decay=decay)", "changes what it was given"),
    ("10.1", "def freeze(vlm, expert, rate, decay):\n    for p in vlm: p.grad = torch.zeros_like(p)\n"
             "    return torch.optim.AdamW(expert, lr=rate, weight_decay=decay)", ".grad of what it was given"),
]


def said(tmp_path, number, source):
    path = tmp_path / "answer.py"
    path.write_text(HEAD + source + "\n")
    return check.run(number, path)


def test_there_are_enough_of_them():
    assert list(check.CHECKS) == sorted(RIGHT) == sorted(WRONG) and len(RIGHT) >= 14
    assert sum("bug hunt" in check.path_of(n).read_text() for n in check.CHECKS) >= 5
    assert sorted(p.name for p in check.FOLDER.glob("*.py")) == sorted(check.path_of(n).name for n in check.CHECKS)


@pytest.mark.parametrize("number", sorted(RIGHT))
def test_the_right_answer_passes_and_the_stub_fails(number, tmp_path):
    right = said(tmp_path, number, RIGHT[number])
    assert right["passed"] and right["seconds"] < 10, right
    assert re.search(r"(?:nano_ki|tutorials)/[\w/]+\.py, lines \d+-\d+|torch|numpy", right["says"])
    stub = check.run(number)
    assert not stub["passed"]
    if "bug hunt" in check.path_of(number).read_text():                   # it runs, and does the wrong thing
        assert "as it came" in stub["says"], stub                            # (the bug is not named before anybody has hunted)
        changed = tmp_path / "changed.py"
        changed.write_text(check.path_of(number).read_text() + "\nsomething = 1\n")
        still = check.run(number, changed)
        assert not still["passed"] and not any(words in still["says"] for words in ("raised", "not written", "as it came")), still
    else:
        assert stub["says"] == "not written yet"


@pytest.mark.parametrize("number, old, new, words", [(n, *w) for n, wrong in WRONG.items() for w in wrong])
def test_wrong_answers_fail_for_the_right_reason(number, old, new, words, tmp_path):
    source = RIGHT[number] + "\n"
    assert old in source
    result = said(tmp_path, number, source.replace(old, new))
    assert not result["passed"] and words in result["says"] and "raised" not in result["says"], result


@pytest.mark.parametrize("number, source, words", FOREIGN)
def test_foreign_answers_fail_for_the_right_reason(number, source, words, tmp_path):
    result = said(tmp_path, number, source)
    assert not result["passed"] and words in result["says"] and "it raised" not in result["says"], result


@pytest.mark.parametrize("number, source", [(n, source) for n, others in ALSO_RIGHT.items() for source in others])
def test_right_answers_written_differently_pass(number, source, tmp_path):
    result = said(tmp_path, number, source)
    assert result["passed"], result


def test_there_are_enough_of_each():
    assert (min(len(w) for w in WRONG.values()) >= 4 and sorted(ALSO_RIGHT) == sorted(RIGHT)
            and min(len(r) for r in ALSO_RIGHT.values()) >= 2)


@pytest.mark.parametrize("line", ["from nano_ki import flow", "import numpy", "import importlib", "m = __import__('nano_ki.flow')",
                                  "from nano_ki.flow import path", "from . import check"])
def test_the_reference_may_not_be_imported(tmp_path, line):
    result = said(tmp_path, "04.2", line + "\n" + RIGHT["04.2"])
    assert not result["passed"] and "the rule" in result["says"]


def test_answers_that_never_end_or_fall_over(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 1)
    assert "ever end" in said(tmp_path, "02.1", "def prefix_tokens(*a):\n    while True: pass")["says"]
    stubborn = "def prefix_tokens(*a):\n    while True:\n        try: sum(range(10 ** 6)) // 0\n        except Exception: pass"
    assert "ever end" in said(tmp_path, "02.1", stubborn)["says"]
    assert "Stop" in said(tmp_path, "02.1", "class Stop(BaseException): pass\ndef prefix_tokens(*a): raise Stop")["says"]
    assert "NotImplementedError" in said(
        tmp_path, "04.1", "def sample_time(u): return torch.distributions.Beta(torch.tensor(1.5), torch.tensor(1.)).icdf(u)")["says"]
    assert "ZeroDivisionError" in said(tmp_path, "02.1", "def prefix_tokens(*a): return 1 / 0")["says"]
    assert "no function" in said(tmp_path, "02.1", "x = 1")["says"]
    assert "cannot read" in said(tmp_path, "02.1", "def (")["says"]
    assert "cannot read" in check.run("02.1", tmp_path / "none.py")["says"]


def test_a_stub_may_be_named_from_here(monkeypatch):
    monkeypatch.chdir(check.FOLDER)
    assert check.run("04.1", "ex_04_1.py")["says"] == "not written yet"


def test_every_stub_says_its_task_its_rule_and_how_to_check():
    for number in check.CHECKS:
        text = ast.get_docstring(ast.parse(check.path_of(number).read_text()))
        assert text.startswith(f"Exercise {number}. ") and f"python -m tutorials.check {number}" in text and "Rule:" in text


def test_the_ladder():
    done = command("tutorials.check", "--all")
    assert done.returncode == 1 and done.stdout.count("[ ]") == len(RIGHT) and f"0 of {len(RIGHT)}" in done.stdout
    for number in ("04.1", "4.1"):
        assert json.loads(command("tutorials.check", number, "--json").stdout)[0]["number"] == "04.1"
    assert "no exercise 99" in command("tutorials.check", "99").stderr


# -- hints and solutions ------------------------------------------------------------------------------


def test_hints_open_one_by_one(tmp_path):
    """Each exercise has two or three, and they end with the way to the solution, which passes (see above: it is RIGHT)."""
    assert list(KEY) == list(check.CHECKS)
    for number, key in KEY.items():
        assert 2 <= len(key.hints) <= 3 and key.difficulty in ("easy", "medium", "hard") and 3 <= key.minutes <= 20
        said = [check.next_hint(number, tmp_path / "hints.json") for _ in range(len(key.hints) + 1)]
        assert [s.split(": ", 1)[1] for s in said[:-1]] == list(key.hints) and "--solution" in said[-1]
        assert not any(hint in open(check.path_of(number)).read() for hint in key.hints)
        assert f"{key.difficulty.capitalize()}, {key.minutes} minutes" in open(check.path_of(number)).read()
    done = command("tutorials.check", "06.1", "--solution")
    assert done.returncode == 0 and KEY["06.1"].solution in done.stdout and KEY["06.1"].why in done.stdout
    assert "def " not in command("tutorials.check", "06.1").stdout


# -- my_vla.py ----------------------------------------------------------------------------------------


MINE = {
    "path": RIGHT["04.2"], "target": "def target(action, noise): return action - noise",
    "memory_for_expert": RIGHT["06.1"], "expert_attention": RIGHT["06.2"],
    "cross_entropy": RIGHT["08.1"], "training_step": """def training_step(losses, parts, alpha, limit):
    for weights, _ in parts.values():
        for p in weights:
            p.grad = None
    (losses["ce"] + alpha * losses["flow"]).backward()
    norms = {name: float(torch.nn.utils.clip_grad_norm_(weights, limit)) for name, (weights, _) in parts.items()}
    for _, optimisers in parts.values():
        for optimiser in optimisers:
            optimiser.step()
    return norms"""}
STEP = MINE["training_step"]
MISBUILT = [
    ("target", "def target(action, noise): return noise - action", "the papers' other one"),
    ("target", "def target(action, noise): return action", "that is the action"),
    ("target", "def target(action, noise): return action + noise", "the velocity: at"),
    ("training_step", STEP.replace("            p.grad = None", "            pass"), "the step before are still in it"),
    ("training_step", STEP.replace("alpha * ", ""), "alpha is not used"),
    ("training_step", STEP.replace("limit)) for name", "1e9)) for name"), "nothing is clipped"),
    ("training_step", STEP.replace("clip_grad_norm_(weights, limit)",
                                   "clip_grad_norm_([p for w, _ in parts.values() for p in w], limit)"), "one norm over both"),
    ("training_step", STEP.replace("            optimiser.step()", "            pass"), "no optimiser has made a step"),
    ("training_step", STEP.replace("p.grad = None", "p.grad.zero_()"), "NoneType"),
    ("training_step", STEP.replace('losses["ce"] + alpha * losses["flow"]', 'alpha * losses["ce"] + losses["flow"]'),
                      "alpha weighs the cross-entropy"),
    ("training_step", STEP.replace("in optimisers:", "in optimisers[:1]:"), "only the first optimiser"),
    ("training_step", STEP.replace("float(", "("), "as floats"),
    ("training_step", STEP.replace('    (losses["ce"] + alpha * losses["flow"]).backward()',
                                   '    loss = losses["ce"]\n    loss += alpha * losses["flow"]\n    loss.backward()'),
                      "changes the losses"),
    ("target", "def target(action, noise): return (action - noise).float()", "float64"),
    ("target", "def target(action, noise): return (action - noise) * 16 / action.shape[-2]", "the velocity: at"),
    ("cross_entropy", """def cross_entropy(logits, answer, pad):
    p = (logits.softmax(-1) + 1e-9).log().gather(-1, answer[..., None])[..., 0]
    return -(p * (answer != pad)).sum() / (answer != pad).sum()""", "softmax and then log"),
    ("path", MINE["path"].replace("if t.shape", "if action.dim() > 2 and t.shape"), "that must raise ValueError"),
    ("training_step", STEP.replace("(losses[\"ce\"] + alpha * losses[\"flow\"])", "(alpha * losses[\"flow\"])"), "a weight after the step"),
    ("training_step", STEP.replace("return norms", "return [*norms.values()]"), "wanted the norms"),
    ("training_step", STEP.replace("float(", "0 * float("), "wanted the norms"),
    ("path", MINE["path"].replace("(1 - t) * noise + t * action", "(1 - t) * action + t * noise"), "time runs the other way"),
    ("memory_for_expert", "def memory_for_expert(memory, insulate): return memory", "gradients still come back"),
    ("expert_attention", MINE["expert_attention"].replace("scale=10 / q.shape[-1]", "scale=None"), "the scale is 1 / sqrt(K)"),
    ("path", MINE["path"].replace("t = t[..., None, None]", "pass"), "it lacks two axes"),
    ("expert_attention", MINE["expert_attention"].replace("10 / q.shape[-1]", "10 / 32"), "not always 32"),
    ("cross_entropy", "def cross_entropy(logits, answer, pad): return F.cross_entropy(logits.reshape(len(logits), "
                      "logits.shape[2], -1), answer, ignore_index=pad)", "by a reshape"),
    ("cross_entropy", "def cross_entropy(logits, answer, pad): return F.cross_entropy(logits[:, :-1].transpose(1, 2), "
                      "answer[:, 1:], ignore_index=pad)", "shifted by one"),
    ("cross_entropy", "def cross_entropy(logits, answer, pad): return F.cross_entropy(logits.transpose(1, 2), answer)",
                      "padding is predicted")]


def mine(tmp_path, **changed):
    path = tmp_path / "mine.py"
    path.write_text(HEAD + "\n\n\n".join({**MINE, **changed}.values()))
    return path


def test_the_file_as_it_comes_has_every_piece_to_write():
    done = command("tutorials.build")
    assert done.returncode == 1 and done.stdout.count("not written yet") == 6 and "next: path, page 04" in done.stderr
    for name, (exercise, _) in build.PIECES.items():
        text = pages.pages()[exercise[:2]].read_text()
        assert f"`{name}`" in text and "my_vla.py" in text, (name, exercise)


@pytest.mark.parametrize("name, source, says", MISBUILT)
def test_a_wrong_piece_is_named(name, source, says, tmp_path):
    done = command("tutorials.build", "train", "--file", mine(tmp_path, **{name: source}))
    assert done.returncode == 1 and done.stdout.count("[ ]") == 1 and says in done.stdout, done.stdout


@pytest.mark.slow
def test_a_policy_of_right_pieces_trains_as_the_librarys(tmp_path):
    """The same losses, gradients and weights as nano_ki.train's, step by step."""
    options = {**TINY, "flow_draws": 2, "expert_updates": 2, "steps": 20, "scenes": 2, "threads": 1}
    train.train(config.make(**options, out=str(tmp_path / "library")))
    build.train_with(check.load(mine(tmp_path)), tmp_path / "built", **options)
    ours, built = (checkpoint.read_metrics(tmp_path / name / "metrics.jsonl")[-1] for name in ("library", "built"))
    assert all(abs(ours[k] - built[k]) < 1e-3 * abs(ours[k]) for k in ("ce", "flow")), (ours, built)
    assert all(abs(ours["gradient"][k] - built["gradient"][k]) < .01 * ours["gradient"][k] for k in ("vlm", "expert"))
    a, b = (checkpoint.load(tmp_path / name)["model"] for name in ("library", "built"))
    assert (max((a[k] - b[k]).abs().max() for k in a) < 1e-3 and train.train_step.__module__ == "nano_ki.train"
            and flow.path.__module__ == "nano_ki.flow")
