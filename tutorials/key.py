"""The key to the exercises: how hard, hints that open one by one, a worked solution and why. Spoilers.

    python -m tutorials.check 04.1 --hint          # the next hint
    python -m tutorials.check 04.1 --solution      # the worked solution
"""
from typing import NamedTuple


class Key(NamedTuple):
    difficulty: str       # easy | medium | hard
    minutes: int
    hints: tuple
    why: str
    solution: str         # the function; it may use math, torch and torch.nn.functional as F


KEY = {
    "01.1": Key("medium", 10, (
        "Six conditions, six coefficients. Which three of them are 0 by what holds at t = 0?",
        "What remains is t^3 times a quadratic a + b t + c t^2. Three conditions at t = 1 give three equations.",
        "The three coefficients are 10, -15 and 6.",
    ), "At t = 0 place, speed and acceleration are 0, so no power below t^3 may occur. "
       "At t = 1: a + b + c = 1, 3 a + 4 b + 5 c = 0, 6 a + 12 b + 20 c = 0.",
"""\
def min_jerk(t): return t ** 3 * (10 - 15 * t + 6 * t * t)"""),
    "01.2": Key("easy", 5, (
        "Why whole episodes? A single stroke of a failed one looks as good as any; the states that it comes from lead nowhere.",
        'For each sample: is its owner among the finished? PyTorch has a function for "is each of these in that set".',
    ), "Dropping single bad strokes would keep the states of failed episodes, which nobody should learn to be in.",
"""\
def keep(owner, finished): return torch.isin(owner, finished)"""),
    "02.1": Key("easy", 3, (
        "How many tokens lie along one side of the picture?",
        "The picture is square, and each word of the prompt is one more token.",
    ), "Here 48 / 8 = 6 along a side, 36 in all, and 7 words: 43. The expert reads the two words of the subtask, too.",
"""\
def prefix_tokens(side, stride, slots): return (side // stride) ** 2 + slots"""),
    "02.2": Key("easy", 5, (
        "Move all words one slot to the right. What enters on the left?",
        "F.pad pads the last axis first: (0, 0, 1, 0) pads the axis before it, by one in front.",
    ), 'One query can then ask for "red star": the slot of the colour holds the shape as well. F.pad pads from the last axis backwards.',
"""\
def token_shift(words): return words + F.pad(words[:, :-1], (0, 0, 1, 0))"""),
    "03.1": Key("medium", 10, (
        "Make two ranges, k down and n across, and let them broadcast.",
        "Orthonormal means C @ C.T = 1, so that the inverse is the transpose. Which row breaks that without its factor?",
        "Row 0 is constant: its squares add up to 2 unless it is divided by the square root of 2.",
    ), "With an orthonormal C the error in the actions is as large as the error of rounding the coefficients: "
       "nothing grows on the way back.",
"""\
def dct_matrix(H):
    k, n = torch.arange(H, dtype=torch.double)[:, None], torch.arange(H, dtype=torch.double)
    c = math.sqrt(2 / H) * torch.cos(math.pi * k * (n + .5) / H)
    c[0] /= math.sqrt(2)
    return c"""),
    "03.2": Key("easy", 5, (
        "A token may not overrun the chunk: compare what it stands for with what is left.",
        "Stop is allowed at one moment only: when nothing is left.",
    ), "Whatever is drawn under this mask decodes, also from an untrained model. "
       "Beware of <= and <: a token that exactly fills the chunk fits.",
"""\
def allowed(lengths, used, size):
    return torch.cat((lengths <= size - used, torch.tensor([used == size])))"""),
    "04.1": Key("medium", 10, (
        "Beta(1.5, 1) has the distribution function b^1.5 on 0 to 1. "
        "A number with this distribution is made from a uniform one by the inverse function.",
        "b = u^(1 / 1.5). That is the noise level, about; what is asked for is t.",
        "The mean noise level is .600. Public code that draws b another way has .558.",
    ), "Sampling by inversion: P(u^(2/3) <= b) = P(u <= b^1.5) = b^1.5. Then 1 - t = .999 b + .001.",
"""\
def sample_time(u): return 1 - (.999 * u ** (2 / 3) + .001)"""),
    "04.2": Key("easy", 5, (
        "How many axes does t lack, to be multiplied with [..., H, A]?",
        "Check the shape before: which shape must t have, said by the shape of action?",
    ), "Without the check a t of shape [H] or [A] broadcasts over waypoints or dimensions and trains something else, without a word.",
"""\
def path(action, noise, t):
    if t.shape != action.shape[:-2]:
        raise ValueError("one time for each chunk")
    t = t[..., None, None]
    return (1 - t) * noise + t * action"""),
    "04.3": Key("medium", 10, (
        "The velocity is asked at the start of each step: at 0, 1 / steps, ... and never at 1.",
        "t has one entry for each chunk: its shape is x.shape[:-2].",
    ), "The path of the true field is straight, so on it one step would do. On a learned field each step corrects the one before.",
"""\
def euler(velocity, noise, steps):
    x = noise
    for i in range(steps):
        x = x + velocity(x, torch.full(x.shape[:-2], i / steps)) / steps
    return x"""),
    "05.1": Key("easy", 5, (
        "Draw the table for prefix = 2, answer = 3 on paper, and print what the file makes.",
        "Where is the answer's causal part? Something that belongs below a diagonal is missing.",
        "tril() of a matrix of ones, and then the prefix's square.",
    ), "As it came, each token of the answer sees the whole answer: the token to be predicted can be read. "
       "The loss falls to 0 and nothing is learned.",
"""\
def prefix_mask(prefix, answer):
    mask = torch.ones(prefix + answer, prefix + answer, dtype=torch.bool).tril()
    mask[:prefix, :prefix] = True
    return mask"""),
    "05.2": Key("medium", 10, (
        "One draw: a block of ones. Several draws: such blocks along the diagonal.",
        "torch.block_diag, or repeat_interleave an identity both ways.",
        "The memory's columns come first, and are all True.",
    ), "Two noises of one sample share the memory and must not see each other, because when acting there is only one.",
"""\
def draw_mask(prefix, draws, horizon):
    own = torch.block_diag(*[torch.ones(horizon, horizon)] * draws).bool()
    return torch.cat((torch.ones(draws * horizon, prefix, dtype=torch.bool), own), 1)"""),
    "06.1": Key("easy", 5, (
        "Which of the two, K and V, is detached?",
        "Where one looks (K) teaches the VLM as well as what one reads there (V).",
    ), "As it came, half of the gradient goes back, through V. `detach` makes a new tensor; "
       "`detach_` would change the VLM's own, and cut the cross-entropy.",
"""\
def memory_for_expert(memory, insulate):
    return [(k.detach(), v.detach()) for k, v in memory] if insulate else memory"""),
    "06.2": Key("medium", 10, (
        "Join the keys of memory and of the action tokens along the tokens' axis, and the values likewise.",
        "One softmax over both, not two: memory and own tokens compete.",
        "F.scaled_dot_product_attention has an argument `scale`; here it is 10 / K.",
    ), "Two softmaxes would always give half of the attention to each side. The scale is 10 / K because q and k have been normalised.",
"""\
def expert_attention(q, k, v, memory):
    k, v = torch.cat((memory[0], k), 2), torch.cat((memory[1], v), 2)
    return F.scaled_dot_product_attention(q, k, v, scale=10 / q.shape[-1])"""),
    "07.1": Key("hard", 15, (
        "torch.autograd.grad(..., allow_unused=True) gives the gradients without touching .grad; a loss that requires none raises.",
        'None and all zeros both mean "not reached".',
        "Both halves: flow reaches no VLM parameter (and some of the expert); cross-entropy reaches all of the VLM's.",
    ), "The lazy test checks only the first half, and passes a model in which the VLM learns nothing.",
"""\
def insulated(losses, vlm, expert):
    def reached(loss):
        value = losses()[loss]
        if not value.requires_grad:
            return [False] * len(vlm + expert)
        grads = torch.autograd.grad(value, vlm + expert, allow_unused=True)
        return [g is not None and bool(g.any()) for g in grads]
    n = len(vlm)
    return not any(reached("flow")[:n]) and any(reached("flow")[n:]) and all(reached("ce")[:n])"""),
    "07.2": Key("medium", 5, (
        "What is a random number times zero?",
        "normal_(mean, std, generator=...) fills a tensor in place.",
    ), "As it came, it adds noise times the gate, and the gate is 0: nothing changes, nothing leaks, the test passes on any model.",
"""\
def open_gates(gates, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gate in gates:
            gate.normal_(0, .5, generator=generator)"""),
    "08.1": Key("easy", 5, (
        "Of what is the mean taken? Count the places that are padding.",
        "F.cross_entropy with ignore_index and its default reduction divides by the real tokens only.",
    ), "As it came, padding counts in the denominator: the same tokens weigh less when one answer in the batch is long.",
"""\
def cross_entropy(logits, answer, pad):
    return F.cross_entropy(logits.transpose(1, 2), answer, ignore_index=pad)"""),
    "08.2": Key("easy", 5, (
        "One norm over both parts: what happens to the VLM's small gradient when the expert's is a hundred times larger?",
        "Call it twice.",
    ), "As it came, a large gradient of the expert shrinks the VLM's step: the two are coupled again, through the clipping.",
"""\
def clip(vlm, expert, limit):
    return tuple(float(torch.nn.utils.clip_grad_norm_(p, limit)) for p in (vlm, expert))"""),
    "09.1": Key("easy", 10, (
        "A rate x is inside if p is at most z standard deviations from it: (p - x)^2 = z^2 x (1 - x) / n. "
        "Solve this for x: both solutions are the ends.",
        "Centre (p + z^2 / 2n) / (1 + z^2 / n); half width z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2).",
        "At 0 of n and n of n rounding may leave 0 to 1: clip.",
    ), "p +- z sqrt(p (1 - p) / n) has width 0 at 10 of 10. Wilson's interval does not claim to be sure after ten trials.",
"""\
def wilson(hits, n):
    z, p = 1.96, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0., middle - half), min(1., middle + half)"""),
    "09.2": Key("medium", 15, (
        "Draw scenes, not outcomes: one index for both policies.",
        "torch.randint(n, (resamples, n), generator=...), then the mean of the differences in each row, then two quantiles.",
    ), "Both policies fail in the same hard scenes. Drawn in pairs that cancels; drawn apart it makes the interval wider than it is.",
"""\
def paired_interval(ours, theirs, resamples, seed):
    d = ours.double() - theirs.double()
    at = torch.randint(len(d), (resamples, len(d)), generator=torch.Generator().manual_seed(seed))
    q = d[at].mean(1).quantile(torch.tensor([.025, .975], dtype=torch.double))
    return float(q[0]), float(q[1])"""),
    "10.1": Key("easy", 5, (
        "A gradient of zero is a gradient: what does AdamW do with a weight that has one?",
        "Weight decay shrinks whatever the optimiser holds. What should it hold?",
    ), "As it came, weight decay shrinks the frozen weights a little in every step. What the optimiser does not hold it cannot move.",
"""\
def freeze(vlm, expert, rate, decay):
    return torch.optim.AdamW(expert, lr=rate, weight_decay=decay)"""),
}
