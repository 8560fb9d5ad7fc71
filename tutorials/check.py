"""Checks your answer to an exercise, and names the likely mistake.

    python -m tutorials.check 04.1            # tutorials/exercises/ex_04_1.py
    python -m tutorials.check --all           # the ladder          --json: a record

Each check compares your function with the library's on seeded inputs, tries properties that must hold, and says where the
library's own answer stands. Your file may use the standard library and torch.
"""
import ast
import importlib
import importlib.util
import inspect
import json
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from nano_ki import decoder, evaluate, expert, fast, flow, model, probe, program, vit, world
from nano_ki.language import SLOTS

FOLDER = Path(__file__).parent / "exercises"
SECONDS = 10                              # for one check
CHECKS = {}                               # number: (function's name, the library's answer, check), in order


class Wrong(Exception):
    """What is wrong with an answer, in words for the one who wrote it."""


def exercise(number, name, key):
    """Register a check: check(f) raises Wrong. key: the library function, or method, that is the answer."""
    def register(check):
        CHECKS[number] = (name, key, check)
        return check
    return register


def demand(holds, otherwise):
    if not holds:
        raise Wrong(otherwise)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def like(got, wanted, what, atol=1e-5):
    """Wrong if `got` is no tensor of the shape, kind and values of `wanted`."""
    demand(isinstance(got, torch.Tensor), f"{what} is a {type(got).__name__}; wanted a tensor")
    demand(got.shape == wanted.shape, f"{what} has shape {tuple(got.shape)}; wanted {tuple(wanted.shape)}")
    demand((got.dtype == torch.bool) == (wanted.dtype == torch.bool), f"{what} is {got.dtype}; wanted {wanted.dtype}")
    close = torch.equal(got, wanted) if got.dtype == torch.bool else torch.allclose(got.double(), wanted.double(), atol=atol)
    demand(close, f"{what} is not what it should be")


def raises(call, kind):
    try:
        call()
    except kind:
        return True
    except Exception:                     # (another kind of error is no answer either)
        return False
    return False


# -- the checks ---------------------------------------------------------------------------------------


@exercise("01.1", "min_jerk", world._min_jerk)
def check_min_jerk(f):
    t = torch.linspace(0, 1, 101, dtype=torch.double)
    s = f(t.clone())
    demand(abs(float(s[0])) < 1e-6 and abs(float(s[-1]) - 1) < 1e-6, "it does not run from 0 at t = 0 to 1 at t = 1")
    speed = torch.diff(s) * 100
    demand(max(abs(speed[0]), abs(speed[-1])) < .05, "it starts or ends with speed: that jerks (t itself, or a ramp?)")
    demand(max(abs(torch.diff(speed)[[0, -1]]) * 100) < 1.5, "it starts or ends with acceleration: t^2 (3 - 2 t) has speed 0 at "
           "the ends, and still jumps in acceleration")
    like(s, torch.from_numpy(world._min_jerk(t.numpy())), "the stroke")


@exercise("01.2", "keep", np.isin)
def check_keep(f):
    owner, finished = torch.tensor([0, 0, 1, 2, 2, 2, 5]), torch.tensor([2, 0])
    got = f(owner, finished)
    demand(not (isinstance(got, torch.Tensor) and torch.equal(got, ~torch.isin(owner, finished))), "these are the failed ones: upside down")
    demand(not (isinstance(got, torch.Tensor) and got.shape == finished.shape), "one answer for each sample, not for each episode")
    like(got, torch.isin(owner, finished), "the mask")
    demand(not f(owner, torch.tensor([], dtype=torch.long)).any(), "where no episode succeeded, nothing stays")


@exercise("02.1", "prefix_tokens", vit.ViT)
def check_prefix_tokens(f):
    demand(f(48, 8, 7) != 6 + 7, "a picture has rows and columns: count both")
    demand(f(48, 8, 7) != 36, "the words of the prompt are read too")
    for side, stride in ((48, 8), (96, 8), (64, 16)):
        demand(f(side, stride, 7) == (side // stride) ** 2 + 7, f"a {side} x {side} picture with stride {stride} and 7 words: "
               f"got {f(side, stride, 7)}, wanted {(side // stride) ** 2 + 7}")
    vlm = decoder.VLM(32, 1, 1, 48, 10, SLOTS, 2)
    length = vlm.prefix(torch.zeros(1, 48, 48, 3, dtype=torch.uint8), torch.zeros(1, SLOTS, dtype=torch.long)).shape[1]
    demand(f(48, vit.STRIDE, SLOTS) == length, f"the library's VLM reads {length}")


@exercise("02.2", "token_shift", decoder.VLM.prefix)
def check_token_shift(f):
    words = random(2, 5, 3)
    got = f(words.clone())
    before, after = torch.zeros(2, 2, 5, 3).unbind(0)
    before[:, 1:], after[:, :-1] = words[:, :-1], words[:, 1:]

    def is_it(*those):
        return any(got.shape == words.shape and torch.allclose(got, x) for x in those)
    demand(not is_it(words + words.roll(1, 1)), "the first slot hears the last word: nothing comes before it")
    demand(not is_it(words + after, words + words.roll(-1, 1)), "that is the word *after*: shift the other way")
    demand(not is_it(words + words.roll(1, 2), words + torch.nn.functional.pad(words[..., :-1], (1, 0))),
           "you shifted the features; shift the slots (axis 1)")
    demand(not is_it(before, words.roll(1, 1)), "the word itself is lost: add, do not replace")
    like(got, words + before, "the shifted words")


@exercise("03.1", "dct_matrix", fast.dct_matrix)
def check_dct_matrix(f):
    for horizon in (4, 16):
        c = f(horizon).double()
        demand(c.shape == (horizon, horizon), f"shape {tuple(c.shape)}; wanted ({horizon}, {horizon})")
        wanted = torch.from_numpy(fast.dct_matrix(horizon))
        demand(not torch.allclose(c, wanted.T), "rows and columns are swapped: rows are frequencies")
        demand(torch.allclose(c[1:], wanted[1:], atol=1e-5) or not torch.allclose(c[:1], wanted[:1]), "row 0 is right, the others are not: "
               "is it n + 1/2?")
        demand(not (torch.allclose(c[1:], wanted[1:], atol=1e-5) and not torch.allclose(c[:1], wanted[:1])),
               "row 0 needs its factor 1 / sqrt(2): without it the matrix is not orthonormal")
        demand(torch.allclose(c @ c.T, torch.eye(horizon, dtype=torch.double), atol=1e-5), "it is not orthonormal: C @ C.T should be 1")
        like(c, wanted, "the matrix")


@exercise("03.2", "allowed", fast.FAST.allowed)
def check_allowed(f):
    lengths = torch.tensor([1, 1, 2, 3, 5])
    generator = torch.Generator().manual_seed(0)
    for used in (0, 2, 5, 6):
        got = f(lengths, used, 6)
        demand(got.shape == (6,), f"shape {tuple(got.shape)}; wanted one for each token and one for stop: (6,)")
        demand(bool(got[-1]) == (used == 6), f"after {used} of 6 coefficients stop is {'allowed' if got[-1] else 'not allowed'}: it must "
               "be, exactly when all are there")
        demand(not bool((got[:-1] & (lengths > 6 - used)).any()), "a token that stands for more than what is left overruns the chunk")
        demand(bool((got[:-1] | (lengths > 6 - used)).all()), "a token that just fills the chunk must be allowed")
    for _ in range(20):                   # whatever is drawn, decodes
        used = 0
        while not bool(f(lengths, used, 6)[-1]):
            choice = torch.multinomial(f(lengths, used, 6)[:-1].float(), 1, generator=generator)
            used += int(lengths[choice])
        demand(used == 6, "a sequence drawn under your mask does not decode")


@exercise("04.1", "sample_time", flow.sample_time)
def check_sample_time(f):
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    t = f(u.clone())
    demand(t.shape == u.shape, f"shape {tuple(t.shape)}; wanted that of u")
    demand(float(t.min()) >= 0 and float(t.max()) <= 1, "times must lie within 0 to 1")
    mean = 1 - float(t.mean())
    demand(abs(mean - .4) > .02, "time runs the other way: t = 0 is the noise, so t is 1 minus the noise level")
    demand(abs(mean - .558) > .008, "mean noise level .558: the known bug (b is not Beta(1.5, 1))")
    demand(abs(mean - .5) > .01, "the mean noise level is .5: uniform, it does not lean")
    demand(abs(mean - .6) < .004, f"the mean noise level is {mean:.3f}; wanted .600")
    below = float((1 - t < .5).double().mean())
    demand(abs(below - .5 ** 1.5) < .01, f"{below:.3f} of the noise levels are below .5; Beta(1.5, 1) has {.5 ** 1.5:.3f}")
    demand(float(t.max()) <= 1 - .001 + 1e-6, "the noise level must not go below .001")


@exercise("04.2", "path", flow.path)
def check_path(f):
    action, noise = random(4, 16, 3), random(4, 16, 3, seed=1)
    t = torch.tensor([0., .25, .5, 1.])
    got = f(action, noise, t)
    demand(got.shape == action.shape, f"shape {tuple(got.shape)}; wanted {tuple(action.shape)}: t needs two axes more")
    demand(not torch.allclose(got[0], action[0]), "time runs the other way: at t = 0 there is noise")
    like(got, flow.path(action, noise, t), "x_t")
    more = random(2, 5, 16, 3), random(2, 5, 16, 3, seed=1), torch.rand(2, 5)
    like(f(*more), flow.path(*more), "x_t of [2, 5] chunks")
    demand(raises(lambda: f(random(3, 3, 3), random(3, 3, 3), torch.rand(3, 3)), ValueError),
           "actions [3, 3, 3] with times [3, 3]: that must raise ValueError; it broadcasts over waypoints without a word")


@exercise("04.3", "euler", flow.euler)
def check_euler(f):
    noise, action, asked = random(2, 4, 3), random(2, 4, 3, seed=1), []

    def field(x, t):
        demand(isinstance(t, torch.Tensor) and t.shape == x.shape[:-2], f"velocity was asked with t of shape "
               f"{tuple(getattr(t, 'shape', ()))}; wanted {tuple(x.shape[:-2])}")
        asked.append(round(float(t.flatten()[0]), 4))
        return action - noise
    got = f(field, noise.clone(), 10)
    demand(len(asked) == 10, f"velocity was asked {len(asked)} times; wanted 10")
    demand(not torch.allclose(got, 2 * noise - action, atol=1e-4), "you went backwards: t = 1 is the action, and the field points there")
    demand(asked[0] == 0, f"the first question was at t = {asked[0]}; wanted 0 (the start of the step)")
    demand(asked == sorted(asked) and asked[-1] == .9, f"the last question was at t = {asked[-1]}; wanted .9")
    like(got, action, "on the true field, where it ends,", 1e-4)

    def bent(x, t):
        return (1 + t[..., None, None]) * x
    like(f(bent, noise.clone(), 7), flow.euler(bent, noise, 7), "on a field that bends, where it ends,")


@exercise("05.1", "prefix_mask", decoder.prefix_mask)
def check_prefix_mask(f):
    got = f(3, 4)
    demand(got.shape == (7, 7) and got.dtype == torch.bool, f"{got.dtype} of shape {tuple(got.shape)}; wanted bool (7, 7)")
    demand(not bool(got[:3, 3:].any()), "the prefix sees the answer: it would leak into what the expert reads")
    demand(not bool(got[3:, 3:].triu(1).any()), "an answer's token sees a later one: its cross-entropy becomes a copy task")
    demand(bool(got[:3, :3].all()), "the prefix must be read both ways: it is causal")
    demand(bool(got[3:, :3].all()), "the answer must see the whole prefix")
    like(got, decoder.prefix_mask(3, 4), "the mask")


@exercise("05.2", "draw_mask", expert.draw_mask)
def check_draw_mask(f):
    got = f(5, 3, 2)
    demand(got.shape == (6, 11) and got.dtype == torch.bool, f"{got.dtype} of shape {tuple(got.shape)}; wanted bool (6, 11)")
    demand(bool(got[:, :5].all()), "every action token must see the whole memory")
    own = got[:, 5:]
    demand(not bool(own.all()), "draws see each other: each must behave as if it were alone")
    demand(bool(own[0, 1]) and bool(own[1, 0]), "the tokens of one draw must see each other, both ways (no causal mask)")
    like(got, expert.draw_mask(5, 3, 2), "the mask")


@exercise("06.1", "memory_for_expert", model.VLA.memory_for_expert)
def check_memory_for_expert(f):
    leaves = [random(2, 2, 5, 4, seed=i).requires_grad_() for i in range(6)]
    memory = [(leaves[i] * 1., leaves[i + 1] * 1.) for i in (0, 2, 4)]
    open_, closed = f(list(memory), False), f(list(memory), True)
    demand(all(x.requires_grad for kv in memory for x in kv), "the VLM's own memory lost its gradient: detach makes a new tensor; "
           "detach_() changes the old one, which the cross-entropy needs")
    for got in (open_, closed):
        demand(len(got) == 3 and all(len(kv) == 2 for kv in got), "wanted one (k, v) for each layer")
        demand(all(torch.equal(a, b) for kv, old in zip(got, memory, strict=True) for a, b in zip(kv, old, strict=True)),
               "the values must stay the same")
    demand(all(x.requires_grad for kv in open_ for x in kv), "without insulation all gradients must pass")
    leak = [[x.requires_grad for x in kv] for kv in closed]
    demand(not all(v for _, v in leak) or any(k for k, _ in leak), "a gradient comes back through V: what is read, not only where")
    demand(not all(k for k, _ in leak) or any(v for _, v in leak), "a gradient comes back through K: where is looked, not only what is read")
    where = [i for i, kv in enumerate(leak) if any(kv)]
    demand(not where, f"a gradient comes back in layer {where[0] if where else ''}: every layer must be stopped")


@exercise("06.2", "expert_attention", expert.ExpertBlock.forward)
def check_expert_attention(f):
    q, k, v = (random(2, 3, 4, 8, seed=i) for i in range(3))
    memory = random(2, 3, 6, 8, seed=3), random(2, 3, 6, 8, seed=4)
    got = f(q, k, v, memory)

    def wanted(scale):
        logits = q @ torch.cat((memory[0], k), 2).mT * scale
        return logits.softmax(-1) @ torch.cat((memory[1], v), 2)
    demand(got.shape == q.shape, f"shape {tuple(got.shape)}; wanted {tuple(q.shape)}")
    demand(not torch.allclose(got, wanted(8 ** -.5), atol=1e-4), "the scale is 1 / sqrt(K): here q and k are normalised, and it is 10 / K")
    two = sum((q @ a.mT * 10 / 8).softmax(-1) @ b for a, b in (memory, (k, v)))
    demand(not torch.allclose(got, two, atol=1e-4) and not torch.allclose(got, two / 2, atol=1e-4),
           "that is two softmaxes: memory and own tokens must compete in one")
    demand(not torch.allclose(got, (q @ memory[0].mT * 10 / 8).softmax(-1) @ memory[1], atol=1e-4),
           "the action tokens do not see each other")
    like(got, wanted(10 / 8), "what comes out", 1e-4)


@exercise("07.1", "insulated", probe.gradient_norms)
def check_insulated(f):
    def case(flow_sees, ce_sees, expert_sees=True, zeros=False):
        vlm, own = [random(3, seed=i).requires_grad_() for i in range(3)], [random(3, seed=9).requires_grad_()]

        def losses():
            flow_ = sum(((p * (0 if zeros else 1)).sum() for p, s in zip(vlm, flow_sees, strict=True) if s), torch.zeros(()))
            return {"flow": flow_ + (own[0].square().sum() if expert_sees else vlm[0].detach().sum() * own[0].detach().sum()),
                    "ce": sum((p.square().sum() for p, s in zip(vlm, ce_sees, strict=True) if s), torch.zeros(()))}
        return losses, vlm, own
    demand(f(*case((0, 0, 0), (1, 1, 1))) is True, "it refuses a model that is insulated")
    demand(f(*case((1, 1, 1), (1, 1, 1))) is False, "it accepts a model without any stop-gradient")
    demand(f(*case((0, 0, 1), (1, 1, 1))) is False, "it accepts a leak into one parameter only: look at all of them")
    demand(f(*case((0, 0, 0), (1, 0, 1))) is False, "it accepts a VLM that is starved: the cross-entropy no longer reaches one of its "
           "parameters. The lazy test (half of the test)")
    demand(f(*case((0, 0, 0), (0, 0, 0))) is False, "it accepts no_grad around the VLM: nothing reaches it at all")
    demand(f(*case((1, 1, 1), (1, 1, 1), zeros=True)) is True, "a gradient of zeros is no leak")
    demand(f(*case((0, 0, 0), (1, 1, 1), expert_sees=False)) is False, "it accepts an expert that learns nothing: is the flow loss on?")


@exercise("07.2", "open_gates", probe.open_gates)
def check_open_gates(f):
    def gates():
        return [torch.nn.Parameter(torch.zeros(400)), torch.nn.Parameter(torch.zeros(7, 50))]
    one, two, other = gates(), gates(), gates()
    f(one, 0), f(two, 0), f(other, 1)
    demand(any(bool(g.any()) for g in one), "the gates are still closed: 0 times a random number is 0")
    demand(all(float((g != 0).double().mean()) > .99 for g in one), "some gates are still closed")
    demand(all(g.is_leaf and g.requires_grad for g in one), "autograd noticed: fill them in place, under torch.no_grad()")
    demand(all(torch.equal(a, b) for a, b in zip(one, two, strict=True)), "the same seed must give the same gates")
    demand(not torch.equal(one[0], other[0]), "another seed must give other gates")
    demand(not torch.equal(one[0][:100], one[1].flatten()[:100]), "the second gate repeats the first: one generator for all")
    demand(abs(float(one[0].detach().std()) - .5) < .06, f"standard deviation {float(one[0].detach().std()):.2f}; wanted .5")


@exercise("08.1", "cross_entropy", model.VLA.losses)
def check_cross_entropy(f):
    logits, answer = random(3, 6, 11), torch.randint(1, 11, (3, 6), generator=torch.Generator().manual_seed(0))
    answer[0, 2:], answer[1, 5:] = 0, 0
    got = f(logits.clone(), answer.clone(), 0)
    demand(got.ndim == 0, f"shape {tuple(got.shape)}; wanted a scalar")
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), answer, reduction="none")
    real = answer != 0
    demand(not torch.isclose(got, (each * real).mean()), "divided by all places, padding included: the loss depends on how much padding "
           "there is")
    demand(not torch.isclose(got, each.mean()), "padding is predicted as if it were a word")
    rows = (each * real).sum(1) / real.sum(1)
    demand(not torch.isclose(got, rows.mean()), "the mean of each sample's mean: a short answer's tokens weigh more; the mean is over all "
           "real tokens of the batch")
    like(got, (each * real).sum() / real.sum(), "the loss")
    wide = torch.nn.functional.pad(answer, (0, 4)), torch.cat((logits, random(3, 4, 11, seed=1)), 1)
    like(f(wide[1], wide[0], 0), got, "with more padding the loss")


@exercise("08.2", "clip", torch.nn.utils.clip_grad_norm_)
def check_clip(f):
    def part(size, seed):
        out = []
        for i in range(2):
            p = torch.nn.Parameter(torch.zeros(5))
            p.grad = random(5, seed=seed + i) * size
            out.append(p)
        return out

    def norm(parameters):
        return float(torch.cat([p.grad for p in parameters]).norm())
    vlm, own = part(.05, 0), part(100., 5)
    before, direction = (norm(vlm), norm(own)), own[0].grad / norm(own)
    got = f(vlm, own, 1.)
    demand(norm(vlm) > .99 * before[0], "the expert's large gradient shrank the VLM's small one: one norm over both. Clip each part alone")
    demand(abs(norm(own) - 1) < 1e-3, f"the expert's norm is {norm(own):.3g} after clipping to 1")
    demand(torch.allclose(own[0].grad / norm(own), direction, atol=1e-4), "clipping must keep the direction (a scale, not a clamp)")
    demand(isinstance(got, tuple) and np.allclose([float(x) for x in got], before, rtol=1e-3), f"it returned {got}; wanted the norms from "
           f"before, {before[0]:.3f} and {before[1]:.1f}")


@exercise("09.1", "wilson", evaluate.wilson)
def check_wilson(f):
    low, high = f(10, 10)
    demand(low < .99, "10 of 10 gives an interval of no width: that is the plain normal one, which fails at 0 and 1")
    demand(high <= 1 and f(0, 10)[0] >= 0, "a rate lies within 0 to 1")
    for hits, n in ((0, 10), (3, 10), (10, 10), (200, 400)):
        wanted = evaluate.wilson(hits, n)
        got = f(hits, n)
        demand(np.allclose(got, (wanted["low"], wanted["high"]), atol=2e-4), f"{hits} of {n}: got {got[0]:.4f} to {got[1]:.4f}, wanted "
               f"{wanted['low']} to {wanted['high']}")


@exercise("09.2", "paired_interval", "tutorials.studies.compare:difference")
def check_paired_interval(f):
    generator = torch.Generator().manual_seed(0)
    hard = torch.rand(400, generator=generator)
    theirs = hard < .6
    ours = theirs | ((hard < .68) & (torch.rand(400, generator=generator) < .9))          # wins the same scenes, and some more
    low, high = (float(x) for x in f(ours, theirs, 1000, 0))
    d = ours.double() - theirs.double()
    middle, half = float(d.mean()), 1.96 * float(d.std()) / 20
    demand(not (low < -middle < high), "the sign: ours minus theirs")
    demand(high - low < 3 * half, f"the interval is {high - low:.3f} wide where the paired one is {2 * half:.3f}: scenes were drawn for each "
           "arm on its own. One index for both")
    demand(high - low > half, f"the interval is {high - low:.3f} wide where it should be about {2 * half:.3f}: are these quantiles of resampled "
           "*means*, at 2.5 and 97.5 %?")
    demand(abs(low - (middle - half)) < half / 2 and abs(high - (middle + half)) < half / 2, f"got {low:.3f} to {high:.3f}, wanted about "
           f"{middle - half:.3f} to {middle + half:.3f}")
    demand(f(ours, theirs, 1000, 0) == f(ours, theirs, 1000, 0), "the same seed must give the same interval")


@exercise("10.1", "freeze", "nano_ki.train:prepare")
def check_freeze(f):
    def part(seed):
        return [torch.nn.Parameter(random(4, 4, seed=seed)), torch.nn.Parameter(random(4, seed=seed + 1))]
    for gradient in (None, 0.):           # (zero_grad(set_to_none=False) leaves zeros behind)
        vlm, own = part(0), part(5)
        before = [p.detach().clone() for p in vlm], [p.detach().clone() for p in own]
        optimiser = f(vlm, own, .1, .1)
        demand(isinstance(optimiser, torch.optim.AdamW), f"it returned {type(optimiser).__name__}; wanted an AdamW")
        for p in vlm:
            p.grad = None if gradient is None else torch.zeros_like(p)
        for _ in range(3):
            for p in own:
                p.grad = torch.ones_like(p)
            optimiser.step()
        demand(all(torch.equal(p, b) for p, b in zip(vlm, before[0], strict=True)), "the frozen weights moved: weight decay shrinks whatever "
               "the optimiser holds, at a gradient of zero too. Leave them out")
        demand(not any(torch.equal(p, b) for p, b in zip(own, before[1], strict=True)), "the expert does not train")
    decay = {g["weight_decay"] for g in optimiser.param_groups}
    demand(decay == {.1}, f"the expert's weight decay is {decay}; wanted the one that was asked for")


# -- running them -------------------------------------------------------------------------------------


def path_of(number):
    return FOLDER / f"ex_{number.replace('.', '_')}.py"


def obeys(source):
    """Wrong if a file imports more than the standard library and torch."""
    for node in ast.walk(ast.parse(source)):
        names = ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or "."]
                 if isinstance(node, ast.ImportFrom) else [])
        called = isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in ("__import__", "import_module")
        bad = [n for n in names if n.split(".")[0] not in ("torch", *sys.stdlib_module_names) or n.split(".")[0] == "importlib"]
        demand(not bad and not called, f"it imports {bad[0] if bad else 'by a function call'}; the rule is: standard library and torch")


@contextmanager
def limited(seconds):
    """Wrong after so many seconds (where the system has an alarm clock)."""
    def late(*_):
        raise Wrong(f"it takes more than {seconds} seconds: does it ever end?")
    if not hasattr(signal, "SIGALRM"):
        yield
        return
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def answer_key(key):
    """"nano_ki/flow.py, lines 14-23": where the library's own answer stands; "" if it is not ours."""
    if isinstance(key, str):
        name, _, attribute = key.partition(":")
        key = getattr(importlib.import_module(name), attribute)
    if not getattr(key, "__module__", "").startswith(("nano_ki", "tutorials")):
        return f"{key.__module__}.{key.__qualname__}"
    lines, first = inspect.getsourcelines(key)
    return f"{key.__module__.replace('.', '/')}.py, lines {first}-{first + len(lines) - 1}"


def run(number, path=None):
    """{"number", "passed", "says", "seconds"} for the answer in `path` (default: the exercise's own file)."""
    name, key, check = CHECKS[number]
    path, start = Path(path or path_of(number)), time.perf_counter()
    try:
        source = path.read_text()
        obeys(source)
        spec = importlib.util.spec_from_file_location(f"answer_{number.replace('.', '_')}", path)
        module = importlib.util.module_from_spec(spec)
        with limited(SECONDS):
            spec.loader.exec_module(module)
            demand(hasattr(module, name), f"there is no function {name} in it")
            check(getattr(module, name))
        passed, says = True, f"right. The library's own: {answer_key(key)}"
    except Wrong as wrong:
        passed, says = False, str(wrong)
    except NotImplementedError:
        passed, says = False, "not written yet"
    except (OSError, SyntaxError) as error:
        passed, says = False, f"cannot read it: {error}"
    except (Exception, SystemExit) as error:            # the student's bug, whatever it is
        passed, says = False, f"it raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return {"number": number, "passed": passed, "says": says, "seconds": round(time.perf_counter() - start, 2)}


def main():
    parser = program.parser(__doc__)
    parser.add_argument("numbers", nargs="*", help="exercises, such as 04.1")
    parser.add_argument("--all", action="store_true", help="all of them, as a ladder")
    parser.add_argument("--file", help="check this file instead of the exercise's own")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    numbers = list(CHECKS) if args.all else args.numbers
    unknown = [n for n in numbers if n not in CHECKS]
    if unknown or not numbers or args.file and len(numbers) != 1:
        sys.exit(f"error: {'no exercise ' + unknown[0] if unknown else 'name one exercise'}; there are {', '.join(CHECKS)} (or --all)")
    torch.manual_seed(0)
    results = [run(n, args.file) for n in numbers]
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        for r in results:
            title = ast.get_docstring(ast.parse(path_of(r["number"]).read_text())).split("\n")[0].split(". ", 1)[1]
            print(f"{'[x]' if r['passed'] else '[ ]'} {r['number']}  {title}\n         {r['says']}")
        if args.all:
            print(f"{sum(r['passed'] for r in results)} of {len(results)}")
    sys.exit(0 if all(r["passed"] for r in results) else 1)


if __name__ == "__main__":
    program.run(main)
