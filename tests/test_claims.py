"""The page of claims: its tables are those of its lines, and its statistics do what they say."""
import json
import re

import numpy as np
import pytest
from conftest import ROOT

from nano_ki import evaluate, world
from tutorials.studies import claims
from tutorials.studies import map as post
from tutorials.studies.compare import RESULTS, lines_of


def run(arm="ki", seed=0, speed=1., flags=()):
    """A line as nano_ki.compare writes it: success on the way up, faster or slower."""
    rng = np.random.default_rng((seed, len(arm)))

    def won(rate, n=100):
        return evaluate.outcome(rng.random(n) < rate)
    answers = {"where": .9, "colour": .8, "shape": .7, "went": .6}
    pull = {"VLM": {"flow": .1, "ce": 1., "cosine": .2}}
    checks = [{"step": s, "seconds": s / 3, "success": {k: won(min(1, speed * s / 1000)) for k in ("seen", "new_both")},
               "vqa": {"book": answers, "robot": answers}, "pull": pull} for s in range(100, 1200, 100)]
    sets = {s: won(min(1, speed)) for s in {*claims.MORE_SETS, *world.TEST_SETS}}
    return {"arm": arm, "seed": seed, "flags": list(flags), "steps": 1200, "train_seconds": 400.,
            "samples_a_second": 700 * speed, "checks": checks, "success": sets,
            "right_puck": sets, "vqa_before": answers, "vqa_before_robot": answers, "vqa_after": answers, "vqa_after_robot": answers,
            "vqa_restricted": {"book": answers, "robot": answers}, "readable": {"place": .5, "colour": .9, "shape": .6},
            "moved": {"vision encoder": .1, "head": .2}, "bend": {"seen": .01, "new_both": .02},
            "landing": {"seen": {"said": None if arm == "pi0" else .03, "planned": .05}}}


def test_the_pages_and_readme_are_made_from_the_lines(monkeypatch):
    plots = {p.name: p.read_bytes() for p in RESULTS.glob("*.png")}
    assert claims.page() == claims.PAGE.read_text() and claims.wide() == claims.WIDE.read_text()
    assert plots == {p.name: p.read_bytes() for p in RESULTS.glob("*.png")}
    assert f"<!-- arms -->\n{claims.readme_table()}\n<!-- /arms -->" in (ROOT / "README.md").read_text()
    lines = lines_of(RESULTS / "arms.jsonl") or [run()]
    wrong = [{**m, "success": {k: {**v, "scenes": "00" * (len(v["scenes"]) // 2)} for k, v in m["success"].items()}} for m in lines]
    monkeypatch.setattr(claims, "read", lambda name: wrong if name == "arms" else [])
    assert claims.readme_table() not in (ROOT / "README.md").read_text()


def test_every_question_makes_its_table_and_plot(monkeypatch, tmp_path):
    lines = [run(a, s, v) for a, v in (("ki", 1.), ("pi0", .8), ("joint", .9)) for s in (0, 1, 2)]
    slow = ["--vlm-rate", "0.001", "--vlm-adam", "0.001"]
    trained = [run(arm, seed, v, flags)
               for arm, v, flags in (("post", .9, ()), ("post_through", .4, ()), ("post_through", .8, slow)) for seed in (0, 1)]
    for m in trained:
        m["success"]["shown"] = m["success"]["seen"]
    latency = [{"horizon": h, "by": by, "ms": 9.} | more for h in (8, 16, 32, 50)
               for by, more in (("FAST", {"tokens": 7}), ("flow, 5 steps", {}))]
    for name, made in {"default": lines[:3], "arms": lines, "post": trained,
                       "rates": [{**m, "flags": slow} for m in lines], "latency": latency,
                       "expert": [{"setting": "as it is", "ms_a_step": 100, "curve": [[25, 250, .5]]}]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(m) + "\n" for m in made))
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    page, wide = claims.page(), claims.wide()
    assert "Not measured" not in page + wide and page.count("\n## ") == len(claims.QUESTIONS) and wide.count("\n## ") == len(claims.TABLES)
    assert {p.name for p in tmp_path.glob("*.png")} == {"map_joint.png"} | {q[3] for q in claims.QUESTIONS if q[3]}
    assert [row.split("|")[1:6] for row in claims.needed(lines).splitlines()[2:]] == [
        [" **ki** ", " yes ", " yes ", " yes ", "  "], [" **pi0** ", "  ", "  ", "  ", " yes "]]
    assert "| **pi0** | 3 | 1.00" not in claims.generalises(lines) and "| **ki** | 3 | 1.00 [1.00, 1.00] |" in claims.generalises(lines)
    assert claims.plain(trained) == trained[:4]               # (of post-training: what changes nothing)
    for block in re.findall(r"(?:^\|.*\n)+", page + wide, re.M):                    # every row has the columns of its head
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}
        assert len(widths) == 1, block
    (tmp_path / "arms.jsonl").unlink()
    assert f"*Not measured yet:* `{claims.FILES['arms']}`" in claims.page()


def test_a_table_names_the_command_that_makes_it(monkeypatch):
    monkeypatch.setattr(claims, "read", lambda name: [run("ki", 0), run("ki", 1), run("pi0", 0), run("joint", 1), run("joint", 0)])
    assert claims.source("arms").endswith(f"`{claims.COMPARE} ki joint --seeds 0 1; {claims.COMPARE} pi0 --seeds 0`")


def test_steps_to_a_level(monkeypatch):
    assert claims.first_at([(100, .2), (200, .6), (300, .4)], .5) == pytest.approx(175)
    assert claims.first_at([(100, .2)], .5) is None
    ours, theirs = ([run(a, s, v) for s in (0, 1, 2)] for a, v in (("ki", 1.), ("pi0", .5)))
    monkeypatch.setattr(claims, "LEVEL", .5)
    assert (claims.speed(claims.curve(ours, "seen")) == pytest.approx(500, rel=.15)
            and claims.speed(claims.curve(theirs, "seen")) == pytest.approx(1000, rel=.15))
    assert claims.speed(claims.curve(ours, "seen"), 1) == pytest.approx(500 / 3, rel=.15) and claims.steps_to(theirs, 1).isdigit()
    middle, low, high = map(float, re.findall(r"[\d.]+", claims.ratio(ours, theirs)))
    assert low < 2 < high and low < middle < high and claims.ratio(ours, ours).startswith("1.00")
    monkeypatch.setattr(claims, "LEVEL", .9)
    assert claims.ratio(ours, theirs) == "-" and claims.steps_to(theirs) == "never"


def line(arm, seed, won, *flags, sets=("shown", "seen", "new_colour", "new_both")):
    """A line of post-training in which so many of 100 scenes are won."""
    outcome, half = evaluate.outcome(np.arange(100) < won), evaluate.outcome(np.arange(100) < won // 2)
    return {"arm": arm, "seed": seed, "flags": [*flags, "--check-every", "100"], "steps": 600 if "post" in arm else 800,
            "vqa_before": {"where": .9}, "samples_a_second": 500, "train_seconds": 50., "success": dict.fromkeys(sets, outcome),
            "right_puck": dict.fromkeys(("new_colour", "new_both"), outcome), "vqa_after": {"where": .9, "colour": .9, "shape": won / 100},
            "checks": [{"step": 200, "seconds": 20., "success": {"seen": half}}]}


def test_the_map_pairs_runs_that_differ_by_the_line_alone():
    plain, slow = ("--no-subtask",), ("--no-subtask", "--vlm-rate", "0.001", "--vlm-adam", "0.001")
    lines = [line(arm, seed, 80 - 30 * (arm == "post_through"), *plain) for arm in ("post", "post_through") for seed in (0, 1)]
    lines += [line("post_through", 0, 60, *slow), line("post_through", 0, 20, *plain, "--steps", "1800"), line("post_tenth", 1, 70, *plain),
              line("ki", 0, 90, sets=("seen", "new_colour", "new_both")),
              line("joint", 0, 70, sets=("seen", "new_colour", "new_both")), line("leak", 0, 10)]
    lines += [dict(line(arm, 0, 50, "--steps", "400", "--alpha", "10", sets=("seen", "new_colour", "new_both")), steps=400)
              for arm in ("ki", "joint")]
    (told, *_), (name, base, mine), (few, short, of_few), (other, joint, theirs) = post.bases(lines)
    rows = post.rows_of(mine, base)                                  # (of 1,800 steps there is nothing with the line)
    assert ((told, name, few, other) == ("post-training, 600 steps", "post-training without a subtask, 600 steps",
                                         "joint training, 400 steps", "joint training, 800 steps")
            and [(label, len(ours), len(without)) for label, _, ours, without in rows] == [
                ("as it is", 2, 2), ("VLM rate 0.001", 1, 1), ("a tenth of the gradient", 1, 1)])
    assert [post.apart(*row[2:], "twelve kinds")[0] for row in rows] == pytest.approx([.3, .2, .1])
    [[label, _, ours, without]] = post.rows_of(theirs, joint)         # (all kinds of joint training are shown: there "shown" is "seen")
    assert (label == "as it is" and post.rate_of(ours, "shown kinds") == .9
            and post.apart(ours, without, "shown kinds")[0] == pytest.approx(.2))
    assert [(label, len(ours)) for label, _, ours, _ in post.rows_of(of_few, short)] == [("alpha 10", 1)]
    text = post.tables(lines)
    assert "| VLM rate 0.001 | 1 | 0.80 / 0.60: +0.20 [" in text and "| 50 / never |" in text and post.seconds_to(rows[0][2], .6) == "35"
    assert "joint training" in post.tables(lines, brief=True) and "[" not in post.tables(lines, brief=True)


def test_a_pair_began_at_the_same_generalist():
    """A seed's generalist may have been trained on two machines: what differs then is not the line alone."""
    ours, other = line("post", 0, 80), {**line("post", 0, 90), "vqa_before": {"where": .8}}
    assert post.pairs([other, line("post_through", 0, 50)]) == []
    [(_, [detached], _)] = post.pairs([other, ours, line("post_through", 0, 50)])
    assert detached is ours


def test_the_dial_is_read_off_the_shown_kinds_and_off_the_answers():
    lines = [line("post", 0, 70, "--no-subtask")]
    for rate, won in (("0.001", 60), ("0.003", 50), ("0.01", 40)):
        lines.append(line("post_through", 0, won, "--no-subtask", "--vlm-rate", rate, "--vlm-adam", rate))
        lines.append(line("post_held", 0, 99, "--no-subtask"))                     # (no point of the dial, though it keeps most)
        # What is lost elsewhere looks like a gain here.
        lines[-2]["success"]["shown"] = evaluate.outcome(np.arange(100) < 100 - won)
    assert [row.split(" | ")[1:6] for row in post.dial_table(lines).splitlines()[2:]] == [
        ["picked by the shown kinds", "0.01", "1", "0.60", "0.40"], ["keeps most answers", "0.001", "1", "0.40", "0.60"],
        ["none: with the detach", "-", "1", "0.70", "0.70"]]
