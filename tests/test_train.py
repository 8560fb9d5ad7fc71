"""The loop: same bits, stop and go on, what a run leaves behind, and bad input that loses nothing."""
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace

import pytest
import torch
from conftest import ROOT, TINY, command

from nano_ki import checkpoint, draw, evaluate, language, probe, train, world
from nano_ki import config as configuration
from nano_ki.config import Config
from tutorials.studies import bench


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished tiny run: its folder and its summary."""
    out = tmp_path_factory.mktemp("run") / "a"
    summary = train.train(configuration.make(**TINY, steps=20, out=str(out)))
    return out, summary


def test_a_run_leaves_what_readme_says(run):
    out, summary = run
    assert sorted(os.listdir(out)) == sorted(set(checkpoint.FILES) - {"checkpoint-before.pt"})      # (one checkpoint only)
    assert summary == json.loads((out / "summary.json").read_text())
    for key in ("recipe preset device seed steps train_seconds total_seconds peak_rss_mib parameters "
                "tokens_per_chunk success right_puck vqa_before vqa_after ms_per_chunk").split():
        assert key in summary
    assert set(summary["success"]) == set(summary["right_puck"]) == set(world.TEST_SETS)
    seen = summary["success"]["seen"]
    assert set(seen) == {"rate", "low", "high", "n", "scenes"} and len(seen["scenes"]) == 2 * -(-seen["n"] // 8)
    assert set(summary["vqa_before"]) == set(summary["vqa_after"]) == {"where", "colour", "shape", "went"}
    assert set(summary["parameters"]) == {"vlm", "expert"}
    assert min(summary["ms_per_chunk"].values()) > 0
    assert asdict(checkpoint.load(out)["config"]) == json.loads(
        (out / "config.json").read_text())
    assert [m["step"] for m in checkpoint.read_metrics(out / "metrics.jsonl")] == [20]


def test_stop_and_resume_gives_the_same_bits(run, tmp_path, tiny):
    whole, _ = run
    config = replace(tiny, steps=20, out=str(tmp_path / "b"))
    assert train.train(config, stop=lambda step: step == 10) is None
    assert not same(weights(tmp_path / "b"), weights(whole))
    train.train(replace(config, resume=True))
    assert same(weights(tmp_path / "b"), weights(whole))
    again = replace(config, out=str(tmp_path / "c"), seed=1)
    train.train(again)
    assert not same(weights(tmp_path / "c"), weights(whole))


def test_a_run_can_be_evaluated_again(run):
    out, summary = run
    model = checkpoint.load_model(out)
    again = evaluate.measure(model)
    assert again["success"] == summary["success"] and again["vqa_after"] == summary["vqa_after"]


@pytest.mark.parametrize("recipe, trained", [("ki", "both"), ("joint", "both"), ("pi0", "both"),
                                             ("pi0_fast", "vlm"), ("frozen", "expert")])
def test_every_recipe_trains_what_it_says(recipe, trained, tmp_path):
    config = configuration.make(**{k: v for k, v in TINY.items() if k != "vlm_samples"}, recipe=recipe,
                                steps=3, out=str(tmp_path / "r"))
    seen = []

    class Stop(Exception):
        pass

    def look(step):
        seen.append(step)
        return step == 3
    original, models = train.new_model, []
    try:
        def keep(*a):
            models.append(original(*a))
            models.append({k: v.clone() for k, v in models[0].state_dict().items()})
            return models[0]
        train.new_model = keep
        assert train.train(config, stop=look) is None
    finally:
        train.new_model = original
    now, before = models[0].state_dict(), models[1]
    for part in ("vlm", "expert"):
        changed = any(not torch.equal(now[k], before[k]) for k in now if k.startswith(part))
        assert changed == (trained in (part, "both")), part


def test_summary_of_a_flow_free_recipe_has_no_flow(tmp_path):
    config = configuration.make(**{k: v for k, v in TINY.items() if k != "vlm_samples"}, recipe="pi0_fast",
                                steps=2, out=str(tmp_path / "r"))
    assert train.train(config)["ms_per_chunk"]["flow"] is None


def test_non_finite_loss_stops_and_keeps_the_last_checkpoint(tmp_path, tiny):
    out = tmp_path / "r"
    config = replace(tiny, steps=20, out=str(out))
    train.train(config, stop=lambda step: step == 5)
    good = weights(out)
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    saved["model"]["vlm.head.weight"][:] = float("nan")
    torch.save(saved, out / "checkpoint.pt")
    broken = (out / "checkpoint.pt").read_bytes()
    with pytest.raises(FloatingPointError, match="at step 5"):
        train.train(replace(config, resume=True))
    assert (out / "checkpoint.pt").read_bytes() == broken and good


def cli(*args, module="train"):
    return command(f"nano_ki.{module}", *args)


@pytest.mark.parametrize("args, says", [
    (["--stepz", "3"], "unrecognized arguments: --stepz"), (["--recipe", "kii"], "choose from"),
    (["--preset", "huge"], "choose from"), (["--step", "3"], "unrecognized"), (["--steps", "0"], "above 0"),
    (["--image", "50"], "multiple of 8"), (["--recipe", "generalist", "--no-fast-loss"], "nothing that could act"),
    (["--expert-sees-fast"], "unrecognized"),
    (["--recipe", "joint", "--expert-updates", "2"], "use --insulate, or 1"), (["--expert-updates", "3"], "a multiple of --expert-updates"),
    (["--recipe", "pi0", "--expert-updates", "2"], "use --insulate, or 1"), (["--two-pages", "1.5"], "a share"),
    (["--robot-questions", "2"], "a share"), (["--blind"], "add --no-subtask"),
    (["--execute", "99"], "16 waypoints"), (["--alpha", "x"], "invalid float"),
    (["--no-flow-loss", "--no-fast-loss", "--vlm-samples", "0"], "nothing that could act"),
    (["--resume"], "needs --out"), (["--ship", "data"], "a folder; name a file"),
    (["--out", "runs/x", "--start", "./runs/x"], "choose another --out"),
    (["--resume", "--out", "x", "--steps", "3"], "drop steps")])
def test_bad_flags_get_a_clear_error(args, says, capsys):
    with pytest.raises(SystemExit) as stop:
        configuration.parse(args)
    assert stop.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize("args, says", [(["--start", "nowhere.pt"], "python -m nano_ki.pretrain"),
                                        (["--vlm-width", "96"], "choose another --start")])
def test_errors_on_the_command_line_are_one_line(args, says, tmp_path):
    done = cli(*args, "--episodes", "50", "--out", str(tmp_path / "r"))
    assert done.returncode == 1 and says in done.stderr and done.stderr.startswith("error: ")


def test_a_folder_in_use_is_never_overwritten(run, tiny, tmp_path):
    out, _ = run
    before = (out / "summary.json").read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite"):
        train.train(replace(tiny, out=str(out)))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="--overwrite"):
        train.train(replace(tiny, out=str(tmp_path / "notes")))
    train.train(replace(tiny, out=str(tmp_path / "notes"), overwrite=True, steps=1))
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"
    assert (out / "summary.json").read_bytes() == before


def test_without_out_each_run_gets_its_own_folder(tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    assert [str(checkpoint.open_folder(tiny)) for _ in range(2)] == ["runs/ki-001", "runs/ki-002"]


def test_bad_checkpoints_are_refused(run, tmp_path):
    out, _ = run
    good = (out / "checkpoint.pt").read_bytes()
    with pytest.raises(FileNotFoundError, match="train a run first"):
        checkpoint.load_model(tmp_path / "nothing")
    torch.save({"weights": 3}, tmp_path / "foreign")
    torch.save({**torch.load(out / "checkpoint.pt", weights_only=True), "model": {}}, tmp_path / "empty")
    texts = {"cut": good[:len(good) // 2], "text": b"hello", "none": b"",
             "foreign": (tmp_path / "foreign").read_bytes(), "empty": (tmp_path / "empty").read_bytes(),
             "code": b"cos\nsystem\n(S'touch /tmp/owned'\ntR."}
    for name, content in texts.items():
        folder = tmp_path / f"run-{name}"
        folder.mkdir()
        (folder / "checkpoint.pt").write_bytes(content)
        with pytest.raises(ValueError, match="checkpoint"):
            checkpoint.load_model(folder)


def test_bad_vlm_files_are_refused(run, tmp_path, tiny):
    vlm = checkpoint.new_vlm(tiny)
    path = tmp_path / "v.pt"
    checkpoint.save_vlm(vlm, path, tiny)
    other = checkpoint.new_vlm(tiny, fast_vocab=50)
    checkpoint.load_vlm(other, path, tiny)
    assert torch.equal(other.embed.weight[:language.FIRST_FAST], vlm.embed.weight)
    stored = torch.load(path, weights_only=True)
    for change, says in (({"words": ["a"]}, "other words"), ({"weights": {}}, "other weights"), ({"sizes": {}}, "another --start"),
                         ({"format": 0}, "not a whole")):
        torch.save({**stored, **change}, path)
        with pytest.raises(ValueError, match=says):
            checkpoint.load_vlm(other, path, tiny)
    path.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(ValueError, match="make it again"):
        checkpoint.load_vlm(other, path, tiny)


@pytest.fixture(scope="module")
def generalist(tmp_path_factory):
    """The folder of a tiny generalist."""
    out = str(tmp_path_factory.mktemp("generalist"))
    train.train(configuration.make(**TINY, recipe="generalist", steps=2, out=out))
    return out


@pytest.mark.slow
def test_post_training_starts_from_a_generalist(tmp_path):
    """Its VLM and tokenizer come from a run's folder, or from the file that it shipped. With the stop-gradient they stay."""
    file, tiny = tmp_path / "g.pt", {**TINY, "episodes": 200}
    train.train(configuration.make(**tiny, recipe="generalist", steps=2, out=str(tmp_path / "g"), ship=str(file)))
    first, ends, tiny["vlm_samples"] = checkpoint.load(tmp_path / "g"), {}, 0
    for name, given in (("folder", dict(start=str(tmp_path / "g"))), ("file", dict(start=str(file))),
                        ("through", dict(start=str(file), insulate=False))):
        c = configuration.make(**{**tiny, "recipe": "post", "steps": 3, "out": str(tmp_path / name), **given})
        summary = train.train(c)
        ends[name] = checkpoint.load(tmp_path / name)
        assert ends[name]["fast"].state() == first["fast"].state() and summary["samples_a_second"] > 0
    same = {name: {k for k, v in end["model"].items() if torch.equal(v, first["model"][k])} for name, end in ends.items()}
    vlm = {k for k in first["model"] if k.startswith("vlm.")}
    assert vlm <= same["folder"] == same["file"] < set(first["model"]) and not vlm <= same["through"]
    assert all(torch.equal(v, ends["file"]["model"][k]) for k, v in ends["folder"]["model"].items())
    made = json.loads((tmp_path / "g.pt.json").read_text())
    assert made["command"].startswith("python -m nano_ki.train") and made["recipe"] == "generalist" and made["commit"] and made["success"]
    assert checkpoint.load_model(tmp_path / "folder").said == language.LANDING
    for change in (dict(gamma=4.), dict(fast_vocab=300), dict(tokens="binned"), dict(depth=3)):
        with pytest.raises(ValueError, match="choose another --start"):
            train.train(configuration.make(**{**tiny, "recipe": "ki", "start": str(file),
                                              "out": str(tmp_path / "no"), "overwrite": True, **change}))
    with pytest.raises(ValueError, match="holds other weights"):               # (its words are more than a book's)
        checkpoint.load_vlm(checkpoint.new_vlm(c), file, c)
    train.train(replace(c, start="", out=str(tmp_path / "half")), stop=lambda step: step == 1)
    with pytest.raises(ValueError, match="is not finished; first: .* --resume"):
        checkpoint.begin(tmp_path / "half", c)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="train a run first"):
        checkpoint.begin(tmp_path / "empty", c)


@pytest.mark.parametrize("recipe", [name for name in configuration.RECIPES if name != "post"])
def test_every_recipe_may_start_from_a_generalist(recipe, generalist, tmp_path):
    tiny = {k: v for k, v in TINY.items() if k != "vlm_samples"}
    given = {"vlm_samples": 6} if recipe in ("ki", "joint", "generalist") else {}
    c = configuration.make(**{**tiny, **given, "recipe": recipe, "start": generalist, "steps": 3, "out": str(tmp_path / "r"), "scenes": 1})
    train.train(c)
    first, then = (checkpoint.load(folder) for folder in (generalist, tmp_path / "r"))
    moved = [k for k, v in first["model"].items() if k.startswith("vlm.") and not torch.equal(v, then["model"][k])]
    assert bool(moved) == (recipe != "frozen") and then["fast"].state() == first["fast"].state()


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "r"
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]
    child = subprocess.Popen([sys.executable, "-m", "nano_ki.train", *flags, "--steps=100000", f"--out={out}"],
                             cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for _ in range(300):
        time.sleep(.1)
        if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size:
            break
    child.send_signal(signal.SIGINT)
    text, _ = child.communicate(timeout=60)
    assert "go on with: python -m nano_ki.train --resume" in text and "Traceback" not in text
    step = checkpoint.load(out)["step"]
    assert step >= 20 and not list(out.glob("*.part"))


def test_metrics_readers_tolerate_a_torn_last_line(tmp_path):
    (tmp_path / "m").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [m["step"] for m in checkpoint.read_metrics(tmp_path / "m")] == [1, 2]


def test_every_field_is_a_flag_with_a_help_text():
    notes, headings = configuration.helps()
    assert set(notes) == set(headings) == {f.name for f in fields(Config)} and all(notes.values()) and all(headings.values())
    assert configuration.parse(["--no-insulate", "--alpha", "3"]).alpha == 3
    assert configuration.make(recipe="joint", insulate=True).insulate        # a flag beats the recipe
    with pytest.raises(ValueError, match="choose from"):
        configuration.make(recipe="x")


@pytest.mark.parametrize("given, updates", [
    (dict(), 4), (dict(flow_draws=2), 2), (dict(flow_draws=3), 1), (dict(flow_draws=6), 2), (dict(expert_updates=1), 1),
    (dict(flow_draws=6, expert_updates=3), 3), (dict(recipe="joint"), 1), (dict(recipe="pi0"), 1), (dict(recipe="frozen"), 4),
    (dict(recipe="joint", expert_updates=1), 1), (dict(recipe="frozen", expert_updates=2), 2)])
def test_updates_of_the_expert_share_a_memory_that_stays(given, updates):
    assert configuration.make(device="cpu", preset="laptop", **given).updates == updates


def test_wilson():
    assert evaluate.wilson(8, 10) == {"rate": .8, "low": .4902, "high": .9433, "n": 10}
    assert evaluate.wilson(0, 10)["low"] == 0 and evaluate.wilson(10, 10)["high"] == 1


def test_right_puck_is_the_one_that_moved_most():
    tables = evaluate.test_scenes("all", 50)
    other = tables.take(slice(None))
    other.target = (other.target + 1) % 3          # an expert that pushes the wrong puck

    def wrong(now):
        now = now.take(slice(None))
        now.target = (now.target + 1) % 3
        return world.stroke(now)
    end = evaluate.rollout(wrong, tables)
    assert world.success(end).mean() < .2 and evaluate.right_puck(tables, end).mean() < .2


def test_probe_prints_its_table():
    done = cli("--json", module="probe")
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert set(table) == {"insulated", "joint"} and set(table["joint"]) == set(probe.LOSSES)
    assert all(v == 0 for k, v in table["insulated"]["flow"].items() if k != "expert")
    assert table["joint"]["flow"]["vision encoder"] > 0


def test_curves_survive_empty_and_flat_data(tmp_path):
    draw.curves({"a": {}, "b": {"x": ([1], [2])}, "c": {"y": ([1, 2], [0, 0])}}, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 500


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@gpu
@pytest.mark.slow
def test_a_run_on_the_gpu(tmp_path):
    config = configuration.make(**{**TINY, "device": "cuda"}, steps=20, out=str(tmp_path / "g"))
    assert train.train(config)["device"] == "cuda"


@gpu
@pytest.mark.slow
def test_acting_as_a_cuda_graph_is_acting(model):
    model.cuda()
    one = evaluate.inputs(model, evaluate.test_scenes("seen", 1))
    other = evaluate.inputs(model, evaluate.test_scenes("new_both", 1))
    act, got = bench.graphed(model.act, *one), []
    for way in (act, model.act):
        torch.cuda.manual_seed(3)
        got.append(way(*other).clone())
    torch.testing.assert_close(*got, atol=1e-4, rtol=1e-4)


@gpu
@pytest.mark.slow
def test_the_gpu_preset_on_a_gpu(tmp_path):
    """A short run of the preset: the loader keeps up, and a chunk takes at most 10 ms."""
    config = configuration.make(device="cuda", preset="gpu", start="", steps=200, scenes=50, check_every=0,
                                out=str(tmp_path / "g"))
    summary = train.train(config)
    assert bench.latency(checkpoint.load_model(config.out, "cuda"))["flow"] <= 10 and summary["data_wait_share"] <= .02


def test_a_policy_ships_and_others_start_from_it(tmp_path):
    """--ship of a run with an expert writes the whole policy, with how it was made: it acts as the run does, and --start takes its VLM."""
    shipped = tmp_path / "policy.pt"
    train.train(configuration.make(**TINY, steps=4, out=str(tmp_path / "run"), ship=str(shipped)))
    ours, its = checkpoint.load_model(tmp_path / "run"), checkpoint.load_model(shipped)
    assert (all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), its.state_dict().values(), strict=True))
            and its.fast.state() == ours.fast.state())
    made = json.loads((tmp_path / "policy.pt.json").read_text())
    assert ({"command", "commit", "date", "success", "recipe"} <= set(made)
            and shipped.stat().st_size < (tmp_path / "run" / checkpoint.LATEST).stat().st_size)
    for start in (shipped, tmp_path / "run"):
        weights, fast = checkpoint.begin(start, configuration.make(**TINY))
        assert all(torch.equal(weights[name], value) for name, value in ours.vlm.state_dict().items()) and fast.state() == ours.fast.state()
    shipped.write_bytes(shipped.read_bytes()[:-2000])
    for read in (lambda: checkpoint.load_model(shipped), lambda: checkpoint.begin(shipped, configuration.make(**TINY))):
        with pytest.raises(ValueError, match="policy.pt is not a whole"):
            read()
