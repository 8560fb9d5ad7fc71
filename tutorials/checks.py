"""The checks of the exercises: for each, properties that must hold, likely mistakes, and the worked solution to agree with.

A check takes the student's function and raises Wrong, in words for the one who wrote it. Helpers come first. check.py runs the
checks, and watches what an answer does besides.          Read next: check.py
"""
import math

import numpy as np
import torch

from nano_ki import decoder, evaluate, expert, fast, flow, model, probe, program, vit, world
from nano_ki.language import SLOTS
from tutorials.key import KEY

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


def whole(*shape, high, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def tensors(given):
    """All tensors in these arguments, and in their lists and tuples, in order."""
    given = list(given.values()) if isinstance(given, dict) else given
    return ([given] if isinstance(given, torch.Tensor)
            else [x for part in given for x in tensors(part)] if isinstance(given, list | tuple) else [])


def tensor(got, shape, what, kind=None):
    """Wrong if `got` is no tensor of this shape, and of this kind: torch.bool, or a float."""
    demand(isinstance(got, torch.Tensor), f"{what} is a {type(got).__name__}; wanted a tensor")
    demand(tuple(got.shape) == tuple(shape), f"{what} has shape {tuple(got.shape)}; wanted {tuple(shape)}")
    demand(kind is None or got.dtype == kind, f"{what} is {got.dtype}; wanted {kind}")
    return got


def same(got, wanted, atol=1e-5):
    return got.shape == wanted.shape and (torch.equal(got, wanted) if wanted.dtype == torch.bool
                                          else torch.allclose(got.double(), wanted.double(), rtol=atol, atol=atol))


def like(got, wanted, what, atol=1e-5, why="", mistakes=()):
    """Wrong if `got` is no tensor of the shape, kind (bool, float64, or another) and values of `wanted`. Says which of the
    `mistakes` was made, [(what to say, what it makes)], or where the two part first."""
    tensor(got, wanted.shape, what, wanted.dtype if wanted.dtype in (torch.bool, torch.double) else None)
    if not same(got, wanted, atol):
        for words, made in mistakes:
            demand(not same(got, made, 1e-4), words)
        off = (got != wanted) if wanted.dtype == torch.bool else ~torch.isclose(got.double(), wanted.double(), rtol=atol, atol=atol)
        at = tuple(off.nonzero()[0].tolist())
        its, right = got[at].item(), wanted[at].item()
        digits = 12 if f"{its:.4g}" == f"{right:.4g}" else 4
        demand(False, f"{what}{f': at {list(at)} it' * bool(at)} is {its:.{digits}g}; wanted {right:.{digits}g}{why}")


def raised(call):
    """The error that call() raises, or None."""
    try:
        call()
    except Exception as error:
        return error
    return None


def kinds_stay(f, given, what):
    """Wrong if of float32, float64 or bfloat16 tensors f makes one of another kind. (Not every function knows bfloat16: it may raise.)"""
    for kind in (torch.float, torch.double, torch.bfloat16):
        try:
            got = f(*(x.to(kind) for x in given))
        except (RuntimeError, TypeError):
            if kind is torch.bfloat16:
                continue
            raise
        tensor(got, given[0].shape, f"{what} of {str(kind).removeprefix('torch.')} tensors", kind)


def reference(number):
    """The worked solution, as a function."""
    space = {"math": math, "torch": torch, "F": torch.nn.functional}
    exec(KEY[number].solution, space)
    return space[CHECKS[number][0]]


def each(change, given):
    """These arguments with `change` done to all tensors in them."""
    return [change(x) if isinstance(x, torch.Tensor) and x.ndim
            else type(x)(each(change, x)) if isinstance(x, list | tuple) else x for x in given]


LOOKS = {           # the same values, otherwise in memory
    "": torch.clone, " as part of a larger tensor": lambda x: torch.nn.functional.pad(x, (0, 1) * x.ndim)[tuple(map(slice, x.shape))],
    " after a transpose": lambda x: x.permute(*range(x.ndim)[::-1]).contiguous().permute(*range(x.ndim)[::-1]),
}


def told(x):
    """An argument in a few words: a short list of numbers, or a tensor's shape. "" for a function."""
    if isinstance(x, torch.Tensor):
        return str(x.tolist()) if x.ndim < 2 and x.numel() < 8 else f"shape {[*x.shape]}"
    return f"({', '.join(map(told, x))})" if isinstance(x, tuple) else str(x) if isinstance(x, int | float) else ""


def agree(f, number, cases, atol=1e-5):
    """Wrong if f and the worked solution part on any of these arguments: in each of LOOKS, and again: with the same
    numbers, or after the values were moved about in the same tensors."""
    right = reference(number)
    for case in cases:
        sizes = ", ".join(filter(None, map(told, case)))
        looks, turns = ((LOOKS, ("", ", with other values than the call before")) if tensors(case)
                        else ({"": torch.clone}, ("", ", called a second time,")))
        for look, change in looks.items():
            given, last = each(change, case), None
            for again in turns:
                what, wanted = f"for {sizes}{look}{again} the result", right(*given)
                try:
                    got = f(*given)
                except (Wrong, NotImplementedError):
                    raise
                except Exception as error:
                    raise Wrong(f"{what}: it raises {type(error).__name__} ({program.first_line(error)[:80]})") from None
                if isinstance(wanted, torch.Tensor):
                    like(got, wanted, what, atol)
                    tensor(got, wanted.shape, what, wanted.dtype)
                    demand(tensors(case) or last is None or got.data_ptr() != last.data_ptr(),
                           f"{what} is the tensor that the call before returned: whoever changes the one changes the other. "
                           "Make a new one in each call")
                    last = got                                       # (held, so that its memory is not given away)
                else:
                    demand(np.allclose(got, wanted, rtol=0, atol=atol), f"{what}: got {got}; wanted {wanted}")
                for x in tensors(given):
                    x.copy_(x.flip(0)) if x.ndim else x.mul_(.9)


# -- the checks ---------------------------------------------------------------------------------------


@exercise("01.1", "min_jerk", world._min_jerk)
def check_min_jerk(f):
    t = torch.linspace(0, 1, 101, dtype=torch.double)
    s = tensor(f(t), t.shape, "the stroke")
    demand(abs(float(s[0])) < 1e-6 and abs(float(s[-1]) - 1) < 1e-6,
           f"it runs from {float(s[0]):.3g} at t = 0 to {float(s[-1]):.3g} at t = 1; wanted 0 to 1")
    speed = torch.diff(s) * 100
    demand(max(abs(speed[0]), abs(speed[-1])) < .05, "it starts or ends with speed: that jerks (t itself, or a ramp?)")
    demand(max(abs(torch.diff(speed)[[0, -1]]) * 100) < 1.5, "it starts or ends with acceleration: t^2 (3 - 2 t) has speed 0 at "
           "the ends, and still jumps in acceleration")
    fine = torch.linspace(0, 1, 10_007, dtype=torch.double)
    for times, got, what, why in ((t, s, "the stroke", ": it is smooth at both ends, but not the polynomial of degree 5"),
                                  (fine, f(fine), "the stroke at 10,007 times", ": it is right at each hundredth, not between them")):
        wanted = torch.from_numpy(world._min_jerk(times.numpy()))
        like(got, wanted, what, why=why)
        like(got, wanted, what, 1e-9, ": nearly. One polynomial for all times, in the precision of t")
    for shape in ((3, 4), (), (1,), (1, 3), (2, 1, 3)):
        more = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
        like(f(more), torch.from_numpy(np.asarray(world._min_jerk(more.numpy()))),
             f"a stroke of shape {shape}", why=": times come in any shape and order")
        kinds_stay(f, (more,), "a stroke")
    agree(f, "01.1", [(whole(*shape, high=1000) / 1000,) for shape in ((), (9,), (3, 4), (2, 1, 3), (5, 5))])


@exercise("01.2", "keep", np.isin)
def check_keep(f):
    for seed, (owner, finished) in enumerate([
            (torch.tensor([0, 0, 1, 2, 2, 2, 5]), torch.tensor([1, 5, 0])), (whole(40, high=9, seed=1), torch.tensor([7, 3, 8])),
            (whole(40, high=20_000, seed=4), whole(9_000, high=20_000, seed=5)),
            (whole(30, high=6, seed=2), torch.tensor([4, 9, 2, 4])), (torch.tensor([3, 3, 1]), torch.tensor([], dtype=torch.long))]):
        wanted = torch.isin(owner, finished)
        got = f(owner, finished)
        demand(not isinstance(got, torch.Tensor) or got.shape == owner.shape or got.shape != finished.shape,
               "one answer for each sample, not for each episode")
        like(got, wanted, f"the mask of case {seed}" if len(finished) else "the mask where no episode succeeded",
             why=f" (owner {owner.tolist()[:8]} ..., finished {finished.tolist()[:8]} ...)",
             mistakes=[("these are the failed ones: upside down", ~wanted),
                       ("only the first finished episode's samples stay: there may be many", owner == finished[:1].sum()),
                       ("`finished` holds numbers of episodes, not how many there are", owner < len(finished))]
                      * bool(len(finished)))
    agree(f, "01.2", [(whole(n, high=high, seed=n), whole(m, high=high, seed=m + 1))
                      for n, m, high in ((0, 3, 9), (7, 7, 9), (1, 1, 2), (40, 40, 60), (30, 12, 2 ** 20))]
          + [(whole(90, high=70), torch.arange(1, 60)), (whole(20, high=9).int(), whole(4, high=9).int()),
             (torch.tensor([5, 2 ** 16 + 5, 2 ** 24 + 1]), torch.tensor([2 ** 16 + 5, 2 ** 24]))])


@exercise("02.1", "prefix_tokens", vit.ViT)
def check_prefix_tokens(f):
    demand(f(48, 8, 7) != 6 + 7, "a picture has rows and columns: count both")
    demand(f(48, 8, 7) != 36, "the words of the prompt are read too")
    demand(f(48, 8, 7) not in (36 * 7, 36 + 49), "the words stand behind the picture's tokens: each is one token more")
    for side, stride, slots in ((48, 8, 7), (96, 8, 7), (64, 16, 7), (48, 4, 3), (8, 8, 1), (48, 8, 12), (224, 14, 9)):
        got, wanted = f(side, stride, slots), (side // stride) ** 2 + slots
        demand(type(got) is int, f"it returned {got!r}, a {type(got).__name__}; wanted an int")
        demand(got == wanted, f"a {side} x {side} picture with stride {stride} and {slots} words: got {got}, wanted {wanted}")
    vlm = decoder.VLM(32, 1, 1, 48, 10, SLOTS, 2)
    length = vlm.prefix(torch.zeros(1, 48, 48, 3, dtype=torch.uint8), torch.zeros(1, SLOTS, dtype=torch.long)).shape[1]
    demand(f(48, vit.STRIDE, SLOTS) == length, f"the library's VLM reads {length}")
    agree(f, "02.1", [(n * stride, stride, slots) for n in (1, 3, 8, 17, 64) for stride in (1, 2, 5, 8, 32) for slots in (0, 1, 2, 7, 40)]
          + [(n * stride, stride, 7) for n in range(1, 7) for stride in range(1, 200)] + [(4097, 1, 7)])


@exercise("02.2", "token_shift", decoder.VLM.prefix)
def check_token_shift(f):
    for shape in ((2, 5, 3), (4, 7, 4), (3, 3, 3), (1, 4, 2), (7, 2, 3), (2, 1, 3)):
        words = random(*shape).requires_grad_()
        got = tensor(f(words.clone()), shape, "the result")
        before, after = torch.zeros(2, *shape).unbind(0)
        before[:, 1:], after[:, :-1] = words[:, :-1].detach(), words[:, 1:].detach()
        pad = torch.nn.functional.pad
        wrap = "the first slot hears the last word: nothing comes before it"
        other, axis, lost = ("that is the word *after*: shift the other way",
                             "you shifted the features; shift the slots (axis 1)",
                             "the word itself is lost: add, do not replace")
        samples = "you shifted the samples; shift the slots (axis 1)"
        kinds_stay(f, (words.detach(),), "the result")
        like(got, words + before, "the shifted words", mistakes=[
            (wrap, words + words.roll(1, 1)), (other, words + after), (other, words + words.roll(-1, 1)), (axis, words + words.roll(1, 2)),
            (axis, words + pad(words[..., :-1], (1, 0))), (lost, before), (lost, words.roll(1, 1)),
            ("the first slot hears itself: nothing comes before it", words + torch.cat((words[:, :1], words[:, :-1]), 1)),
            (samples, words + pad(words[:-1], (0, 0, 0, 0, 1, 0))), (samples, words + words.roll(1, 0)),
            ("each slot hears *all* words before it: a running sum. Add the words as they were", words.cumsum(1)),
            ("that is a mean; wanted the sum", (words + before) / 2)])
        weight, later = random(*shape, seed=1), torch.zeros(shape)
        later[:, :-1] = weight[:, 1:]
        learns = torch.autograd.grad((got * weight).sum(), words, allow_unused=True)[0] if got.requires_grad else None
        learns = torch.zeros(shape) if learns is None else learns
        demand(bool(learns.any(-1).all()), "no gradient comes back to some of the words: they would not be learned")
        demand(same(learns, weight + later, 1e-3), "the values are right, but the gradient is not: each word is read "
               "in two slots, and learns from both")
    for kind, atol in ((torch.float, 1e-5), (torch.double, 1e-9)):
        agree(f, "02.2", [(random(*shape).to(kind),) for shape in ((2, 5, 3), (1, 1, 1), (6, 40, 5), (2, 4, 1))], atol)


@exercise("03.1", "dct_matrix", fast.dct_matrix)
def check_dct_matrix(f):
    for horizon in (7, 4, 16, 1, 200):
        c = tensor(f(horizon), (horizon, horizon), "the matrix", torch.double)
        wanted = torch.from_numpy(fast.dct_matrix(horizon))
        k, n = torch.arange(horizon, dtype=torch.double)[:, None], torch.arange(horizon, dtype=torch.double)
        demand(horizon > 1 or same(c, wanted, 1e-9), f"for horizon 1 it is {c.tolist()}; wanted [[1.0]]")
        demand(horizon < 200 or same(c, wanted, 1e-4),
               "for horizons up to 16 it is right, for 200 it is not: is a number too large for its kind?")
        if not same(c, wanted, 1e-9):
            size, plain = (2 / horizon) ** .5, torch.cos(np.pi * k * (n + .5) / horizon)
            for words, made in (("rows and columns are swapped: rows are frequencies", wanted.T),
                                ("n runs backwards: column 0 is n = 0", wanted.flip(1)),
                                ("that is a sine", size * torch.sin(np.pi * k * (n + .5) / horizon)),
                                ("all rows have the factor of row 0: the others have sqrt(2 / H)", size * plain * .5 ** .5),
                                ("the factor sqrt(2 / H) is missing", plain),
                                ("pi is not 3.14: take math.pi",
                                 torch.cat((c.new_full((1, horizon), .5 ** .5),
                                            torch.cos(3.14 * k[1:] * (n + .5) / horizon))) * size),
                                ("row 0 needs its factor 1 / sqrt(2): without it the matrix is not orthonormal", size * plain)):
                demand(not same(c, made, 1e-9), words)
            demand(not same(c, wanted, 1e-4),
                   f"it is nearly right, off by up to {float((c - wanted).abs().max()):.0e}: "
                   "compute all of it in float64, and with torch.pi")
            demand(not (same(c[:1], wanted[:1])
                        and abs(float(c[1:].norm() - wanted[1:].norm())) < .2 * float(wanted[1:].norm())),
                   "row 0 is right, the others are not: is it n + 1/2, and pi k (n + 1/2) / H?")
            demand(same(c @ c.T, torch.eye(horizon, dtype=torch.double)),
                   f"for horizon {horizon} it is not orthonormal: C @ C.T should be 1")
        like(c, wanted, "the matrix", 1e-9)
    agree(f, "03.1", [(horizon,) for horizon in (2, 3, 5, 31, 63, 257, 300, 520)], 1e-9)


@exercise("03.2", "allowed", fast.FAST.allowed)
def check_allowed(f):
    generator = torch.Generator().manual_seed(0)
    for lengths, size in ((torch.tensor([1, 1, 2, 3, 5]), 6), (torch.tensor([4, 1, 2, 1]), 9), (torch.tensor([2, 3]), 7),
                          (torch.tensor([3, 1, 6, 2, 1]), 6), (whole(12, high=200, seed=1) + 1, 300)):
        for used in range(size + 1):
            got = tensor(f(lengths, used, size), (len(lengths) + 1,), "the mask, one for each token and one for stop,", torch.bool)
            wanted = torch.cat((lengths <= size - used, torch.tensor([used == size])))
            demand(same(got, wanted) or not same(got.roll(-1), wanted), "stop comes last, behind the tokens")
            demand(bool(got[-1]) == (used == size),
                   f"after {used} of {size} coefficients stop is {'allowed' if got[-1] else 'not allowed'}: "
                   "it must be, exactly when all are there")
            demand(not bool((got[:-1] & (lengths > size - used)).any()),
                   "a token that stands for more than what is left overruns the chunk")
            demand(not bool((~got[:-1] & (lengths == size - used)).any()), "a token that just fills the chunk must be allowed")
            like(got, wanted, f"after {used} of {size} coefficients a token that leaves room for more is not allowed: the mask")
        while min(lengths) == 1 and not bool(f(lengths, used := 0, size)[-1]):                    # whatever is drawn, decodes
            while not bool(f(lengths, used, size)[-1]):
                used += int(lengths[torch.multinomial(f(lengths, used, size)[:-1].float(), 1, generator=generator)])
            demand(used == size, "a sequence drawn under your mask does not decode")
            break
    agree(f, "03.2", [(1 + whole(count, high=high, seed=count), used, size) for count in (1, 2, 30, 400)
                      for high, size in ((3, 1), (9, 20), (500, 700), (9, 48), (20, 64), (12, 350))
                      for used in (0, 1, size // 2, max(0, size - 3), size - 1, size)])


@exercise("04.1", "sample_time", flow.sample_time)
def check_sample_time(f):
    u = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    t = tensor(f(u), u.shape, "the times")
    demand(float(t.min()) >= 0 and float(t.max()) <= 1, f"times must lie within 0 to 1; got {float(t.min()):.3g} to {float(t.max()):.3g}")
    own = ": each time must follow from its own u, and from nothing else (is u used?)"
    like(f(u.flip(0)), t.flip(0), "the times of u in another order", 1e-6, own)
    for some in (slice(0, 5), slice(7, 8), slice(100, 101), slice(0, 2), slice(40, 3000)):
        like(f(u[some]), t[some], f"the times of {len(u[some])} of these u alone", 1e-6, own)
    turned = u[:12].view(3, 4).T
    like(f(turned), t[:12].view(3, 4).T, "the times after a transpose", 1e-6, own)
    ends = f(torch.tensor([0., 1e-30, 1 - 2 ** -24, 1.]))
    demand(bool(ends.isfinite().all()) and float(ends.min()) >= -1e-6 and float(ends.max()) <= 1,
           f"for u = 0, 1e-30 and up to 1 it makes {ends.tolist()}: all must lie within 0 to 1")
    kinds_stay(f, (u[:12].view(3, 4),), "the times")
    level = (1 - t).double()

    def is_like(share):                   # of noise levels below .25, .5, .75
        return all(abs(float((level < x).double().mean()) - share(x)) < .008 for x in (.25, .5, .75))
    demand(not (is_like(lambda x: 1 - (1 - x) ** 1.5) and float(t.max()) > .9995),
           "time runs the other way: t = 0 is the noise, so t is 1 minus the noise level")
    demand(not is_like(lambda x: 1 - (1 - x) ** 1.5), "the noise levels are those of Beta(1, 1.5): the two parameters are swapped")
    demand(not is_like(lambda x: x ** (1 / 1.5)),
           "you took the power 1.5. Beta(1.5, 1) has the distribution function b^1.5: what must be done to u?")
    demand(not is_like(lambda x: x), "the mean noise level is .5: uniform, it does not lean")
    mean = float(level.mean())
    demand(abs(mean - .6) < .004,
           f"the mean noise level is {mean:.3f}; wanted .600 (.558 is a known bug of public code: b is not Beta(1.5, 1))")
    demand(is_like(lambda x: x ** 1.5),
           f"{float((level < .5).double().mean()):.3f} of the noise levels are below .5; Beta(1.5, 1) has {.5 ** 1.5:.3f}")
    demand(float(level.min()) >= .001 - 1e-6, "the noise level must not go below .001")
    # Sorted: any map that keeps u uniform may come first.
    grid = (torch.arange(20_000) + .5) / 20_000
    levels, wanted = (1 - f(grid)).sort()[0], .999 * grid ** (2 / 3) + .001
    least = float(levels[0])
    demand(least < .003, f"the noise level never goes below {least:.3f}: it starts at .001")
    off = (levels - wanted)[60:].abs()
    at = 60 + int(off.argmax())
    demand(float(off.max()) < 3e-4, f"the noise level is .999 b + .001, with b = u to the power 1 / 1.5, or 1 - u to it, and nothing more: "
           f"where it should be {float(wanted[at]):.4f} it is {float(levels[at]):.4f}")
    # Whatever keeps u uniform keeps these in place, to one of 100,000.
    grid = (torch.arange(100_000, dtype=torch.double) + .5) / 100_000
    uniform = ((.999 - f(grid).sort(descending=True)[0]) / .999).clamp(min=0) ** 1.5
    demand(float((uniform - grid).abs().max()) < 1.3e-5, "nearly: the exponent is 2 / 3, and nothing is rounded")


@exercise("04.2", "path", flow.path)
def check_path(f):
    action, noise = random(4, 16, 3), random(4, 16, 3, seed=1)
    t = torch.tensor([0., .25, .5, 1.])
    try:
        got = f(action, noise, t)
    except NotImplementedError:
        raise
    except RuntimeError as error:
        if "must match the size" not in str(error):
            raise
        raise Wrong(f"t has one number for each chunk, {tuple(t.shape)}, and must be multiplied with {tuple(action.shape)}: "
                    f"it lacks two axes ({str(error)[:60]} ...)") from None
    demand(not isinstance(got, torch.Tensor) or got.shape == action.shape,
           f"shape {tuple(getattr(got, 'shape', ()))}; wanted {tuple(action.shape)}: t needs two axes more")
    wide = t[:, None, None]
    like(got, flow.path(action, noise, t), "x_t", mistakes=[
        ("time runs the other way: at t = 0 there is noise", (1 - wide) * action + wide * noise),
        ("that is the velocity, which does not depend on t", action - noise),
        ("the noise stays at full strength", noise + wide * action),
        ("that is a curve: the path is straight, its weights add up to 1", (1 - wide ** 2).sqrt() * noise + wide * action)])
    # As many chunks as numbers in an action, or as waypoints: nothing that is too small raises.
    for batch in ((2, 5), (3,), (16,), (1,), (1, 5), (2, 1)):
        shape = *batch, 16, 3
        more = random(*shape), random(*shape, seed=1), torch.rand(batch, generator=torch.Generator().manual_seed(2))
        try:
            got = f(*more)
        except ValueError as error:
            raise Wrong(f"it refuses times {[*batch]} for chunks {[*shape]}, which fit: one time for each chunk ({error})") from None
        like(got, flow.path(*more), f"x_t of {[*shape]} chunks",
             why=": there the times fit the last axes, too, and must not be spread over them" * (len(batch) == 1))
    one = random(16, 3), random(16, 3, seed=1), torch.tensor(.3)
    kinds_stay(f, (action, noise, t), "x_t")
    like(f(*one), flow.path(*one), "x_t of one chunk [H, A], at a t without axes,")
    for batch, shape, why in (((3,), (3, 3), "broadcasts over waypoints without a word"),
                              ((3,), (1,), "would give all chunks one time"), ((3,), (3, 1, 1), "has its two axes already"),
                              ((3,), (), "would give all chunks one time"),
                              ((), (1,), "is not one time for one chunk"),
                              ((), (3,), "broadcasts over waypoints without a word"),
                              *(((2, 5), shape, "is not one time for each chunk")
                                for shape in ((5,), (2,), (2, 1), (1, 5), (5, 2), (10,), (), (1,),
                                              (2, 5, 1), (2, 5, 1, 1), (2, 5, 3, 1), (2, 5, 3, 3)))):
        error = raised(lambda batch=batch, shape=shape: f(random(*batch, 3, 3), random(*batch, 3, 3), torch.rand(shape)))
        demand(isinstance(error, ValueError), f"actions {[*batch, 3, 3]} with times {list(shape)}: "
               f"that must raise ValueError; it {f'raises {type(error).__name__}' if error else why}")
    agree(f, "04.2", [(random(*batch, 16, 3), random(*batch, 16, 3, seed=1), whole(*batch, high=1000, seed=2) / 1000)
                      for batch in ((), (4,), (1,), (2, 3), (1, 1), (2, 1, 3))])


@exercise("04.3", "euler", flow.euler)
def check_euler(f):
    for shape, steps in (((2, 4, 3), 10), ((2, 5, 4, 3), 4), ((1, 4, 3), 1), ((4, 3), 5), ((3, 4, 3), 7)):
        noise, action, asked = random(*shape), random(*shape, seed=1), []
        straight = action - noise

        def field(x, t, straight=straight, asked=asked):
            demand(not isinstance(t, torch.Tensor) or t.shape != straight.shape or x.shape == t.shape,
                   "velocity was asked with t in front: wanted velocity(x, t)")
            demand(isinstance(t, torch.Tensor) and t.shape == x.shape[:-2], f"velocity was asked with t of shape "
                   f"{tuple(getattr(t, 'shape', ()))}; wanted {tuple(x.shape[:-2])}")
            demand(bool((t == t.flatten()[0]).all()), "at one step velocity was asked at different t: "
                   f"{sorted({round(float(x), 4) for x in t.flatten()})[:4]}; all chunks make the step together")
            asked.append(float(t.flatten()[0]))
            return straight
        got = f(field, noise, steps)
        demand(torch.equal(straight, action - noise), "it changes the tensor that velocity returned: that is not yours")
        demand(len(asked) == steps, f"velocity was asked {len(asked)} times in {steps} steps; wanted {steps}")
        demand(asked[0] == 0, f"the first question was at t = {asked[0]}; wanted 0 (the start of the step)")
        demand(np.allclose(asked, np.arange(steps) / steps, atol=1e-5), "velocity was asked at "
               f"{[round(x, 4) for x in asked[:5]]}; wanted {[round(i / steps, 4) for i in range(steps)][:5]}")
        like(got, action, "on the true field, where it ends,", 1e-4, mistakes=[
            ("you went backwards: t = 1 is the action, and the field points there", 2 * noise - action),
            ("each step went all the way: a step is 1 / steps long", noise + steps * (action - noise)), ("you stayed at the noise", noise)])

    def bent(x, t):
        return (1 + t[..., None, None].to(x.dtype)) * x
    noise = 30 * random(2, 4, 3)
    kinds_stay(lambda noise: f(bent, noise, 3), (noise,), "the result")
    like(f(bent, noise, 7), flow.euler(bent, noise, torch.linspace(0, 1, 8)), "on a field that bends, where it ends,", 1e-3)

    def late(x, t):                       # (0 at t = 0)
        return t[..., None, None].to(x.dtype).expand(x.shape)
    agree(f, "04.3", [(field, random(*shape), steps) for field in (bent, late)
                      for shape, steps in (((2, 4, 3), 10), ((4, 3), 3), ((1, 3, 4, 3), 7),
                                           ((2, 2), 49), ((2, 2), 98), ((2, 2), 103))], 1e-4)


@exercise("05.1", "prefix_mask", decoder.prefix_mask)
def check_prefix_mask(f):
    for prefix, answer in ((3, 5), (5, 1), (1, 6), (4, 0), (6, 3), (250, 10), (600, 10), (10, 2110)):
        length = prefix + answer
        got = tensor(f(prefix, answer), (length, length), "the mask", torch.bool)
        wanted = decoder.prefix_mask(prefix, answer)
        if not same(got, wanted):
            for words, made in (("rows and columns are swapped: the row's token sees the column's", wanted.T),
                                ("True means that it sees: yours is upside down", ~wanted),
                                ("prefix and answer are swapped", decoder.prefix_mask(answer, prefix)),
                                ("the prefix comes first, then the answer", wanted.flip(0, 1)),
                                ("the prefix must be read both ways: it is causal", wanted & ~(torch.ones_like(wanted).triu(1)))):
                demand(answer == 0 or not same(got, made), words)
        demand(answer or same(got, wanted), "without any answer (answer = 0) the prefix must still see all of itself")
        demand(not bool(got[:prefix, prefix:].any()), "the prefix sees the answer: it would leak into what the expert reads")
        demand(not bool(got[prefix:, prefix:].triu(1).any()), "an answer's token sees a later one: its cross-entropy becomes a copy task")
        demand(bool(got.diagonal().all()), "a token does not see itself")
        demand(bool(got[:prefix, :prefix].all()), "the prefix must be read both ways: not all of its tokens see all of them")
        demand(bool(got[prefix:, :prefix].all()), "the answer must see the whole prefix")
        like(got, wanted, "the mask", why=": the answer must see all of itself that came before")
    agree(f, "05.1", [(5, 3), (2, 6), (3, 6), (8, 0), (1, 1), (0, 1), (0, 5)])


@exercise("05.2", "draw_mask", expert.draw_mask)
def check_draw_mask(f):
    for prefix, draws, horizon in ((5, 3, 2), (4, 2, 5), (3, 1, 4), (5, 2, 3), (2, 6, 2)):
        size = draws * horizon
        got = tensor(f(prefix, draws, horizon), (size, prefix + size), "the mask", torch.bool)
        wanted = expert.draw_mask(prefix, draws, horizon)
        demand(not same(got, ~wanted), "True means that it sees: yours is upside down")
        demand(draws == 1 or not same(got, wanted.roll(-prefix, 1)), "the memory's columns come first")
        demand(bool(got[:, :prefix].all()), "every action token must see the whole memory")
        own = got[:, prefix:]
        demand(draws == 1 or not bool(own.all()), "draws see each other: each must behave as if it were alone")
        every = torch.arange(size)
        demand(draws == 1 or not any(same(own, every[:, None] % k == every % k) for k in (horizon, draws)),
               "the tokens lie draw by draw: all of the first, then all of the second. "
               "You took every second (third ...) token for a draw")
        demand(not same(own, wanted[:, prefix:].tril()), "the tokens of one draw must see each other, both ways (no causal mask)")
        demand(not same(own, torch.eye(size, dtype=torch.bool)), "a token sees none of its own draw but itself")
        like(got, wanted, f"the mask of {draws} draws of {horizon} tokens, behind a prefix of {prefix}",
             why=": each draw is a block of as many tokens as the horizon, which see each other and no other draw")
    agree(f, "05.2", [(4, draws, horizon) for draws in (1, 2, 3, 7, 13) for horizon in (1, 3, 7, 11, 29, 41)]
          + [(1, 17, 16), (45, 8, 8), (3, 300, 2), (3, 2, 300), (0, 3, 2), (0, 1, 5)])


@exercise("06.1", "memory_for_expert", model.VLA.memory_for_expert)
def check_memory_for_expert(f):
    def case(insulate, layers, turn):
        leaves = [random(2, 2, 5, 4, seed=9 * turn + i).to(torch.double if layers == 5 else torch.float).requires_grad_()
                  for i in range(2 * layers)]
        memory = [(leaves[i] * 1., leaves[i + 1] * 1.) for i in range(0, 2 * layers, 2)]
        before = [x.detach().clone() for kv in memory for x in kv]
        got = f(memory, insulate)
        demand(torch.is_grad_enabled(), "gradients are switched off, and not on again: use `with torch.no_grad():`, or detach")
        demand(isinstance(got, list | tuple) and len(got) == layers
               and all(isinstance(kv, list | tuple) and len(kv) == 2 for kv in got),
               "wanted a list with one (k, v) for each layer")
        flat, own = ([x for kv in some for x in kv] for some in (got, memory))
        demand(all(same(a, b, 1e-7) and a.dtype == b.dtype for a, b in zip(flat, before, strict=True)),
               "the values must stay the same, and their kind")
        return leaves, flat, own

    def reach(values, leaves):
        """For each leaf: the gradient of the sum of these values, or None."""
        total = sum(x.sum() for x in values)
        return torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True) if total.requires_grad else [None] * len(leaves)
    for turn, (insulate, layers) in enumerate(((False, 3), (True, 3), (True, 3), (False, 5), (True, 1), (True, 5), (False, 3), (False, 3))):
        leaves, flat, own = case(insulate, layers, turn)
        learner = torch.ones((), requires_grad=True)          # (the expert's weights must get a gradient from what they read)
        demand(not raised(lambda flat=flat, learner=learner: sum((x * learner).sum() for x in flat).backward(retain_graph=True)),
               "what comes back cannot be read by an expert that trains: autograd refuses it (inference_mode?)")
        for leaf in leaves:
            leaf.grad = None
        mine = reach(own, leaves)
        demand(all(g is None or bool((g == 1).all()) for g in mine),
               "the gradient of the VLM's own memory is changed; only what the expert reads may be")
        found = [g is not None for g in reach(flat, leaves)]
        zeros = insulate and any(found) and not any(g is not None and bool(g.any()) for g in reach(flat, leaves))
        demand(not zeros, "gradients of zeros come back: the way to the VLM is still there (page 10 says what an optimiser "
               "does with them). detach alone cuts it")
        demand(all(g is not None for g in mine), "the VLM's own memory lost its gradient: detach makes a new tensor; "
               "detach_() changes the old one, which the cross-entropy needs")
        if not insulate:
            demand(all(found), "without insulation all gradients must pass")
            demand(all(bool((g == 1).all()) for g in reach(flat, leaves)), "without insulation gradients must pass as they are")
        else:
            demand(not all(found), "with insulation gradients still come back through all of it: there must be none, not even a tiny one")
            demand(not all(found[1::2]) or any(found[::2]), "a gradient comes back through V: what is read, not only where")
            demand(not all(found[::2]) or any(found[1::2]), "a gradient comes back through K: where is looked, not only what is read")
            demand(not any(found),
                   f"a gradient comes back in layer {found.index(True) // 2 if any(found) else ''}: every layer must be stopped")
    for name, learns in (("K", 0), ("V", 1)):             # of a VLM that is frozen in part
        kv = [torch.ones(1, 1, 2, 3, requires_grad=k == learns) for k in range(2)]
        read = f([tuple(kv)], True)[0]
        sum((x * torch.ones((), requires_grad=True)).sum() for x in read).backward()
        demand(kv[learns].grad is None, f"where {name} alone requires a gradient, one comes back through it")


@exercise("06.2", "expert_attention", expert.ExpertBlock.forward)
def check_expert_attention(f):
    for batch, heads, own, read, size in ((2, 3, 5, 7, 8), (1, 2, 5, 3, 32), (3, 1, 2, 9, 4), (2, 2, 4, 4, 8)):
        # As in the library: heads were split off by a transpose.
        leaves = [vit.norm(random(batch, tokens, heads, size, seed=i)).transpose(1, 2).requires_grad_()
                  for i, tokens in enumerate((own, own, own, read, read))]
        q, k, v, *memory = leaves
        memory = tuple(memory)
        got = tensor(f(q, k, v, memory), q.shape, "the result")
        keys, values = torch.cat((memory[0], k), 2), torch.cat((memory[1], v), 2)

        def at(scale, q=q, keys=keys, values=values):
            return (q @ keys.mT * scale).softmax(-1) @ values
        two = sum((q @ a.mT * 10 / size).softmax(-1) @ b for a, b in (memory, (k, v)))
        hidden, one = (torch.ones(own, read + own, dtype=torch.bool).tril(read),
                       "that is two softmaxes: memory and own tokens must compete in one")
        like(got, at(10 / size), "what comes out", 1e-4, mistakes=[
            ("the scale is 1 / sqrt(K): here q and k are normalised, and it is 10 / K", at(size ** -.5)),
            ("the logits are not scaled: by 10 / K", at(1)),
            ("the scale is 10 / sqrt(K); wanted 10 / K", at(10 * size ** -.5)), ("the scale is 1 / K; wanted 10 / K", at(1 / size)),
            (one, two), (one, two / 2), ("the action tokens do not see each other", (q @ memory[0].mT * 10 / size).softmax(-1) @ memory[1]),
            ("the memory is not read", (q @ k.mT * 10 / size).softmax(-1) @ v),
            ("keys and values are joined in different orders", (q @ keys.mT * 10 / size).softmax(-1) @ torch.cat((v, memory[1]), 2)),
            ("keys and values are joined in different orders", (q @ torch.cat((k, memory[0]), 2).mT * 10 / size).softmax(-1) @ values),
            ("the scale is 10 / 32: K is the last axis of q, and not always 32", at(10 / 32)),
            ("the softmax runs over the queries; it must run over the keys", (q @ keys.mT * 10 / size).softmax(-2) @ values),
            ("the action tokens see each other causally; they must, both ways",
             (q @ keys.mT * 10 / size).masked_fill(~hidden, -torch.inf).softmax(-1) @ values)])
        learns, wanted = (torch.autograd.grad((x * (x + 1)).sum(), leaves, allow_unused=True, retain_graph=True)
                          if x.requires_grad else [None] * 5 for x in (got, at(10 / size)))
        lost = [name for name, a, b in zip(("q", "k", "v", "the memory's k", "the memory's v"), learns, wanted, strict=True)
                if a is None or not same(a, b, 1e-3)]
        demand(not lost, f"the values are right, but not all gradients come back as they should (to {', '.join(lost)})"
               + ": whether the memory is detached is decided elsewhere (06.1)" * all("memory" in name for name in lost))
    agree(f, "06.2", [(*(vit.norm(random(batch, heads, own, size, seed=i)) for i in range(3)),
                       tuple(vit.norm(random(batch, heads, read, size, seed=5 + i)) for i in range(2)))
                      for batch, heads, own, read, size in ((2, 2, 8, 43, 32), (1, 1, 1, 1, 4), (2, 3, 1, 7, 4),
                                                            (1, 2, 30, 300, 16), (4, 1, 5, 2, 32))], 1e-4)


SHARED = "the two losses of one call may share a graph, and a backward pass frees it: call losses() anew for each"


@exercise("07.1", "insulated", probe.gradient_norms)
def check_insulated(f):
    def case(flow_sees, ce_sees, expert_sees=(1, 1), expert_asked=(0, 0), more=0, cut=(), old=True):
        """For each VLM parameter (flow_sees, ce_sees) and each of the expert (expert_sees, expert_asked) 0: not in the graph,
        1: reached, "zeros": a gradient of zeros, "value": its value alone is used, or a tensor of weights. more: VLM parameters
        besides, which the cross-entropy reaches. cut: losses that require no gradient. old: gradients of a step before are left
        in .grad."""
        vlm, own, other = ([random(3, seed=i).requires_grad_() for i in range(3)],
                           [random(3, seed=8).requires_grad_(), random(2, 3, seed=9).requires_grad_()],
                           torch.ones((), requires_grad=True))
        extra = [random(2, 2, seed=20 + i).requires_grad_() for i in range(more)]
        for p in (*vlm, *extra, *own) if old else ():
            p.grad = torch.ones_like(p)

        def part(p, sees):
            if isinstance(sees, torch.Tensor):
                return (p * sees).sum()
            if sees == "value":
                return p.detach().square().sum() + 0 * other
            return 0 * other if sees == 0 else (p * 0).square().sum() if sees == "zeros" else p.square().sum()

        def losses():
            return {"flow": sum(part(p, s) for p, s in zip((*vlm, *own), (*flow_sees, *expert_sees), strict=True)),
                    "ce": sum(part(p, s) for p, s in zip((*vlm, *extra, *own), (*ce_sees, *[1] * more, *expert_asked),
                                                         strict=True)) + 0 * other,
                    "both": other}
        try:
            got = f(lambda: {name: loss.detach() if name in cut else loss for name, loss in losses().items()}, [*vlm, *extra], own)
        except NotImplementedError:
            raise
        except RuntimeError as error:
            demand("second time" not in str(error), SHARED)
            if cut and "does not require grad" in str(error):            # (that is a refusal, too)
                return False
            raise Wrong(f"it raised RuntimeError: {error}") from None
        demand(all(p.requires_grad for p in (*vlm, *extra, *own)),
               "it leaves weights that no longer require gradients: training would stop there")
        demand(isinstance(got, bool | np.bool_) or isinstance(got, torch.Tensor) and got.ndim == 0,
               f"it returned a {type(got).__name__}; wanted True or False")
        return bool(got)
    def fresh_and_shared(leaks):
        """A new model whose weights have no gradients yet, and one graph for both losses."""
        vlm, own = [torch.ones(3, requires_grad=True)], [torch.ones(3, requires_grad=True)]

        def losses():
            hidden = vlm[0].exp() if leaks else own[0].exp()
            return {"flow": (hidden * own[0]).sum() if leaks else hidden.sum(), "ce": hidden.sum() if leaks else (vlm[0] * hidden).sum()}
        try:
            return bool(f(losses, vlm, own))
        except RuntimeError:
            raise Wrong(SHARED) from None
        except AttributeError as error:
            raise Wrong(f"the weights of a new model have .grad = None, and that must be no error ({str(error)[:60]})") from None
    none, all_, odd = (0, 0, 0), (1, 1, 1), (torch.tensor([1., -1., 0.]), torch.tensor([0., 0., -1e-12]))
    demand(not case(all_, all_), "it accepts a model without any stop-gradient")
    demand(not case(all_, none, expert_asked=(1, 1)), "it takes one loss for the other: flow must not reach the VLM, cross-entropy must")
    demand(not fresh_and_shared(True), "it accepts a leak where both losses come from one graph")
    demand(fresh_and_shared(False), "it refuses a model that is insulated, where both losses come from one graph")
    demand(case(none, all_, old=False), "it refuses a model that is insulated")
    demand(case(none, all_) and case(none, all_, more=2), "it refuses a model that is insulated: "
           "old gradients were left in .grad, or the VLM has parameters more than the expert")
    demand(case(none, all_, (1, 0)) and case(none, all_, (0, 1)),
           "it refuses a model whose flow loss reaches one parameter of the expert: one is enough")
    demand(case(("value",) * 3, all_), "it refuses a model whose flow loss uses *values* of the VLM, detached: "
           "no gradient goes back, and that is what counts")
    demand(not case(none, (1, "value", 1)),
           "it accepts a VLM that is starved: of one parameter the cross-entropy uses the value alone, detached")
    demand(not any(case(tuple(int(i == j) for j in range(3)), all_) for i in range(3)),
           "it accepts a leak into one parameter only: look at all of them")
    demand(not case((0, odd[0], 0), all_), "it accepts a leak whose gradient adds up to 0: ask whether any number of it is not 0")
    demand(not case((0, odd[1], 0), all_) and not case((0, odd[1].flip(0), 0), all_),
           "it accepts a leak that is small, or negative: any is one")
    demand(not any(case(none, tuple(int(i != j) for j in range(3))) for i in range(3)),
           "it accepts a VLM that is starved: the cross-entropy no longer reaches one of its parameters. "
           "The lazy test (half of the test)")
    demand(not case(none, none), "it accepts no_grad around the VLM: nothing reaches it at all")
    demand(case(("zeros",) * 3, all_), "a gradient of zeros is no leak")
    large, own = torch.ones(200, 64, requires_grad=True), torch.ones(3, requires_grad=True)
    demand(not f(lambda: {"ce": large.sum(), "flow": own.sum() + large[-1, -1]}, [large], [own]),
           "it accepts a leak into a few numbers of a large parameter, or takes the losses by their order and not by name")
    demand(not case(none, all_, cut=("ce",)),
           "it accepts a cross-entropy that requires no gradient (no_grad around the whole VLM): it reaches nothing")
    demand(f(lambda: {"ce": large.sum(), "flow": own.sum()}, [large], [own]),
           "it refuses a model that is insulated: take the losses by name, not by their order")
    demand(not case(none, (1, "zeros", 1)), "it accepts a VLM that is starved by zeros: a gradient of zeros teaches nothing")
    demand(not case(none, all_, (0, 0), old=False), "it accepts an expert that learns nothing: is the flow loss on?")
    demand(not case(none, all_, (0, 0)), "it accepts an expert that learns nothing, where .grad still holds a gradient from before: "
           "the expert's old gradients are no news either")
    demand(not case(none, all_, ("zeros", "zeros")), "it accepts an expert whose gradient is all zeros: are the gates closed?")
    demand(case(none, all_, (1, "value")), "it refuses a model whose flow loss reaches one parameter of the expert, "
           "and uses another's value, detached: one is enough")
    demand(all(case(none, (1, w, 1)) and case(none, all_, (w, 0)) for w in odd), "it refuses a model that is insulated: "
           "a gradient that is small, negative, adds up to 0 or is 0 in some places is one, too")
    demand(case(none, all_, (1, 1), (1, 1)), "it refuses a model whose cross-entropy reaches the expert: nothing is said about that")
    demand(not case(none, all_, cut=("flow", "ce", "both")), "it accepts losses that require no gradient: they reach nothing")
    demand(not case(none, all_, (0, 0), (1, 1)), "it accepts an expert that only the cross-entropy reaches: the flow loss must")


@exercise("07.2", "open_gates", probe.open_gates)
def check_open_gates(f):
    def gates():
        return [torch.nn.Parameter(torch.zeros(shape)) for shape in ((60_000,), (70, 50), (2, 30, 40), (1,), (2,))]
    one, two, other = gates(), gates(), gates()
    places = [g.detach() for g in one]                       # the same numbers in memory, as a model that holds them sees them
    f(list(one), 0)
    demand(torch.is_grad_enabled(), "gradients are switched off, and not on again: use `with torch.no_grad():`")
    demand(all(g.requires_grad for g in one), "a gate no longer requires a gradient: leave requires_grad as it is")
    demand(not any(g.is_inference() or g.detach().is_inference() for g in one)
           and not raised(lambda: sum((g * 2).sum() for g in one).backward()),
           "autograd refuses these gates afterwards (inference_mode?): use torch.no_grad()")
    demand(all(bool(g.isfinite().all()) for g in one), "a gate is not finite: one may hold a single number")
    f(list(two), 0), f(list(other), 1)
    demand(any(bool(g.any()) for g in one),
           "the gates are still closed: 0 times a random number is 0, and a new tensor in the list is no gate of the model")
    demand(all(float((g != 0).double().mean()) > .99 for g in one), "some gates are still closed")
    demand(all(map(torch.equal, places, one)), "a gate got a new tensor (.data = ...), and whatever shares its memory still has zeros: "
           "fill it in place")
    demand(all(len(g.detach().unique()) > .97 * g.numel() for g in one), "many numbers of a gate are equal: one for each entry")
    demand(all(g.is_leaf for g in one), "autograd noticed: fill them in place, under torch.no_grad()")
    demand(all(torch.equal(a, b) for a, b in zip(one, two, strict=True)), "the same seed must give the same gates")
    demand(not torch.equal(one[0], other[0]), "another seed must give other gates")
    demand(not any(torch.equal(a.flatten()[:100], b.flatten()[:100]) for k, a in enumerate(one) for b in (*one[:k], *other)),
           "a gate repeats another, of this seed or of the next: one generator for all")
    first, last = [torch.nn.Parameter(torch.zeros(100)), *gates()[1:]], [*gates()[:-1], torch.nn.Parameter(torch.zeros(900))]
    f(list(first), 0), f(list(last), 0)
    demand(not all(map(torch.equal, first[1:], one[1:])) or not all(map(torch.equal, last[:-1], one[:-1])),
           "no gate depends on how much was drawn for the others: one generator for all gates")
    small = []
    for seed in (*range(13), 256, 1000, 65536):
        small.append(torch.nn.Parameter(torch.zeros(2)))
        f([small[-1]], seed)
    pairs = [g.tolist() for g in small]
    demand(len({round(abs(a), 4) for a, _ in pairs}) > 3 and not any(abs(a + b) < 1e-6 for a, b in pairs),
           "gates of two numbers are not normal: they are scaled, or mirrored, to fit")
    demand(len(set(map(tuple, pairs))) == len(small), "two seeds give the same gates: take the seed as it is")
    turned, single = torch.nn.Parameter(torch.zeros(40, 30).T), torch.nn.Parameter(torch.zeros(()))
    error = raised(lambda: f([turned, single], 0))
    demand(not error, f"a gate after a transpose, or one without axes: it raises {type(error).__name__}")
    demand(float((turned != 0).double().mean()) > .99 and bool(single),
           "a gate after a transpose, or one without axes, is still closed: fill the gate, not a copy of it")
    part = torch.zeros(3, 50)
    error = raised(lambda: f([torch.nn.Parameter(part[1])], 0))
    demand(not error and bool((part != 0).all(1)[1]) and not bool(part[[0, 2]].any()),
           "a gate that is a row of a larger tensor must be filled in place, and only it")
    values = torch.cat([g.detach().flatten() for g in one])
    demand(abs(float(values.std()) - .5) < .009, f"standard deviation {float(values.std()):.3f}; wanted .5")
    demand(abs(float(values.mean())) < .012, f"their mean is {float(values.mean()):.3f}; wanted 0")
    demand(all(abs(float((values.abs() < .5 * k).double().mean()) - share) < .025 for k, share in ((1, .683), (2, .954)))
           and int((values.abs() > 1.5).sum()) >= 8,
           "their standard deviation is right, but they are not normal (uniform?)")
    before = [g.detach().clone() for g in one]
    f(list(one), 0)
    demand(all(torch.equal(a, b) for a, b in zip(one, before, strict=True)),
           "called again with the same seed it makes other gates: fill them, do not add to what is there")


@exercise("08.1", "cross_entropy", model.VLA.losses)
def check_cross_entropy(f):
    for pad, sure, batch, words, turned in ((0, False, 3, 11, False), (7, False, 3, 11, True), (0, True, 3, 11, False),
                                            (2, False, 4, 5, True), (1, False, 4, 6, True), (0, "wrong", 3, 11, False)):
        logits, answer = random(batch, 6, words), whole(batch, 6, high=words, seed=3)
        answer[answer == pad] = 4
        answer[0, 2:], answer[1, 5:] = pad, pad
        if sure:                                  # of some tokens, so that their loss is exactly 0
            logits[2, :4].scatter_(-1, (answer[2, :4, None] + (sure == "wrong")) % words, 1e4 if sure is True else 200.)
        if turned:                                # (the first answer has no padding)
            logits, answer = logits.flip(0), answer.flip(0)
        logits.requires_grad_()
        got = tensor(f(logits, answer, pad), (), "the loss")
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), answer, reduction="none")
        real = answer != pad
        rows = (each * real).sum(1) / real.sum(1)
        demand(sure != "wrong" or got.item() > .8 * ((each * real).sum() / real.sum()).item(),
               "a token of which the model is sure, and wrong, costs too little: "
               "softmax and then log, or a limit, cuts its loss off. Take log_softmax")
        like(got, (each * real).sum() / real.sum(), "the loss" if pad == 0 else f"the loss with pad {pad}", mistakes=[
            ("divided by all places, padding included: the loss depends on how much padding there is", (each * real).mean()),
            ("padding is where the id *equals* pad: real ids lie below it and above it",
             (each * (answer > pad)).sum() / (answer > pad).sum()),
            ("padding is predicted as if it were a word", each.mean()), ("that is the sum; wanted the mean", (each * real).sum()),
            ("logits [B, F, V] must become [B, V, F], also where V = F: transpose(1, 2) exchanges the axes" if words == 6 else
             "logits [B, F, V] were brought to [B, V, F] by a reshape, which mixes words and places; transpose(1, 2) exchanges the axes",
             torch.nn.functional.cross_entropy(logits.reshape(batch, words, 6), answer, ignore_index=pad)),
            ("shifted by one: logits j already predict answer token j",
             torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), answer[:, 1:], ignore_index=pad)),
            ("the mean of each sample's mean: a short answer's tokens weigh more; "
             "the mean is over all real tokens of the batch", rows.mean()),
            ("tokens of which the model is sure are left out: count what is no padding, not what has a loss",
             (each * real).sum() / (each * real > 0).sum())])
        learns = torch.autograd.grad(got, logits, allow_unused=True)[0] if got.requires_grad else None
        demand(learns is not None and same(learns, torch.autograd.grad((each * real).sum() / real.sum(), logits)[0]),
               "its value is right, but its gradient is not: nothing could be learned from it")
        wide = torch.nn.functional.pad(answer, (0, 4), value=pad), torch.cat((logits.detach(), random(batch, 4, words, seed=1)), 1)
        like(f(wide[1], wide[0], pad), got, "with more padding the loss")
    agree(f, "08.1", [(random(batch, places, words), torch.cat((1 + whole(batch, places - 1, high=words - 1, seed=places),
                                                                torch.zeros(batch, 1, dtype=torch.long)), 1), 0)
                      for batch, places, words in ((1, 5, 5), (1, 2, 3), (5, 5, 5), (2, 14, 9), (3, 120, 7), (40, 2, 382))]
          + [(random(2, 3, 5), torch.tensor([[1, 2, 0], [0, 0, 0]]), 0)]
          # Many answers, each of a length of its own.
          + [(random(batch, 9, 12), (1 + whole(batch, 9, high=11, seed=5)) * (torch.arange(9) < 1 + whole(batch, 1, high=9, seed=6)), 0)
             for batch in (7, 90, 300)])


@exercise("08.2", "clip", torch.nn.utils.clip_grad_norm_)
def check_clip(f):
    def norm(gradients):
        return float(torch.cat([g.flatten() for g in gradients]).norm())
    for limit, sizes, count in ((1., (.05, 100.), 2), (1., (30., 100.), 2), (1., (30., .05), 2), (.5, (.05, .02), 2),
                                (.5, (30., .02), 3), (2., (1., 300.), 1), (.5, (.6, .45), 2), (2., (1.5, 2.5), 2),
                                (1., (1.5, .8), 2), (1., (1.03, .98), 2), (4., (3.97, 4.06), 3), (1., (.5, 3.), 4),
                                (1., (2e-5, 3.), 2)):
        parts = [[torch.nn.Parameter(random(*((5 - i, 1 + i), (6,), (2, 3, 2), ())[i if count == 4 else i % 2], seed=40 + i))
                  for i in range(count)] for _ in sizes]
        for k, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            raw = [random(*p.shape, seed=5 * k + i) * (1 + 3 * i) for i, p in enumerate(part)]
            for p, g in zip(part, raw, strict=True):
                # A product's gradient may come transposed.
                p.grad = LOOKS[" after a transpose" if count == 3 else ""](g * size / norm(raw))
        before, held = [[p.grad.clone() for p in part] for part in parts], [[p.grad for p in part] for part in parts]
        norms = [norm(b) for b in before]
        weights = [p.detach().clone() for part in parts for p in part]
        got = f(*parts, limit)
        demand([len(part) for part in parts] == [count] * 2, "it changes the lists that it was given")
        demand(all(map(torch.equal, [p for part in parts for p in part], weights)), "the weights were changed; scale their gradients")
        demand(all(p.grad is g for part, own in zip(parts, held, strict=True) for p, g in zip(part, own, strict=True)),
               "it puts new tensors in place of the gradients; scale them in place (mul_)")
        both = limit / norm([*before[0], *before[1]])
        for k, name in enumerate(("VLM", "expert")):
            after, ratio = [p.grad for p in parts[k]], norm([p.grad for p in parts[k]]) / norms[k]
            if norms[k] <= limit:
                demand(abs(ratio - both) > .01 * both or both > .9, f"the {'expert' if k == 0 else 'VLM'}'s large gradient "
                       f"shrank the {name}'s small one: one norm over both. Clip each part alone")
                demand(ratio < 1.01, f"the {name}'s small gradient was scaled *up*, from {norms[k]:.3g} to {norm(after):.3g}: "
                       "clipping only shrinks")
                demand(ratio > .99, f"the {name}'s gradient has norm {norms[k]:.3g}, below the limit {limit:g}, "
                       f"and was shrunk to {norm(after):.3g}; it must stay")
            else:
                demand(ratio < .99, f"the {name}'s norm is still {norm(after):.3g}; wanted {limit:g}")
                demand(all(same(a / a.norm(), b / b.norm(), 1e-4) for a, b in zip(after, before[k], strict=True)),
                       "clipping must keep the direction (a scale, not a clamp)")
                demand(not all(abs(float(a.norm()) - limit) < 1e-3 for a in after) or count == 1,
                       "each parameter was clipped on its own: one norm for all of a part's parameters")
                demand(norm(after) > (1 - 1e-3) * limit,
                       f"the {name}'s gradient shrank too far, to norm {norm(after):.3g}; wanted {limit:g}: "
                       "a part's norm is the root of the sum of all its squares")
                demand(norm(after) < (1 + 1e-3) * limit, f"the {name}'s norm is {norm(after):.3g} after clipping to {limit:g}")
            demand(all(same(a, b * ratio, 1e-3 * limit) for a, b in zip(after, before[k], strict=True)),
                   f"each parameter was clipped on its own, so that the {name}'s gradient changed its direction: "
                   "one norm for all of a part's parameters")
        demand(isinstance(got, tuple | list) and len(got) == 2, f"it returned {got!r}; wanted (VLM's norm, expert's norm)")
        demand(count == 1 or not np.allclose([float(x) for x in got[::-1]], norms, rtol=1e-3),
               "the two norms are swapped: the VLM's comes first")
        demand(np.allclose([float(x) for x in got], norms, rtol=1e-3, atol=1e-3),
               f"it returned {got}; wanted the norms from before, {norms[0]:.3f} and {norms[1]:.1f}")
        demand(np.allclose([float(x) for x in got], norms, rtol=1e-4, atol=0),
               f"it returned {got}: nearly, but the norms from before are {norms[0]:.7g} and {norms[1]:.7g}: do not round them")
        demand(all(isinstance(x, float) for x in got), f"it returned {got!r}; wanted two floats")
    for counts in ((1, 3), (4, 2), (2, 9)):
        mine, right = ([[torch.nn.Parameter(random(3, 1 + i, seed=k)) for i in range(count)] for k, count in enumerate(counts)] for _ in "12")
        for p, q in zip(sum(mine, []), sum(right, []), strict=True):
            p.grad, q.grad = (30. * random(*p.shape, seed=7) for _ in "12")
        f(*mine, 2.)
        for name, part, its in zip(("VLM", "expert"), mine, right, strict=True):
            torch.nn.utils.clip_grad_norm_(its, 2.)
            demand(all(same(p.grad, q.grad, 1e-4) for p, q in zip(part, its, strict=True)),
                   f"with {counts[0]} parameters of the VLM and {counts[1]} of the expert, not all of the {name}'s are scaled alike")
    still = [[torch.nn.Parameter(torch.ones(2, 3))] for _ in range(2)]
    still[0][0].grad, still[1][0].grad = torch.zeros(2, 3), torch.full((2, 3), 9.)
    demand(not (error := raised(lambda: f(*still, 1.))) and not bool(still[0][0].grad.any()),
           f"a gradient of zeros must stay one: {f'it raises {type(error).__name__}' if error else 'it does not'}")


@exercise("09.1", "wilson", evaluate.wilson)
def check_wilson(f):
    for hits, n in ((3, 10), (10, 10), (0, 10), (200, 400), (1, 7), (39, 40), (300, 1000), (1, 5000), (5, 5), (0, 3), (0, 6000),
                    (9999, 10000), (0, 100_000), (1, 100_000), *((n * k // 4, n) for n in range(1, 60) for k in range(5))):
        got = f(hits, n)
        demand(isinstance(got, tuple | list) and len(got) == 2, f"it returned {got!r}; wanted (low, high)")
        low, high = map(float, got)

        def ends(z, p=hits / n, n=n):
            half = z * (p * (1 - p) / n + (z / (2 * n)) ** 2) ** .5
            return [max(0., min(1., (p + z * z / (2 * n) + sign * half) / (1 + z * z / n))) for sign in (-1, 1)]
        p, wanted = hits / n, ends(1.96)
        plain = 1.96 * (p * (1 - p) / n) ** .5
        if not np.allclose((low, high), wanted, rtol=0, atol=2e-4):
            demand(not np.allclose((high, low), wanted, rtol=0, atol=2e-4), "low and high are swapped")
            demand(not (low == high == p),
                   f"{hits} of {n} gives an interval of no width: that is the plain normal one, which fails at 0 and 1")
            demand(abs(low - max(0, p - plain)) > 1e-6 or abs(high - min(1, p + plain)) > 1e-6,
                   "that is the plain normal interval, around p")
            middle, half = sum(wanted) / 2, (wanted[1] - wanted[0]) / 2
            for words, made in (("that is a 90 % interval: z is 1.645; wanted 1.96", ends(1.645)),
                                ("that is a 99 % interval: z is 2.576; wanted 1.96", ends(2.576)),
                                ("its middle is p; Wilson's is drawn towards 1/2, (p + z^2 / 2n) / (1 + z^2 / n)", (p - half, p + half)),
                                ("that is Agresti and Coull's interval: its width is taken at the middle",
                                 [middle + k * 1.96 * (middle * (1 - middle) / (n + 1.96 ** 2)) ** .5 for k in (-1, 1)]),
                                ("under the root z^2 / 4n^2 is missing", [middle + k * plain / (1 + 1.96 ** 2 / n) for k in (-1, 1)])):
                demand(not np.allclose((low, high), made, rtol=0, atol=2e-4), words)
        demand(low >= 0 and high <= 1, f"{hits} of {n}: got {low!r} to {high!r}; a rate lies within 0 to 1")
        demand(all(isinstance(x, float | int) for x in got), f"it returned {got!r}; wanted two floats")
        demand(np.allclose((low, high), wanted, rtol=0, atol=2e-4),
               f"{hits} of {n}: got {low:.4f} to {high:.4f}, wanted {wanted[0]:.4f} to {wanted[1]:.4f}"
               + ": at 0 and n of n it is the same formula" * (hits in (0, n)))
        demand(any(np.allclose((low, high), ends(z), rtol=0, atol=1e-9) for z in (1.96, 1.959963984540054, 1.959964)),
               f"{hits} of {n}: nearly, but got {low:.8f} to {high:.8f}, wanted {wanted[0]:.8f} to {wanted[1]:.8f}: do not round it")


@exercise("09.2", "paired_interval", "tutorials.studies.compare:difference")
def check_paired_interval(f):
    def ends(*given):
        got = f(*given)
        demand(isinstance(got, tuple | list | torch.Tensor) and len(got) == 2, f"it returned {got!r}; wanted (low, high)")
        low, high = (float(x) for x in got)
        demand(low <= high, "low and high are swapped")
        return low, high
    generator = torch.Generator().manual_seed(0)
    hard = torch.rand(400, generator=generator)
    theirs = hard < .6
    ours = theirs | ((hard < .68) & (torch.rand(400, generator=generator) < .9))          # wins the same scenes, and some more
    alike = ends(ours, ours.clone(), 200, 0)
    demand(alike == (0, 0), f"two policies that win the same scenes differ by 0 in each resample; got {alike[0]:.3f} to {alike[1]:.3f}"
           + ": the scenes are not paired. One index for both" * (alike[0] < 0 < alike[1]))
    low, high = ends(ours, theirs, 1000, 0)
    d = ours.double() - theirs.double()
    middle, half = float(d.mean()), 1.96 * float(d.std()) / 20
    demand(not (low < -middle < high), "the sign: ours minus theirs")
    demand(abs(high + low - 2 * middle) < high - low or max(abs(low), abs(high)) < 1,
           f"got {low:.3g} to {high:.3g}: wanted differences of two rates, below 1 (a mean, no sum, and no per cent)")
    demand(high - low < .9, "these are quantiles of single scenes; wanted quantiles of the *means* of resamples")
    demand(half < high - low < 4 * half,
           f"the interval is {high - low:.3f} wide where it should be about {2 * half:.3f}: "
           "are these quantiles of resampled *means*, of as many scenes as there are?")
    demand(abs(low - (middle - half)) < half / 2 and abs(high - (middle + half)) < half / 2, f"got {low:.3f} to {high:.3f}, wanted about "
           f"{middle - half:.3f} to {middle + half:.3f}")
    # Two wins more in 20 scenes: a resample wins 0 to 5 more, so that its quantiles are 0 and .25 (of a binomial distribution).
    few, none = torch.arange(20) % 19 == 0, torch.zeros(20, dtype=torch.bool)
    low, high = ends(few, none, 20000, 0)
    demand(not np.allclose((low, high), (-.05, .2), atol=1e-6),
           "that is the basic bootstrap, mirrored at the difference; wanted the quantiles themselves")
    demand(low > -1e-6, f"2 wins against 0 in 20 scenes: the interval begins at {low:.3f}, "
           "and no resample's difference is below 0: that is a normal interval, not a bootstrap")
    demand(abs(high - .2) > 1e-6, "2 wins against 0 in 20 scenes: it ends at .20, as the 95 % quantile does, "
           "or fewer scenes than there are; at 2.5 and 97.5 %, of 20 scenes drawn with repeats, it ends at .25")
    demand(abs(low) < 1e-6 and abs(high - .25) < 1e-6, f"2 wins against 0 in 20 scenes: got {low:.3f} to {high:.3f}, wanted 0 to .25: "
           + ("each draw may be any of the 20 scenes, the last one too" if high < .25 else
              "the quantiles at 2.5 and 97.5 % of the means of 20 scenes each"))
    lost = ends(none, few, 20000, 0)
    demand(abs(lost[0] + .2) > 1e-6,
           "0 wins against 2 in 20 scenes: it begins at -.20, which is the 5 % quantile; at 2.5 % it begins at -.25")
    demand(np.allclose(lost, (-.25, 0), atol=1e-6), "0 wins against 2 in 20 scenes: "
           f"got {lost[0]:.3f} to {lost[1]:.3f}, wanted -.25 to 0: scenes that we lose count, too")
    mixed, other = torch.arange(100) < 45, (torch.arange(100) >= 45) & (torch.arange(100) < 80)
    for a, b, sign in ((mixed, other, 1), (other, mixed, -1)):
        low, high = ends(a, b, 2000, 0)
        demand(abs(low + high - .2 * sign) < .05 and abs(high - low - .348) < .05,
               f"45 scenes are won by one alone, and 35 by the other: got {low:.3f} to {high:.3f}, "
               f"wanted about {.1 * sign - .174:.2f} to {.1 * sign + .174:.2f}: a scene counts 1, 0 or -1")
    # k wins in n scenes: 2.3 % of the resamples win 1 of 18 or less, and 2.8 % none of 10 (binomial),
    # so that the quantiles at 2.5 % are 2 / 18 and 0.
    for n, wins, begin, ends_at in ((18, 5, 2, 9), (10, 3, 0, 6)):
        low, high = ends(torch.arange(n) < wins, torch.zeros(n, dtype=torch.bool), 40000, 0)
        demand(np.allclose((low, high), (begin / n, ends_at / n), atol=1e-6),
               f"{wins} wins against 0 in {n} scenes: got {low:.3f} to {high:.3f}, "
               f"wanted {begin / n:.3f} to {ends_at / n:.3f}, the quantiles at 2.5 and 97.5 % of the means, as they are")
    one = (0, 0) if raised(lambda: f(ours, theirs, 1, 0)) else ends(ours, theirs, 1, 0)         # (quantiles of one number may be refused)
    demand(abs(one[0] - one[1]) < 1e-9, "one resample has one mean, and both ends are that; yours differ: "
           "is `resamples` used, and is nothing else among the means?")
    demand(ends(ours, theirs, 30, 0) == ends(ours, theirs, 30, 0), "the same seed must give the same interval")
    late = torch.arange(1000) >= 500
    demand(abs(sum(ends(late, ~late & False, 400, 0)) - 1) < .02,
           "1,000 scenes, of which the last 500 are won: the interval should lie about .5. All scenes count")
    demand(len({ends(ours, theirs, 30, seed) for seed in range(5)}) > 1,
           "seeds 0 to 4 give one interval: `seed` is not used, or they share their draws")
    demand(len({ends(ours, theirs, 7, 8 ** k) for k in range(3, 9)}) > 1, "seeds 8^3, 8^4 ... give one interval: take the seed as it is")


@exercise("10.1", "freeze", "nano_ki.train:prepare")
def check_freeze(f):
    def part(seed):
        shapes = ((4,), (4, 4), (2,)) if seed else ((3,), (4, 4))            # (the VLM has another number of them)
        return [torch.nn.Parameter(random(*shape, seed=seed + i)) for i, shape in enumerate(shapes)]
    # A loss may give frozen weights gradients of zero.
    for zeros, rate, decay in ((False, .1, .1), (True, .1, .1), (True, .02, .5)):
        vlm, own, twin = part(0), part(5), part(5)
        before = [p.detach().clone() for p in vlm]
        for p in vlm:
            p.grad = torch.ones_like(p)                                                      # (left from before the freeze)
        optimiser, right = f(vlm, own, rate, decay), torch.optim.AdamW(twin, lr=rate, weight_decay=decay)
        demand(isinstance(optimiser, torch.optim.AdamW), f"it returned {type(optimiser).__name__}; wanted an AdamW")
        demand(all(p.requires_grad for p in own), "the expert does not train: its weights no longer require gradients")
        demand(torch.is_grad_enabled(), "gradients are switched off, and not on again")
        for p in vlm:
            # What still trains begins its step without an old gradient.
            if p.requires_grad:
                p.grad = None
        # Nobody has a gradient yet, unless it was made up.
        optimiser.step(), right.step()
        for step in range(3):
            for mine, its in ((own, optimiser), (twin, right)):
                its.zero_grad()
                loss = sum((p * random(*p.shape, seed=step)).sum() for p in mine)
                (loss + sum((p * 0).sum() for p in vlm if p.requires_grad and zeros and mine is own)).backward()
                its.step()
        demand(all(torch.equal(p, b) for p, b in zip(vlm, before, strict=True)), "the frozen weights moved: weight decay shrinks whatever "
               "the optimiser holds, at a gradient of zero too. Leave them out")
        moved = [not torch.equal(p, b) for p, b in zip(own, part(5), strict=True)]
        demand(any(moved), "the expert does not train")
        demand(all(moved), "a part of the expert does not train")
        for name, wanted in (("weight_decay", decay), ("lr", rate)):
            found = {float(g[name]) for g in optimiser.param_groups if any(p is q for p in g["params"] for q in own)}
            demand(len(found) == 1 and np.allclose(list(found), wanted),
                   f"the expert's {name.replace('_', ' ')} is {sorted(found)}; wanted the one that was asked for, {wanted}")
        demand(all(same(p, q, 1e-6) for p, q in zip(own, twin, strict=True)),
               f"the expert does not move as AdamW with learning rate {rate} and weight decay {decay} moves it")
