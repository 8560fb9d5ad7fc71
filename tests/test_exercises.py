"""Bite tests: each check passes a right answer, fails the stub, and fails planted wrong answers for the right reason."""
import ast
import json
import re

import pytest
from conftest import command

from tutorials import check

HEAD = "import math\nimport torch\nimport torch.nn.functional as F\n"
RIGHT = {
    "01.1": "def min_jerk(t): return t ** 3 * (10 - 15 * t + 6 * t * t)",
    "01.2": "def keep(owner, finished): return torch.isin(owner, finished)",
    "02.1": "def prefix_tokens(side, stride, slots): return (side // stride) ** 2 + slots",
    "02.2": "def token_shift(words): return words + F.pad(words[:, :-1], (0, 0, 1, 0))",
    "03.1": """def dct_matrix(H):
    k, n = torch.arange(H, dtype=torch.double)[:, None], torch.arange(H, dtype=torch.double)
    c = math.sqrt(2 / H) * torch.cos(math.pi * k * (n + .5) / H)
    c[0] /= math.sqrt(2)
    return c""",
    "03.2": """def allowed(lengths, used, size):
    return torch.cat((lengths <= size - used, torch.tensor([used == size])))""",
    "04.1": "def sample_time(u): return 1 - (.999 * u ** (2 / 3) + .001)",
    "04.2": """def path(action, noise, t):
    if t.shape != action.shape[:-2]:
        raise ValueError("one time for each chunk")
    t = t[..., None, None]
    return (1 - t) * noise + t * action""",
    "04.3": """def euler(velocity, noise, steps):
    x = noise
    for i in range(steps):
        x = x + velocity(x, torch.full(x.shape[:-2], i / steps)) / steps
    return x""",
    "05.1": """def prefix_mask(prefix, answer):
    mask = torch.ones(prefix + answer, prefix + answer, dtype=torch.bool).tril()
    mask[:prefix, :prefix] = True
    return mask""",
    "05.2": """def draw_mask(prefix, draws, horizon):
    own = torch.block_diag(*[torch.ones(horizon, horizon)] * draws).bool()
    return torch.cat((torch.ones(draws * horizon, prefix, dtype=torch.bool), own), 1)""",
    "06.1": """def memory_for_expert(memory, insulate):
    return [(k.detach(), v.detach()) for k, v in memory] if insulate else memory""",
    "06.2": """def expert_attention(q, k, v, memory):
    k, v = torch.cat((memory[0], k), 2), torch.cat((memory[1], v), 2)
    return F.scaled_dot_product_attention(q, k, v, scale=10 / q.shape[-1])""",
    "07.1": """def insulated(losses, vlm, expert):
    def reached(loss):
        value = losses()[loss]
        if not value.requires_grad:
            return [False] * len(vlm + expert)
        grads = torch.autograd.grad(value, vlm + expert, allow_unused=True)
        return [g is not None and bool(g.any()) for g in grads]
    n = len(vlm)
    return not any(reached("flow")[:n]) and any(reached("flow")[n:]) and all(reached("ce")[:n])""",
    "07.2": """def open_gates(gates, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gate in gates:
            gate.normal_(0, .5, generator=generator)""",
    "08.1": """def cross_entropy(logits, answer, pad):
    return F.cross_entropy(logits.transpose(1, 2), answer, ignore_index=pad)""",
    "08.2": """def clip(vlm, expert, limit):
    return tuple(float(torch.nn.utils.clip_grad_norm_(p, limit)) for p in (vlm, expert))""",
    "09.1": """def wilson(hits, n):
    z, p = 1.96, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0., middle - half), min(1., middle + half)""",
    "09.2": """def paired_interval(ours, theirs, resamples, seed):
    d = ours.double() - theirs.double()
    at = torch.randint(len(d), (resamples, len(d)), generator=torch.Generator().manual_seed(seed))
    q = d[at].mean(1).quantile(torch.tensor([.025, .975], dtype=torch.double))
    return float(q[0]), float(q[1])""",
    "10.1": """def freeze(vlm, expert, rate, decay):
    return torch.optim.AdamW(expert, lr=rate, weight_decay=decay)""",
}
# number: [(what to change in the right answer, into what, words of the message)]
WRONG = {
    "01.1": [("t ** 3 * (10 - 15 * t + 6 * t * t)", "t", "speed"), ("t ** 3 * (10 - 15 * t + 6 * t * t)", "t * t * (3 - 2 * t)", "acceleration")],
    "01.2": [("return ", "return ~", "upside down"), ("(owner, finished)\n", "(finished, owner)\n", "for each sample")],
    "02.1": [(" ** 2", "", "rows and columns"), (" + slots", "", "words of the prompt")],
    "02.2": [("F.pad(words[:, :-1], (0, 0, 1, 0))", "words.roll(1, 1)", "the first slot hears"), ("words + ", "", "lost"),
             ("F.pad(words[:, :-1], (0, 0, 1, 0))", "words.roll(-1, 1)", "the other way"), (":-1], (0, 0, 1, 0)", "1:], (0, 0, 0, 1)", "the other way"),
             ("F.pad(words[:, :-1], (0, 0, 1, 0))", "words.roll(1, 2)", "shifted the features")],
    "03.1": [("    c[0] /= math.sqrt(2)\n", "", "row 0 needs"), ("return c", "return c.T", "swapped"), ("n + .5", "n", "n + 1/2")],
    "03.2": [("<= size - used", "< size - used", "just fills"), ("<= size - used", "<= size", "overruns"), ("used == size", "True", "stop is allowed")],
    "04.1": [("1 - (", "(", "the other way"), ("u ** (2 / 3)", "u", "uniform"), ("u ** (2 / 3)", "u ** .7915", ".558")],
    "04.2": [("(1 - t) * noise + t * action", "t * noise + (1 - t) * action", "the other way"),
             ("t.shape != action.shape[:-2]", "False", "without a word")],
    "04.3": [("x + velocity", "x - velocity", "backwards"), ("i / steps)", "(i + 1) / steps)", "wanted 0"),
             ("torch.full(x.shape[:-2], i / steps)", "i / steps", "t of shape"), ("range(steps)", "range(steps - 1)", "asked 9 times")],
    "05.1": [(".tril()", "", "sees the answer"), ("    mask[:prefix, :prefix] = True\n", "", "causal"), (".tril()", ".tril(1)", "sees")],
    "05.2": [("torch.block_diag(*[torch.ones(horizon, horizon)] * draws).bool()", "torch.ones(draws * horizon, draws * horizon).bool()",
              "draws see each other"), ("torch.ones(horizon, horizon)]", "torch.ones(horizon, horizon).tril()]", "both ways")],
    "06.1": [("v.detach()", "v", "through V"), ("k.detach()", "k", "through K"), ("v.detach()) for k, v in memory]", "v.detach()) for k, v in memory[:-1]]"
              " + memory[-1:]", "in layer 2"), ("detach()", "detach_()", "lost its gradient"), ("if insulate else memory", "", "without insulation")],
    "06.2": [("scale=10 / q.shape[-1]", "scale=q.shape[-1] ** -.5", "1 / sqrt(K)"),
             ("k, v = torch.cat((memory[0], k), 2), torch.cat((memory[1], v), 2)", "k, v = memory", "do not see each other"),
             ("    return F", "    return F.scaled_dot_product_attention(q, *memory, scale=10 / q.shape[-1]) + F", "")],
    "07.1": [(" and all(reached(\"ce\")[:n])", "", "starved"), ("not any(reached(\"flow\")[:n]) and", "", "without any stop"),
             (" and bool(g.any())", "", "zeros is no leak"), (" and any(reached(\"flow\")[n:])", "", "learns nothing"),
             ("not any(reached(\"flow\")[:n])", "not reached(\"flow\")[0]", "one parameter only")],
    "07.2": [("gate.normal_(0, .5, generator=generator)", "gate.mul_(1 + torch.randn(gate.shape, generator=generator))", "still closed"),
             (".5", "5.", "standard deviation"), ("generator=generator", "generator=torch.Generator().manual_seed(seed)", "repeats"),
             ("    generator = torch.Generator().manual_seed(seed)", "    generator = None", "the same seed")],
    "08.1": [("ignore_index=pad)", "ignore_index=pad, reduction='none').mean()", "padding included"), (", ignore_index=pad", "", "as if it were a word"),
             ("return F.cross_entropy(logits.transpose(1, 2), answer, ignore_index=pad)",
              "return torch.stack([F.cross_entropy(x, y, ignore_index=pad) for x, y in zip(logits, answer)]).mean()", "sample's mean")],
    "08.2": [("return tuple(float(torch.nn.utils.clip_grad_norm_(p, limit)) for p in (vlm, expert))",
              "n = float(torch.nn.utils.clip_grad_norm_(vlm + expert, limit)); return n, n", "one norm over both"),
             ("torch.nn.utils.clip_grad_norm_(p, limit)", "torch.nn.utils.clip_grad_value_(p, limit) or 0.", "")],
    "09.1": [("z * z / (4 * n * n)", "0", ""), ("(p + z * z / (2 * n)) / (1 + z * z / n)", "p", "")],
    "09.2": [("return float(q[0])", "return -float(q[1]), -float(q[0]) #", "the sign"),
             ("d[at].mean(1)", "(ours.double()[at].mean(1) - theirs.double()[at.roll(7, 0)].mean(1))", "for each"),
             (".mean(1).quantile", ".mean(1).mul(.3).quantile", "wide")],
    "10.1": [("AdamW(expert,", "AdamW(vlm + expert,", "moved"), ("weight_decay=decay", "weight_decay=0", "weight decay is")],
}


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
        assert "raised" not in stub["says"] and "not written" not in stub["says"], stub
    else:
        assert stub["says"] == "not written yet"


@pytest.mark.parametrize("number, old, new, words", [(n, *w) for n, wrong in WRONG.items() for w in wrong])
def test_wrong_answers_fail_for_the_right_reason(number, old, new, words, tmp_path):
    source = RIGHT[number] + "\n"
    assert old in source
    result = said(tmp_path, number, source.replace(old, new))
    assert not result["passed"] and words in result["says"] and "raised" not in result["says"], result


def test_each_wrong_answer_is_planted_twice_at_least():
    assert min(len(w) for w in WRONG.values()) >= 2


@pytest.mark.parametrize("line", ["from nano_ki import flow", "import numpy", "import importlib", "m = __import__('nano_ki.flow')",
                                  "from nano_ki.flow import path", "from . import check"])
def test_the_reference_may_not_be_imported(tmp_path, line):
    result = said(tmp_path, "04.2", line + "\n" + RIGHT["04.2"])
    assert not result["passed"] and "the rule" in result["says"]


def test_answers_that_never_end_or_fall_over(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 1)
    assert "ever end" in said(tmp_path, "02.1", "def prefix_tokens(*a):\n    while True: pass")["says"]
    assert "ZeroDivisionError" in said(tmp_path, "02.1", "def prefix_tokens(*a): return 1 / 0")["says"]
    assert "no function" in said(tmp_path, "02.1", "x = 1")["says"]
    assert "cannot read" in said(tmp_path, "02.1", "def (")["says"]
    assert "cannot read" in check.run("02.1", tmp_path / "none.py")["says"]


def test_every_stub_says_its_task_its_rule_and_how_to_check():
    for number in check.CHECKS:
        text = ast.get_docstring(ast.parse(check.path_of(number).read_text()))
        assert text.startswith(f"Exercise {number}. ") and f"python -m tutorials.check {number}" in text and "Rule:" in text


def test_the_ladder():
    done = command("tutorials.check", "--all")
    assert done.returncode == 1 and done.stdout.count("[ ]") == len(RIGHT) and f"0 of {len(RIGHT)}" in done.stdout
    done = command("tutorials.check", "04.1", "--json")
    assert json.loads(done.stdout)[0]["number"] == "04.1"
    assert "no exercise 99" in command("tutorials.check", "99").stderr
