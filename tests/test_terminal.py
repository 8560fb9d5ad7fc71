"""What a program meets outside: signals, closed streams, full disks, a second run in its folder, systems that lack something."""
import ast
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from torch.utils._python_dispatch import TorchDispatchMode

from nano_ki import checkpoint, draw, evaluate, fast, pretrain, probe, program, ranks, train, world
from nano_ki import config as configuration
from tutorials.studies import watched

pytestmark = pytest.mark.slow          # (nearly all start processes)
SMALL = {**TINY, "depth": 1, "image": 16, "steps": 4, "scenes": 1, "euler_steps": 2}
FLAGS = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]
ENDS = "holds checkpoint.pt, config.json, metrics.jsonl, rollouts.gif, summary.json"


def start(*args, module="nano_ki.train", python=(), **options):
    """A command as a child process."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    return subprocess.Popen([sys.executable, *python, "-m", module, *map(str, args)], cwd=ROOT, **options)


def wait_for(condition, child, seconds=60):
    for _ in range(20 * seconds):
        if condition():
            return
        assert child.poll() is None, child.communicate()[0]
        time.sleep(.05)
    raise AssertionError("waited in vain")


def finished(out):
    return sorted(p.name for p in out.iterdir()) == sorted(set(checkpoint.FILES) - {checkpoint.BEFORE})


# -- streams, encodings, flags of the interpreter -----------------------------------------------------


@pytest.mark.parametrize("shell, python", [
    (">&- 2>&- <&-", ()), (">/dev/full 2>/dev/full", ("-OO", "-W", "error", "-bb")), ("2>&1 | head -1", ())],
    ids=["closed", "full and flags", "head"])
def test_training_needs_no_terminal(shell, python, tmp_path):
    """Its product are files: whatever the streams do, they get written."""
    command = " ".join([sys.executable, *python, "-m nano_ki.train", *FLAGS, f"--out={tmp_path / 'r'}"])
    subprocess.run(["bash", "-c", f"{command} {shell}"], cwd=ROOT, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):                                      # (`head` ends first)
        if (tmp_path / "r").exists() and finished(tmp_path / "r"):
            break
        time.sleep(.1)
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["steps"] == 4 and checkpoint.load(tmp_path / "r")["step"] == 4


def test_a_folder_whose_name_is_no_text_in_a_terminal_that_knows_ascii_only(tmp_path):
    out = os.fsencode(tmp_path) + b"/r\xff\xc3\xbc"
    done = subprocess.run([sys.executable, "-m", "nano_ki.train", *FLAGS, b"--out=" + out], cwd=ROOT, capture_output=True,
                          env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and ENDS in done.stdout.decode("ascii"), done.stderr[-2000:]
    done = subprocess.run([sys.executable, "-m", "nano_ki.play", out, "--html", out + b"/report.html"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0 and os.path.getsize(out + b"/report.html") > 10_000, done.stderr[-2000:]


def test_a_reader_that_has_enough_and_a_full_output_end_other_commands_in_one_line(tmp_path):
    command = f"{sys.executable} -m nano_ki.evaluate {tmp_path}/r --json"
    train.train(configuration.make(**SMALL, out=str(tmp_path / "r")))
    done = subprocess.run(["bash", "-c", f"{command} | head -c 1; {command} > /dev/full"], cwd=ROOT, text=True, capture_output=True)
    assert "Traceback" not in done.stderr and "No space left" in done.stderr and done.returncode == 1, done.stderr
    assert json.loads((tmp_path / "r" / "evaluation.json").read_text())["success"]        # written before it was printed


# -- asking it to stop --------------------------------------------------------------------------------


def test_a_terminal_that_closes_is_answered_at_once_and_the_step_is_saved(tmp_path):
    child = start(*FLAGS, "--steps=100000", f"--out={tmp_path / 'r'}")
    wait_for(lambda: (tmp_path / "r" / "metrics.jsonl").exists() and (tmp_path / "r" / "metrics.jsonl").stat().st_size, child)
    child.send_signal(signal.SIGHUP)
    text, _ = child.communicate(timeout=30)
    assert "stopping after this step" in text and "go on with: python -m nano_ki.train --resume" in text, text
    assert child.returncode == 0 and checkpoint.load(tmp_path / "r")["step"] >= 20 and not (tmp_path / "r" / checkpoint.CLAIM).exists()


@pytest.mark.parametrize("what", ["check", "evaluation"])
def test_ctrl_c_while_it_evaluates_loses_nothing_and_does_not_wait(what, tmp_path, monkeypatch, capsys):
    """Pressed inside the evaluation; the run goes on with the bits of one that was never stopped, its check included."""
    config = configuration.make(**{**SMALL, "steps": 6, "check_every": 3}, out=str(tmp_path / "a"))
    name, asked = {"check": "success", "evaluation": "measure"}[what], []

    def pressed(*args, **options):
        asked.append(1)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")
    monkeypatch.setattr(evaluate, name, pressed)
    assert train.train(config) is None and asked == [1]
    assert "go on with" in capsys.readouterr().out and checkpoint.load(config.out)["step"] == (3 if what == "check" else 6)
    monkeypatch.undo()
    train.train(replace(config, resume=True))
    train.train(replace(config, out=str(tmp_path / "b")))
    a, b = (checkpoint.load(tmp_path / n)["model"] for n in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)
    lines = [[m["step"] for m in checkpoint.read_metrics(tmp_path / n / "metrics.jsonl") if "success" in m] for n in "ab"]
    assert lines == [[3], [3]]


def test_the_second_press_does_not_wait_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    config = configuration.make(**{**SMALL, "steps": 9, "save_every": 2}, out=str(tmp_path / "r"))
    original, calls = train.train_step, []

    def step(*args):
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return original(*args)
    monkeypatch.setattr(train, "train_step", step)
    assert train.train(config) is None and checkpoint.load(tmp_path / "r")["step"] == 4


def test_signals_that_are_ignored_stay_ignored(tmp_path):
    """nohup: a terminal that closes is no reason to stop."""
    child = subprocess.Popen(
        ["nohup", sys.executable, "-m", "nano_ki.train", *FLAGS, "--steps=100000", f"--out={tmp_path / 'r'}"], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: (tmp_path / "r" / "metrics.jsonl").exists() and (tmp_path / "r" / "metrics.jsonl").stat().st_size, child)
    child.send_signal(signal.SIGHUP)
    time.sleep(.5)
    assert child.poll() is None
    child.terminate()
    assert "stopped after step" in child.communicate(timeout=30)[0]


def test_a_pre_training_that_was_stopped_goes_on_to_the_same_bits(tmp_path, capsys):
    config, outs = configuration.make(**SMALL), [tmp_path / "a.pt", tmp_path / "b.pt"]
    pretrain.pretrain(config, outs[0], 5, 4)
    assert pretrain.pretrain(config, outs[1], 5, 4, stop=lambda step: step == 2) is None
    assert not outs[1].exists() and "the same command goes on" in capsys.readouterr().out
    made = pretrain.pretrain(config, outs[1], 5, 4)
    a, b = (torch.load(p, weights_only=True)["weights"] for p in outs)
    assert all(torch.equal(a[k], b[k]) for k in a) and made["steps"] == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "a.pt.json", "b.pt", "b.pt.json"]


def test_a_missing_folder_is_made_and_a_file_is_none(tmp_path):
    pretrain.pretrain(configuration.make(**SMALL), tmp_path / "runs" / "new" / "a.pt", 1, 4)        # (as README has it)
    program.write_json(tmp_path / "more" / "b.json", {})
    assert (tmp_path / "runs" / "new" / "a.pt.json").exists() and (tmp_path / "more" / "b.json").exists()
    with pytest.raises(OSError, match="choose a folder"):
        program.write_json(tmp_path / "more" / "b.json" / "c.json", {})
    with pytest.raises(OSError, match="another folder"):
        pretrain.pretrain(configuration.make(**SMALL), tmp_path / "more" / "b.json" / "a.pt", 1, 4)


def test_other_settings_or_rubbish_do_not_go_on_from_a_stopped_pre_training(tmp_path, capsys):
    config, out = configuration.make(**SMALL), tmp_path / "a.pt"
    pretrain.pretrain(config, out, 5, 4, stop=lambda step: step == 2)
    with pytest.raises(ValueError, match="has another steps, seed; give the same flags, or delete it"):
        pretrain.pretrain(config, out, 3, 4, seed=1)
    assert "going on" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="no file"):
        pretrain.pretrain(config, tmp_path, 3, 4)
    (tmp_path / "a.pt.unfinished").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="delete it to start from nothing"):
        pretrain.pretrain(config, out, 3, 4, seed=1)


# -- two runs in one folder ---------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_refused_at_once(tmp_path):
    out = tmp_path / "r"
    child = start(*FLAGS, "--steps=100000", "--save-every=1", f"--out={out}")
    wait_for(lambda: (out / checkpoint.LATEST).exists(), child)
    before = time.time()
    for more in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(OSError, match=f"in use by process {child.pid}"):
            train.train(configuration.make(**{**SMALL, "steps": 9}, out=str(out), **more))
    assert time.time() - before < 5 and child.poll() is None
    child.kill()                                              # its claim stays, and is void
    child.wait()
    assert (out / checkpoint.CLAIM).exists()
    train.train(replace(checkpoint.load(out)["config"], out=str(out), resume=True), stop=lambda step: True)
    assert not (out / checkpoint.CLAIM).exists()


def test_a_run_that_cannot_begin_deletes_nothing(tmp_path):
    out = tmp_path / "r"
    train.train(configuration.make(**SMALL, out=str(out)))
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for wrong in ({"start": "/nowhere.pt"}, {"fast_vocab": 16}):
        with pytest.raises((ValueError, OSError)):
            train.train(configuration.make(**{**SMALL, **wrong}, out=str(out), overwrite=True))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    train.train(configuration.make(**{**SMALL, "steps": 2}, out=str(out), overwrite=True))
    assert [m["step"] for m in checkpoint.read_metrics(out / "metrics.jsonl")] == [2]


@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_run_stopped_before_its_first_step_does_not_offer_the_one_before(tmp_path, monkeypatch, capsys, stopped):
    """--resume would go on with the old run that --overwrite was to replace. Once a run has a checkpoint, it is offered."""
    out, config = tmp_path / "r", configuration.make(**SMALL, out=str(tmp_path / "r"))

    def stop(*given):
        raise stopped
    train.train(config)
    with monkeypatch.context() as m, pytest.raises(type(stopped)) as raised:
        m.setattr(train, "prepare", stop)
        train.train(replace(config, overwrite=True))
    assert "--resume" not in str(raised.value) + capsys.readouterr().out
    monkeypatch.setattr(train, "finish", stop)
    try:
        train.train(replace(config, overwrite=True))
        said = ""
    except OSError as error:
        said = str(error)
    assert f"--resume --out {out}" in said + capsys.readouterr().out


def test_a_signal_to_the_whole_group_is_one_signal(tmp_path):
    """As a shell, timeout or a cluster sends it: the workers that draw batches do not die of it before the run has saved."""
    child = start(*FLAGS, "--steps=100000", "--save-every=100000", "--workers=1", f"--out={tmp_path / 'r'}", start_new_session=True)
    wait_for(lambda: (tmp_path / "r" / "metrics.jsonl").exists() and (tmp_path / "r" / "metrics.jsonl").stat().st_size, child)
    os.killpg(child.pid, signal.SIGTERM)
    text, _ = child.communicate(timeout=60)
    assert "stopping after this step" in text and "stopped after step" in text and child.returncode == 0, text
    assert checkpoint.load(tmp_path / "r")["step"] >= 20


def test_an_interrupt_in_the_middle_of_a_write_is_no_disk_error(tmp_path):
    def write(f):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("PytorchStreamWriter failed") from None
    with pytest.raises(KeyboardInterrupt):
        program.write_whole(tmp_path / "x", write)
    with pytest.raises(OSError, match="no file"):
        program.write_whole(tmp_path, lambda f: None)
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_finds_no_space_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match="free some space"), program.claimed(tmp_path / "c", "x"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_claims_on_a_network_disk(tmp_path):
    """Of another machine nothing is known but when its claim was touched, by the disk's own clock."""
    claim = tmp_path / "running.json"
    claim.write_text(json.dumps(["elsewhere boot 4026531836", 12345, "99"]))
    with pytest.raises(OSError, match="in use by process 12345 on elsewhere"), program.claimed(claim, "x"):
        pass
    old = time.time() - program.STALE - 5
    os.utime(claim, (old, old))
    with program.claimed(claim, "x"):
        place, pid, _ = json.loads(claim.read_text())
        assert place.split()[0] == socket.gethostname() and pid == os.getpid()
    assert not claim.exists()


@pytest.mark.parametrize("content", ["", "[", "{}", "[1, 2]", "null", '["a", "b", "c"]'])
def test_a_torn_claim_is_stale_when_nobody_touches_it(content, tmp_path):
    claim = tmp_path / "running.json"
    claim.write_text(content)
    with pytest.raises(OSError, match="in use"), program.claimed(claim, "x"):
        pass
    os.utime(claim, (1, 1))
    with program.claimed(claim, "x"):
        pass


def test_a_number_that_another_process_has_now_is_no_claim(tmp_path):
    claim = tmp_path / "running.json"
    claim.write_text(json.dumps([program._place(), os.getppid(), "1"]))
    with program.claimed(claim, "x"), pytest.raises(OSError, match=f"process {os.getpid()}"), program.claimed(claim, "x"):
        pass


def test_an_owner_touches_its_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "BEAT", .05)
    with program.claimed(tmp_path / "c", "x"):
        os.utime(tmp_path / "c", (1, 1))
        time.sleep(.4)
        assert time.time() - (tmp_path / "c").stat().st_mtime < 5


# -- files --------------------------------------------------------------------------------------------


def test_every_picture_and_file_is_whole_or_not_there(tmp_path, monkeypatch):
    """On a disk that is full every writer says so in a sentence, and leaves no part of a file."""
    from PIL import Image
    toy = fast.FAST(4, [-1], [1], 2, 12, [])
    writers = {"curves": lambda p: draw.curves({"a": {"b": ([1, 2], [3, 4])}}, f"{p}.png"),
               "gif": lambda p: draw.save_gif([Image.new("RGB", (600, 600))] * 3, f"{p}.gif"),
               "json": lambda p: program.write_json(f"{p}.json", {"a": "x" * 50_000}), "fast": lambda p: toy.save(f"{p}.fast"),
               "vlm": lambda p: checkpoint.save_vlm(checkpoint.new_vlm(configuration.make(**SMALL)),
                                                    f"{p}.pt", configuration.make(**SMALL))}
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(os, "replace", full)
    for name, write in writers.items():
        with pytest.raises(OSError, match="cannot write .*No space left on device.*; free (some )?space"):
            write(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_gif_that_finds_no_space_costs_nothing_else(tmp_path, monkeypatch):
    """The summary is written before the pictures; the message says how to get them."""
    config = configuration.make(**SMALL, out=str(tmp_path / "r"))

    def full(*_):
        raise OSError("cannot write rollouts.gif (No space left on device); free some space")
    monkeypatch.setattr(draw, "save_gif", full)
    with pytest.raises(OSError, match="free some space, then go on with --resume --out"):
        train.train(config)
    first = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert first["success"] and not list((tmp_path / "r").glob("*.part"))
    monkeypatch.undo()
    again = train.train(replace(config, resume=True))
    assert finished(tmp_path / "r") and again["success"] == first["success"]


# -- systems that lack something ----------------------------------------------------------------------


class NoDoubles(TorchDispatchMode):
    """A device without float64 (Apple's): no operation may make one."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and x.dtype == torch.float64:
                raise TypeError(f"float64 in {function}: the device has none")
        return out


def test_no_float64_on_the_device(tmp_path, model, batch):
    with NoDoubles():
        train.train(configuration.make(**{**SMALL, "check_every": 2}, out=str(tmp_path / "r")))
        probe.gradient_norms(model, batch)
        watched.pull(model, batch)
    with pytest.raises(TypeError, match="float64"), NoDoubles():
        torch.zeros(2).double()


def test_without_git_resource_procfs_and_torch_distributed(tmp_path):
    """Windows has no `resource`, some builds of PyTorch have no distributed part; git need not be there."""
    code = ("import sys, os, runpy\n"
            "sys.modules['resource'] = None\n"
            "os.environ['PATH'] = ''\n"
            "import torch.distributed as dist\n"
            "dist.is_available = lambda: False\n"
            "import signal; del signal.SIGHUP\n"
            "del os.sysconf\n"
            "from nano_ki import pretrain, program, train\n"
            "from nano_ki import config as c\n"
            f"made = pretrain.pretrain(c.make(**{SMALL!r}), {str(tmp_path / 'v.pt')!r}, 2, 2)\n"
            f"summary = train.train(c.parse({FLAGS + [f'--out={tmp_path}/r']!r}))\n"
            "print(made['commit'], summary['peak_rss_mib'])\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "unknown None", done.stderr[-2000:]
    assert "peak memory unknown" in done.stdout and (tmp_path / "v.pt").exists()


def test_a_device_that_is_not_there_and_a_run_that_moves(tmp_path, capsys):
    for name in ("cuda", "mps"):
        with pytest.raises(SystemExit):
            configuration.parse(["--device", name])
        said = capsys.readouterr().err
        assert f"--device is {name}" in said and "none on this machine" in said and len(said.splitlines()) == 1
    out = tmp_path / "r"
    train.train(configuration.make(**SMALL, out=str(out)), stop=lambda step: step == 2)
    saved = torch.load(out / checkpoint.LATEST, weights_only=True)
    saved["config"] |= {"device": "cuda", "threads": 0}
    torch.save(saved, out / checkpoint.LATEST)                # a run of a machine with a GPU
    with pytest.raises(SystemExit):
        configuration.parse(["--resume", "--out", str(out), "--device", "mps"])
    summary = train.train(configuration.parse(["--resume", "--out", str(out)]))
    assert summary["device"] == "cpu" and "was on cuda, which is not here" in capsys.readouterr().out
    assert configuration.parse(["--resume", "--out", str(out), "--device", "cpu", "--threads", "1"]).device == "cpu"


def newer(node):
    """Whether Python 3.10 cannot read this (ast lets it pass): a star in an index, except*."""
    starred = isinstance(node, ast.Subscript) and any(isinstance(n, ast.Starred) for n in getattr(node.slice, "elts", ()))
    return starred or type(node).__name__ == "TryStar"


def test_the_whole_tree_is_of_the_lowest_python_and_readme_names_it():
    files = [p for folder in ("nano_ki", "tutorials", "tests") for p in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))
        assert not [n for n in ast.walk(tree) if newer(n)], path
        with warnings.catch_warnings():
            warnings.simplefilter("error")                    # (what later versions refuse is a warning before)
            compile(path.read_text(encoding="utf-8"), str(path), "exec")
    assert [newer(n) for n in ast.walk(ast.parse("x[:, *y]"))].count(True) == 1
    assert "Python 3.10 or newer" in (ROOT / "README.md").read_text()


def test_numbers_of_numpy_and_of_python_are_not_mixed():
    """numpy 1.26 does not shift its own 64-bit numbers by Python's; the seeds must be plain ints."""
    assert type(train.noise_seed(0, 1, 2)) is int and 0 <= train.noise_seed(0, 1, 2) < 2 ** 63
    assert train.noise_seed(0, 0, 0) == int(np.random.SeedSequence((0, 3, 0, 0)).generate_state(1, np.uint64)[0]) // 2


# -- settings -----------------------------------------------------------------------------------------


def test_every_number_has_bounds_that_its_help_states(capsys):
    from dataclasses import fields
    numbers = {f.name for f in fields(configuration.Config) if f.type in (int, float)}
    assert set(configuration.BOUNDS) == numbers
    with pytest.raises(SystemExit):
        configuration.parse(["--help"])
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    for name, (low, high) in configuration.BOUNDS.items():
        stated = re.search(rf"{configuration.flag(name)} [A-Z_]+ .*?([\d.e+-]+) to ([\d.e+-]+)\W", said)
        assert (float(stated[1]), float(stated[2])) == (pytest.approx(low), pytest.approx(high)), name
        assert low <= getattr(configuration.Config, name) <= high
        for value in (high * 10 + 10, low - 1, float("nan"), float("inf"), -float("inf"), 1e308):
            with pytest.raises(ValueError, match=f"^{configuration.flag(name)} is "):
                configuration.make(device="cpu", preset="laptop", **{name: value})


@pytest.mark.parametrize("args", [["--wobble=17"], ["--rate=100000"], ["--gamma=1e308"], ["--gamma=1e-9"], ["--cloth=1e39"],
                                  ["--vit-depth=2147483647"], ["--recipe=pi0_fast", "--alpha=1e308"], ["--threads=100000"]])
def test_numbers_that_mean_nothing_are_refused_in_one_line(args, capsys):
    with pytest.raises(SystemExit):
        configuration.parse(args)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and args[-1].split("=")[0] in said


def test_demonstrations_that_all_fail_say_what_to_change():
    from nano_ki import episodes
    with pytest.raises(ValueError, match="lower --wobble"):
        episodes.demonstrate(np.random.default_rng(0), 2, None, wobble=9.)


@pytest.mark.parametrize("flags", [["--flow-draws=4096", "--batch=4096"], ["--vlm-width=8192", "--depth=100"]])
def test_too_little_memory_is_one_line(flags, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (3 * 2 ** 30,) * 2)
    done = start(*FLAGS, *flags, f"--out={tmp_path / 'r'}", stderr=subprocess.PIPE, preexec_fn=limit)
    _, said = done.communicate(timeout=100)
    assert done.returncode == 1 and "Traceback" not in said
    assert said.splitlines()[-1].startswith("error: not enough memory"), said[-500:]


def test_no_search_is_endless():
    with pytest.raises(ValueError, match="find no place"):
        world.sample(np.random.default_rng(0), 4, pucks=20)
    loops = [(p.name, i) for p in (ROOT / "nano_ki").glob("*.py") for i, line in enumerate(p.read_text().splitlines(), 1)
             if re.match(r"\s*while (True|1)\b", line)]
    assert loops in ([], [("program.py", loops[0][1] if loops else 0)])          # (taking over a stale claim: two rounds at most)


def test_a_gripper_that_hardly_moves(recwarn):
    """It opens in .5 % of the steps, and trembles by 1e-4 otherwise: its opening is the motion."""
    rng = np.random.default_rng(0)
    open_ = np.repeat(rng.random(4000) < .005, 4)[:, None]
    arm = np.sin(np.linspace(0, 300, 16000))[:, None]
    flat = np.concatenate((arm, open_ + 1e-4 * rng.standard_normal((16000, 1))), 1)
    chunks = flat[:15990].reshape(-1, 30, 2)
    toy = fast.FAST.fit(chunks[:400])
    error = np.abs(toy.decode(toy.encode(chunks)) - chunks)[..., 1]
    assert toy.saturated == 0 and error.max() < .35 and not recwarn.list
    with pytest.warns(UserWarning, match="coefficients were clipped to the alphabet"):
        toy.encode(50 * chunks[:3])
    assert toy.saturated


# -- threads ------------------------------------------------------------------------------------------


def test_the_fastest_number_of_threads_is_taken(monkeypatch):
    """On a machine where two threads wait for each other, one; where they help, two."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    now = [0]
    monkeypatch.setattr(torch, "set_num_threads", lambda n: now.__setitem__(0, n))
    for slow in (1, 2):
        assert ranks.fastest_threads(lambda slow=slow: time.sleep(.03 if now[0] == slow else .005)) == 3 - slow


def test_acting_takes_one_thread_and_training_keeps_its_number(model, batch, tmp_path):
    seen, original = [], type(model.vlm).forward
    model.vlm.forward = lambda *a, **k: (seen.append(torch.get_num_threads()), original(model.vlm, *a, **k))[1]
    torch.set_num_threads(2)
    try:
        for robots in (1, 4):
            model.act(batch.image[:robots], batch.prompt[:robots])
            model.act_tokens(batch.image[:robots], batch.prompt[:robots])
        assert seen == [1, 1, 2, 2] and torch.get_num_threads() == 2
        config = configuration.make(**SMALL, threads=1, out=str(tmp_path / "r"))
        train.train(config, stop=lambda step: step == 2)
        assert torch.get_num_threads() == 2 and checkpoint.load(tmp_path / "r")["config"].threads == 1
        measured = replace(config, threads=0, out=str(tmp_path / "m"))
        train.train(measured, stop=lambda step: step == 2)
        kept = checkpoint.load(tmp_path / "m")["config"].threads
        assert kept in (1, 2)
        train.train(replace(measured, resume=True))
        assert checkpoint.load(tmp_path / "m")["config"].threads == kept
        assert train.train(replace(measured, resume=True))["threads"] == kept
    finally:
        torch.set_num_threads(1)


def test_claims_leave_no_thread_behind(tmp_path):
    before = threading.active_count()
    for _ in range(3):
        with program.claimed(tmp_path / "c", "x"):
            pass
    time.sleep(.2)
    assert threading.active_count() <= before
