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
    sets = {s: won(min(1, speed)) for s in {*claims.SETS, *world.TEST_SETS}}
    return {"arm": arm, "seed": seed, "flags": list(flags), "steps": 1200, "train_seconds": 400., "checks": checks, "success": sets,
            "right_puck": sets, "vqa_before": answers, "vqa_before_robot": answers, "vqa_after": answers, "vqa_after_robot": answers,
            "vqa_restricted": {"book": answers, "robot": answers}, "readable": {"place": .5, "colour": .9, "shape": .6},
            "moved": {"vision encoder": .1, "head": .2}, "bend": {"seen": .01, "new_both": .02},
            "landing": {"seen": {"said": None if arm == "pi0" else .03, "planned": .05}}}


def test_the_page_and_readme_are_made_from_the_lines(monkeypatch, tmp_path):
    plots = {p.name: p.read_bytes() for p in RESULTS.glob("*.png")}
    assert claims.page() == claims.PAGE.read_text()
    assert plots == {p.name: p.read_bytes() for p in RESULTS.glob("*.png")}
    assert f"<!-- arms -->\n{claims.readme_table()}\n<!-- /arms -->" in (ROOT / "README.md").read_text()
    lines = lines_of(RESULTS / "arms.jsonl") or [run()]
    wrong = [{**m, "success": {k: {**v, "scenes": "00" * (len(v["scenes"]) // 2)} for k, v in m["success"].items()}} for m in lines]
    monkeypatch.setattr(claims, "read", lambda name: wrong if name == "arms" else [])
    assert claims.readme_table() not in (ROOT / "README.md").read_text()


def test_every_question_makes_its_table_and_plot(monkeypatch, tmp_path):
    lines = [run(a, s, v) for a, v in (("ki", 1.), ("pi0", .8), ("joint", .9)) for s in (0, 1, 2)]
    rates = ["--vlm-rate", "0.001", "--vlm-adam", "0.001"]
    sweeps = {"alpha": ["--alpha", "10"], "data": ["--episodes", "300"], "kinds": ["--kinds", "3"], "rates": rates, "arms-four-kinds": [],
              "teach": ["--gamma", "40"]}
    (tmp_path / "latency.jsonl").write_text("".join(json.dumps({"horizon": h, "by": by, "ms": 9.} | more) + "\n" for h in (8, 16, 32, 50)
                                                    for by, more in (("FAST", {"tokens": 7}), ("flow, 5 steps", {}))))
    (tmp_path / "first_world").mkdir()
    for name, flags in {**{f"first_world/{name}": flags for name, flags in sweeps.items()}, "rates": rates, "arms": [], "first_world/arms": []}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({**m, "flags": flags}) + "\n" for m in lines))
    slow = ["--vlm-rate", "0.001", "--vlm-adam", "0.001"]
    trained = [{**run(arm, seed, v, flags), "samples_a_second": 700 * v} for arm, v, flags in (("post", .9, ()), ("post_through", .4, ()), ("post_through", .8, slow))
               for seed in (0, 1)]
    for m in trained:
        m["success"]["shown"] = m["success"]["seen"]
    (tmp_path / "post.jsonl").write_text("".join(json.dumps(m) + "\n" for m in trained))
    (tmp_path / "expert.jsonl").write_text(json.dumps({"setting": "as it is", "ms_a_step": 100, "curve": [[25, 250, .5]]}) + "\n")
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    page = claims.page()
    (tmp_path / "first_world" / "speed.jsonl").write_text('{"arm": "ki", "seconds": 0.5}\n')
    assert "| ki | 3 |" in claims.faster(lines) and "| 500 |" in claims.faster(lines)
    assert claims.config_of(run(flags=["--gamma", "4", "--alpha", "2", "--gamma", "3"])).gamma == 3      # (the last one given)
    taught = claims.teach(lines)               # (a file of the first world has that world's default, .01)
    assert "| flow | 0.003 | 1200 | - | 3 |" in taught and "| flow, gamma 40 | 0.01 | 1200 | - | 3 |" in taught and "FAST" not in taught
    swept = claims.how_rich([run("ki", 0, .5, ["--kinds", "3"])])
    assert [re.match(r"\| ki \| (\w+) \| (\d) ", row).groups() for row in swept.splitlines()[2:]] == [("3", "1"), ("seen", "3")]
    assert [row.split("|")[1:5] for row in claims.ablation(lines).splitlines()[2:]] == [
        [" yes ", " yes ", " yes ", " joint "], [" yes ", " yes ", "  ", " ki "], ["  ", "  ", " yes ", " pi0 "]]
    assert "Not measured" not in page and page.count("\n## ") == len(claims.QUESTIONS)
    assert {p.name for p in tmp_path.glob("*.png")} == {q[3] for q in claims.QUESTIONS if q[3]}
    for block in re.findall(r"(?:^\|.*\n)+", page, re.M):                    # every row has the columns of its head
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}
        assert len(widths) == 1, block


def test_steps_to_a_level():
    assert claims.first_at([(100, .2), (200, .6), (300, .4)], .5) == pytest.approx(175)
    assert claims.first_at([(100, .2)], .5) is None
    ours, theirs = ([run(a, s, v) for s in (0, 1, 2)] for a, v in (("ki", 1.), ("pi0", .5)))
    assert claims.speed(claims.climb(ours), .5) == pytest.approx(500, rel=.15) and claims.speed(claims.climb(theirs), .5) == pytest.approx(1000, rel=.15)
    middle, low, high = map(float, re.findall(r"[\d.]+", claims.ratio(ours, theirs, .5)))
    assert low < 2 < high and low < middle < high and claims.ratio(ours, ours, .8).startswith("1.00")
    assert claims.ratio(ours, theirs, .9) == "-"


def test_the_map_pairs_runs_that_differ_by_the_line_alone():
    def line(arm, seed, won, *flags):
        outcome = evaluate.outcome(np.arange(100) < won)
        return {"arm": arm, "seed": seed, "flags": [*flags, "--check-every", "100"], "samples_a_second": 500, "train_seconds": 50., "checks": [{"seconds": 20., "success": {"seen": evaluate.outcome(np.arange(100) < won // 2)}}], "vqa_after": {"where": .9, "colour": .9, "shape": .9},
                "success": dict.fromkeys(("shown", "seen", "new_colour", "new_both"), outcome), "right_puck": dict.fromkeys(("new_colour", "new_both"), outcome)}
    lines = [line(arm, seed, 80 - 30 * (arm == post.WITHOUT)) for arm in (post.WITH, post.WITHOUT) for seed in (0, 1)]
    lines += [line(post.WITHOUT, 0, 60, "--vlm-rate", "0.001", "--vlm-adam", "0.001"), line(post.WITHOUT, 0, 20, "--steps", "1800")]
    found = post.pairs(lines)                    # (of 1,800 steps there is nothing with the line)
    assert [(at.vlm_rate, len(ours), len(theirs)) for at, ours, theirs in found] == [(.001, 1, 1), (.01, 2, 2)]
    assert post.apart(*found[1][1:], "twelve kinds")[0] == pytest.approx(.3) and post.apart(*found[0][1:], "shown")[0] == pytest.approx(.2)
    assert "| 600, 0.001 | 1 | 0.80 / 0.60: +0.20 [" in post.tables(lines) and "0.90 / 0.90 |" in post.tables(lines)
    assert "| 50 / never |" in post.tables(lines) and post.seconds_to(found[1][1], .6) == "35"
