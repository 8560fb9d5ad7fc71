"""Arms, what is measured of them, and the statistics between them."""
import json
import subprocess
import sys
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

from nano_ki import checkpoint, episodes, evaluate, language, probe, train, world
from nano_ki import config as configuration
from nano_ki.language import BLANK, COLOUR, END, FIRST_FAST, NUMBER0, PAD, SHAPE
from nano_ki.model import VLA
from tutorials.studies import between, compare, more, watched
from tutorials.studies.leak import Leaky

SMALL = ["--steps", "2", "--episodes", "60", "--batch", "8", "--scenes", "2", "--check-every", "0"]


def fresh(config, data, policy=VLA):
    torch.manual_seed(0)
    vla = policy(config, data.fast)
    probe.open_gates(vla)
    return vla


# -- arms ---------------------------------------------------------------------------------------------


def test_every_arm_is_a_valid_run():
    for arm, (flags, _) in compare.ARMS.items():
        assert configuration.parse([*flags, "--device", "cpu"]).steps == (600 if "post" in flags else 800), arm


def test_a_larger_preset_keeps_its_own_steps():
    """800 and 600 steps are the laptop's: a preset that says how many is not cut to them, in one run or in a comparison."""
    steps = {(preset, recipe): configuration.make(device="cpu", preset=preset, recipe=recipe, pucks=3).steps
             for preset in ("laptop", "gpu") for recipe in ("ki", "generalist", "post")}
    assert list(steps.values()) == [600, 800, 600, configuration.GPU["steps"], configuration.GPU["steps"], 600]
    ran = []
    with (patch.object(compare, "run_all", lambda jobs, *rest: ran.extend(jobs) or 0),
          patch.object(compare, "side_by_side", lambda *_: None)):
        for more in ([], ["--preset", "gpu"], ["--preset", "gpu", "--steps", "7"]):
            with patch.object(sys, "argv", ["compare", "--arms", "ki", "--seeds", "0", *more]):
                compare.main()
    assert ([configuration.parse([*compare.ARMS[arm][0], *flags, "--device", "cpu"]).steps for arm, _, flags in ran]
            == [800, configuration.GPU["steps"], 7])


def test_post_training_fits_the_generalist_that_ships_on_a_gpu_too():
    """`--recipe post` alone, on a machine with a GPU: the sizes of data/generalist.pt, not those of the larger preset."""
    with patch.object(configuration, "devices", lambda: ["cuda", "cpu"]):
        post, ki = (configuration.make(recipe=recipe) for recipe in ("post", "ki"))
    assert ki.preset == "gpu" and post.preset == "laptop" and post.device == "cuda"
    assert checkpoint.begin(post.start, post)[1] is not None


@pytest.mark.slow
def test_post_training_arms_start_from_a_generalist_of_their_own_seed(tmp_path, capsys):
    tiny = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items() if k != "start" and k not in ("flow_draws", "vlm_samples")]
    args = ["compare", "--arms", "post", "--seeds", "1", "--results", str(tmp_path / "r.jsonl"),
            "--folder", str(tmp_path / "runs"), "--jobs", "1", *tiny, "--steps", "2", "--episodes", "300", "--no-subtask"]
    short = ["--steps", "2", "--batch", "8", "--scenes", "2"]
    with patch.object(sys, "argv", args), patch.dict(compare.ARMS, {"generalist": (["--recipe", "generalist", "--start=", *short], "")}):
        compare.main()
    made, lines = {p.name.split("_")[0]: p for p in (tmp_path / "runs").iterdir() if p.is_dir()}, compare.lines_of(tmp_path / "r.jsonl")
    assert [m["arm"] for m in lines] == ["generalist", "post"] and {m["seed"] for m in lines} == {1}
    first, second = (checkpoint.load(made[name]) for name in ("generalist", "post"))
    assert second["fast"].state() == first["fast"].state() and second["config"].kinds == "3"
    assert all(torch.equal(first["model"][k], v) for k, v in second["model"].items() if k.startswith("vlm."))
    assert "shown" in lines[1]["success"] and "shown" not in lines[0]["success"]
    assert first["config"].subtask and not second["config"].subtask          # (what is changed is changed in stage two)
    assert first["config"].episodes == second["config"].episodes == 300


def test_stage_one_has_the_world_and_the_sizes_of_stage_two_but_not_its_losses():
    plain = compare.stage_one([])
    both = ["--vlm-width", "32", "--no-holes", "--image=32", "--tokens", "binned"]
    own = ["--steps", "9", "--no-subtask", "--fast-loss", "--vlm-samples=3",
           "--kinds", "all", "--no-insulate", "--check-every", "0", "--scenes", "4"]
    assert compare.stage_one(own) == plain and compare.stage_one([*own, *both]) == [*plain, *both] == compare.stage_one([*both, *own])
    assert configuration.parse([*compare.ARMS["generalist"][0], *plain, *both, "--device", "cpu"]).subtask
    folders = {compare.folder_of("generalist", 0, compare.stage_one(flags), "runs") for flags in ([], own, both)}
    assert len(folders) == 2                               # one generalist serves all that is changed in stage two


def test_only_the_leaking_expert_sees_the_answer(tiny, data, batch):
    other = batch.answer.clone()
    real = other[:len(batch.chunk)] >= FIRST_FAST
    other[:len(batch.chunk)][real] = FIRST_FAST + (other[:len(batch.chunk)][real] - FIRST_FAST + 7) % data.fast.vocab
    for policy in (VLA, Leaky):
        vla = fresh(tiny, data, policy)
        a, b = (vla.losses(batch._replace(answer=x), torch.Generator().manual_seed(0))["flow"]
                for x in (batch.answer, other))
        assert (a != b) == (policy is Leaky)
        assert vla.act(batch.image[:2], batch.prompt[:2], torch.Generator().manual_seed(0)).isfinite().all()


def test_text_alone_can_teach_the_vlm(tiny):
    config = configuration.make(**TINY, fast_loss=False)
    robot = episodes.Data(config).batch().answer[:8]
    assert (robot[:, :2] >= NUMBER0).all() and (robot[:, :2] < FIRST_FAST).all() and (robot[:, 2] == END).all()      # the subtask
    config = replace(config, subtask=False)
    data = episodes.Data(config)
    batch = data.batch()
    assert (batch.answer[:len(batch.chunk)] == PAD).all() and (batch.answer[len(batch.chunk):] != PAD).any()
    losses = fresh(config, data).losses(batch, torch.Generator().manual_seed(0))
    assert losses["fast"] == 0 and losses["text"] == losses["ce"] > 0 and losses["flow"] > 0


@pytest.mark.parametrize("flags", [["--recipe", "pi0", "--subtask"], ["--no-fast-loss", "--vlm-samples", "0"], ["--no-fast-loss"],
                                   ["--no-fast-loss", "--no-subtask", "--two-pages", "1"],
                                   ["--no-subtask"], ["--recipe", "pi0_fast", "--subtask"],
                                   ["--recipe", "frozen", "--subtask"], ["--tokens", "binned"], ["--recipe", "frozen", "--blind"]])
def test_losses_of_every_mixture(flags):
    """Which losses there are, and what the expert reads, whatever is switched off."""
    given = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]
    c = configuration.parse([*given, *flags])
    data = episodes.Data(c)
    vla, batch = fresh(c, data), data.batch()
    losses = vla.losses(batch, torch.Generator().manual_seed(0))
    assert (losses["flow"] > 0) == c.flow_loss and (losses["ce"] > 0) == c.cross_entropy
    assert (losses["fast"] > 0) == c.fast_loss and (losses["text"] > 0) == c.cross_entropy
    if c.flow_loss:
        assert losses["memory"][0][0].shape == (8, 1, 36 + 7 + 2 * c.subtask, 32)
        assert vla.remember(batch.image, batch.prompt)[0][0].shape[2] == losses["memory"][0][0].shape[2]


def test_binned_tokens_are_one_for_each_number_and_as_exact_as_fast(tiny, data):
    binned = episodes.Data(replace(tiny, tokens="binned"))
    strokes = data.fast.restore(data.chunks)
    ids = binned.fast.encode(strokes)
    assert {len(t) for t in ids} == {strokes[0].size} and binned.tokens_per_chunk == strokes[0].size
    assert binned.fast.vocab == binned.fast.base and binned.fast.bound()[0] == data.fast.bound()[0]
    error = binned.fast.normalise(binned.fast.decode(ids)) - data.chunks
    assert np.abs(error).max() <= .5 / tiny.gamma + 1e-6
    assert type(binned.fast).from_state(binned.fast.state()).transform == "none"
    step = binned.fast.encode(strokes[0])                  # in order of time: a later number changes a later token
    moved = strokes[0].copy()
    moved[5, 1] += .9
    assert np.flatnonzero(binned.fast.encode(moved) != step).tolist() == [5 * 3 + 1]


# -- what is measured of them -------------------------------------------------------------------------


def test_the_scenes_one_by_one_make_up_the_rate():
    won = np.random.default_rng(0).random(37) < .4
    line = {"success": {"seen": evaluate.outcome(won)}}
    assert (compare.scenes(line, "success", "seen") == won).all()
    assert line["success"]["seen"]["rate"] == round(won.mean(), 4)


def test_commands_that_say_only_half(model):
    tables = evaluate.test_scenes("seen", 5)
    whole, half = (evaluate.inputs(model, tables, hide)[1] for hide in ((), (SHAPE,)))
    assert (half[:, SHAPE] == BLANK).all() and (half[:, COLOUR] == whole[:, COLOUR]).all()
    for hidden, part in ((SHAPE, 0), (COLOUR, 1)):         # what is left names one puck
        kind, target = (t := more.half_said(6, part)).kind[..., part], t.target
        assert ((kind == kind[np.arange(6), target][:, None]).sum(1) == 1).all(), hidden


def test_restricted_answers_stay_in_their_category(tiny, data):
    vlm = VLA(tiny, data.fast).vlm
    said = []
    original = type(vlm).generate
    vlm.generate = lambda *args: said.append(original(vlm, *args)) or said[-1]
    scores = evaluate.vqa(vlm, "book", 40, free=False)
    numbers, colours, shapes, sides = said
    assert ((numbers >= language.NUMBER0) & (numbers < language.NUMBER0 + language.BINS)).all() and numbers.shape == (40, 2)
    assert ((sides >= language.GOAL0) & (sides < language.GOAL0 + len(world.GOALS))).all()
    assert ((colours >= language.COLOUR0) & (colours < language.COLOUR0 + len(world.COLOURS))).all()
    assert ((shapes >= language.SHAPE0) & (shapes < language.SHAPE0 + len(world.SHAPES))).all()
    assert set(scores) == {"where", "colour", "shape", "went"}


def test_pull_is_what_the_losses_would_do_without_the_stop(model, batch):
    assert model.insulate
    pulled = watched.pull(model, batch)
    assert model.insulate and all(p.grad is None for p in model.parameters())
    model.insulate = False
    norms = probe.gradient_norms(model, batch)["flow"]
    for name in ("vision encoder", "layer 0"):
        total = sum(v ** 2 for k, v in norms.items() if k.startswith(name)) ** .5
        assert pulled[name]["flow"] == pytest.approx(total, rel=1e-3) and total > 0
    assert pulled["VLM"]["flow"] > pulled["layer 0"]["flow"] and -1 <= pulled["VLM"]["cosine"] <= 1


def test_moved_is_nothing_at_the_start(tiny, data):
    torch.manual_seed(tiny.seed)
    vla = VLA(tiny, data.fast)
    assert set(more.moved(vla).values()) == {0.}
    with torch.no_grad():
        vla.vlm.blocks[1].q.weight.mul_(1.5)
    assert {k: v for k, v in more.moved(vla).items() if v} == {"layer 1 q": .5}


def test_a_linear_map_reads_more_off_a_vlm_that_knows(data):
    c = configuration.make(device="cpu", preset="laptop", cloth=0.)
    known, empty = (checkpoint.new_model(replace(c, start=v), data.fast) for v in (c.start, ""))
    a, b = (more.readable(m, 600, 300) for m in (known, empty))
    assert a["place"] > b["place"] + .2 and a["colour"] > .9 and a["shape"] > b["shape"] + .2


def test_where_the_finger_is_to_land(data, monkeypatch):
    """The shipped VLM says it on a plain table; a perfect plan is off by nothing; who says nothing has no number."""
    c = configuration.make(device="cpu", preset="laptop", cloth=0.)
    known, silent = (checkpoint.new_model(replace(c, subtask=s), data.fast) for s in (True, False))
    monkeypatch.setattr(evaluate, "policy_of", lambda model: world.stroke)
    a, b = (more.landing(m, 60) for m in (known, silent))
    for name in world.OBJECTS:
        assert a[name]["said"] < .06 and b[name]["said"] is None, a
        assert a[name]["planned"] == b[name]["planned"] < 1e-5


# -- the statistics -----------------------------------------------------------------------------------


def lines(rates, seeds, n=400, arm="ki"):
    return [{"arm": arm, "seed": s, "flags": [], "success": {"seen": evaluate.outcome(
        np.random.default_rng((s, i)).random(n) < r)}} for s in seeds for i, r in enumerate(rates)]


def test_difference_is_paired():
    ours, theirs = lines([.8], (0, 1, 2)), lines([.8], (0, 1, 2))
    assert compare.difference(ours, theirs, "success", "seen") == (0, 0, 0)      # the same scenes were won
    theirs = lines([0, .5], (0, 1, 2))[1::2]
    d, low, high = compare.difference(ours, theirs, "success", "seen")
    assert low < .3 < high and .2 < d < .4 and high - low < .2
    assert compare.difference(ours, lines([.5], (7,)), "success", "seen") is None


def test_the_interval_covers():
    """Two arms of equal rate: 0 lies in about 95 % of the intervals."""
    inside = 0
    for k in range(60):
        ours, theirs = (lines([.6], range(100 * k + 10 * j, 100 * k + 10 * j + 3), 100) for j in (0, 1))
        for a, b in zip(ours, theirs, strict=True):
            b["seed"] = a["seed"]
        _, low, high = compare.difference(ours, theirs, "success", "seen", 300)
        inside += low <= 0 <= high
    assert 48 <= inside <= 60


def test_the_best_rate_is_chosen_in_validation_scenes():
    def found(rate, success):
        return {"arm": "ki", "flags": compare.rate_flags(rate), "success": {"seen": {"rate": success}}}
    search = [found(.001, .5), found(.01, .71), found(.003, .7), found(.03, .6)]
    assert compare.chosen(search, "ki") == ["--vlm-rate", "0.003", "--vlm-adam", "0.003"]     # nearly equal: the lower
    assert compare.chosen(search, "reference") == compare.chosen(search, "ki")
    assert compare.chosen([*search, found(.02, .73)], "ki")[1] == "0.01"
    assert compare.chosen(search, "pi0") == []


def test_sweeps_name_settings():
    assert compare.swept("alpha=.1,10") == [["--alpha", ".1"], ["--alpha", "10"]]
    assert compare.swept("fast-vocab=512") == [["--fast-vocab", "512"]]
    for bad in ("alpha", "beta=1", "seed=5,6", "out=x"):
        with pytest.raises(ValueError, match="SETTING=VALUE"):
            compare.swept(bad)


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_was(tmp_path):
    def run(*args):
        return subprocess.run([sys.executable, "-m", "tutorials.studies.compare", "--seeds", "0", "--jobs", "2", *args, "--results",
                               str(tmp_path / "r.jsonl"), "--folder", str(tmp_path / "runs"), *SMALL], cwd=ROOT, text=True,
                              capture_output=True, timeout=300)
    assert "1 runs to do" in run("--arms", "frozen").stdout
    # A run that was killed in the middle goes on from its checkpoint.
    rate = compare.chosen(compare.lines_of(compare.RESULTS / "rates.jsonl"), "pi0")
    out = compare.folder_of("pi0", 0, [*rate, "--check-every", str(compare.CHECK_EVERY), *SMALL], tmp_path / "runs")
    train.train(configuration.parse([*compare.ARMS["pi0"][0], *rate, *SMALL, "--device", "cpu", "--out", str(out)]),
                stop=lambda step: step == 1)
    done = run("--arms", "frozen", "pi0")
    assert done.returncode == 0 and "1 runs to do" in done.stdout, done.stderr
    page = (tmp_path / "runs" / "report.html").read_text()
    assert all(f'"name": "{arm}, seed 0"' in page for arm in ("frozen", "pi0"))
    result = checkpoint.read_metrics(tmp_path / "r.jsonl")
    assert [m["arm"] for m in result] == ["frozen", "pi0"]
    assert [m["step"] for m in checkpoint.read_metrics(out / "metrics.jsonl")] == [2]      # (log lines: at the end only)
    assert any("resumed" in line for line in (out / "metrics.jsonl").read_text().splitlines())
    for m in result:
        assert set(m["success"]) >= {*world.TEST_SETS, "five_pucks", "only_colour_said", "only_shape_said"}
        assert len(compare.scenes(m, "right_puck", "new_shape")) == 2 and m["readable"] and m["bend"] and m["moved"]
    budget = run("--arms", "frozen", "--budget", "2")                        # as many steps as two seconds hold
    line = checkpoint.read_metrics(tmp_path / "r.jsonl")[-1]
    assert budget.returncode == 0 and line["steps"] == int(line["flags"][-1]) > 2, budget.stderr
    refused = run("--arms", "joint", "--alpha", "-1")                        # before anything is begun
    assert refused.returncode == 2 and "must be 0 or more" in refused.stderr and "runs to do" not in refused.stdout
    failed = run("--arms", "joint", "--start", "/nowhere.pt")
    assert failed.returncode == 1 and "1 of 1 runs failed" in failed.stderr and "no VLM at /nowhere.pt" in failed.stderr


@pytest.mark.slow
def test_a_search_turns_the_same_rates_for_each_arm(tmp_path):
    done = subprocess.run([sys.executable, "-m", "tutorials.studies.compare", "--search", "--arms", "ki", "frozen", "--jobs", "2",
                           "--results", str(tmp_path / "r.jsonl"), "--folder", str(tmp_path / "runs"), *SMALL],
                          cwd=ROOT, text=True, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = checkpoint.read_metrics(tmp_path / "r.jsonl")
    assert sorted(compare.rate_of(m) for m in found if m["arm"] == "ki") == sorted(compare.GRID)
    assert all(m["seed"] == compare.SEARCH_SEED and "--validate" in m["flags"] for m in found)
    assert json.dumps(found[0]["success"]["seen"])


def test_validation_scenes_are_not_the_tests():
    a, b = (evaluate.test_scenes("seen", 20, seed) for seed in (evaluate.TEST_SEED, evaluate.VALIDATION_SEED))
    assert not np.isclose(a.puck, b.puck).any(2).any()


def test_shipped_vlm_answers_less_about_the_robots_table():
    c = configuration.make(device="cpu", preset="laptop")
    vlm = checkpoint.new_vlm(c)
    checkpoint.load_vlm(vlm, c.start, c)
    plain, cloth = (list(evaluate.vqa(vlm, "robot", 200, cloth=x).values())[:3] for x in (0., c.cloth))
    assert min(plain) > .95 and .3 < np.mean(cloth) < .8                     # the premise: it knows much, and not enough


def test_a_comparison_can_start_the_ways_between():
    arms = [arm for arm, program in compare.PROGRAMS.items() if "between" in program]
    assert len(arms) == len(between.WAYS)
    for arm in arms:
        assert between.checked(compare.config_of({"arm": arm, "flags": ["--no-subtask"]})).threads == 1
    with pytest.raises(ValueError, match="in one go"):
        between.checked(compare.config_of({"arm": "post_through", "flags": []}))


@pytest.mark.parametrize("way", list(between.WAYS))
def test_ways_between_the_line_and_no_line(way, data, batch):
    """Same forward values as without the line; the VLM's gradient is a share of it, or comes late, or is pulled back."""
    config = replace(configuration.make(**{**TINY, "vlm_samples": 0}, recipe="pi0", steps=4), subtask=True)
    few = batch._replace(image=batch.image[:8], prompt=batch.prompt[:8], answer=batch.answer[:8],
                         pages=batch.pages[:0], words=batch.words[:0], reply=batch.reply[:0])

    def gradients(policy, calls=1):
        vla = fresh(config, data, policy)
        for _ in range(calls):
            vla.zero_grad()
            out = vla(few, torch.Generator().manual_seed(0))
            out["flow"].backward()
        return out["flow"].item(), {name: p.grad for name, p in vla.vlm.named_parameters() if p.grad is not None}
    (loss, whole), (other, mine) = gradients(VLA), gradients(between.WAYS[way])
    assert loss == pytest.approx(other, rel=1e-5)
    if way == "late":
        assert not mine and set(gradients(between.Late, 3)[1]) == set(whole)
    else:
        factor = between.SHARE if way == "tenth" else 1.            # (nothing is apart yet, so that nothing is held)
        assert set(mine) == set(whole)
        assert all(torch.allclose(mine[name], factor * g, rtol=1e-3, atol=1e-6) for name, g in whole.items())
    if way == "held":
        vla = fresh(config, data, between.Held)
        before = vla(few, torch.Generator().manual_seed(0))["flow"].item()
        with torch.no_grad():
            vla.vlm.blocks[0].k.weight.add_(.5 * torch.randn_like(vla.vlm.blocks[0].k.weight))
        assert vla(few, torch.Generator().manual_seed(0))["flow"].item() > before and not any("first" in name for name in vla.state_dict())


def test_runs_that_differ_live_apart():
    """Each arm, seed and set of flags has a folder of its own; a search has one for each rate."""
    folder = compare.folder_of
    assert folder("generalist", 0, [], "r") != folder("generalist", 1, [], "r")
    for arm in ("generalist", "ki"):
        assert len({folder(arm, 0, ["--vlm-rate", rate, "--validate"], "r") for rate in ("0.003", "0.01")}) == 2
        assert folder(arm, 0, ["--steps", "9"], "r") != folder(arm, 0, [], "r")
