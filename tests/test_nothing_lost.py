"""Crashes, full disks and rubbish: the last good checkpoint stays, and every refusal says why."""
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, command

from nano_ki import checkpoint, fast, language, play, train, world
from nano_ki import config as configuration
from tutorials.studies import fast as study

FLAGS = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def run_train(*args, **kw):
    return subprocess.run([sys.executable, "-m", "nano_ki.train", *map(str, args)], cwd=ROOT, text=True,
                          capture_output=True, timeout=240, **kw)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run stopped after 9 of 12 steps, with checkpoints of steps 9 and 8; and the weights of its end."""
    out = tmp_path_factory.mktemp("stopped") / "r"
    config = configuration.make(**TINY, steps=12, save_every=4, out=str(out))
    train.train(config, stop=lambda step: step == 9)
    train.train(replace(config, out=str(out.parent / "whole")))
    return out, checkpoint.load(out.parent / "whole")["model"]


def copied(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "r")
    return tmp_path / "r"


# -- checkpoints --------------------------------------------------------------------------------------


def test_a_checkpoint_holds_everything_and_two_are_kept(stopped):
    out, _ = stopped
    saved = [checkpoint.read(out / name) for name in (checkpoint.LATEST, checkpoint.BEFORE)]
    assert [s["step"] for s in saved] == [9, 8]
    assert set(saved[0]) == {"format", "config", "fast", "step", "seconds", "vqa_before", "model", "optimisers",
                             "versions"}
    assert len(saved[0]["optimisers"]) == 4 and set(saved[0]["versions"]) == {"python", "torch", "numpy"}
    assert not list(out.glob("*.part")) and not list(out.glob("*.new"))


@pytest.mark.parametrize("seed", range(3))
def test_going_on_from_a_random_step_gives_the_same_bits(seed, stopped, tmp_path):
    at = int(np.random.default_rng(seed).integers(1, 12))
    config = configuration.make(**TINY, steps=12, out=str(tmp_path / "r"))
    train.train(config, stop=lambda step: step == at)
    train.train(replace(config, resume=True))
    assert same(checkpoint.load(tmp_path / "r")["model"], stopped[1])


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone"])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(damage, stopped, tmp_path, capsys):
    out = copied(stopped, tmp_path)
    content = bytearray((out / checkpoint.LATEST).read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4                       # one bit of one weight
    elif damage != "gone":
        del content[0 if damage == "empty" else len(content) // 2:]
    (out / checkpoint.LATEST).write_bytes(content)
    if damage == "gone":                                      # killed between the two renames
        (out / checkpoint.LATEST).unlink()
    said = []
    assert checkpoint.load(out, said.append)["step"] == 8
    assert "using the checkpoint before" in said[0] and "step 8" in said[0]
    train.train(replace(checkpoint.load(out)["config"], out=str(out), resume=True))
    assert same(checkpoint.load(out)["model"], stopped[1])
    assert "warning: using the checkpoint before" in capsys.readouterr().out


@pytest.mark.parametrize("call", range(1, 4))
def test_dying_at_any_rename_leaves_a_whole_checkpoint(call, stopped, tmp_path, monkeypatch):
    out, calls, original = copied(stopped, tmp_path), [], os.replace

    class Killed(BaseException):
        pass

    def dying(*args):
        calls.append(args)
        if len(calls) == call:
            raise Killed
        original(*args)
    saved = checkpoint.load(out)
    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(Killed):
        checkpoint.save(out, saved["config"], saved["fast"], saved["model"], saved["optimisers"], 10, 0., {})
    monkeypatch.undo()
    assert checkpoint.load(out, lambda text: None)["step"] in (8, 9, 10)
    checkpoint.save(out, saved["config"], saved["fast"], saved["model"], saved["optimisers"], 11, 0., {})
    assert checkpoint.load(out)["step"] == 11


def test_a_checkpoint_with_one_thing_missing_or_of_another_kind_is_refused(stopped, tmp_path):
    out = copied(stopped, tmp_path)
    (out / checkpoint.BEFORE).unlink()
    good = torch.load(out / checkpoint.LATEST, weights_only=True)
    for key in good:
        for wrong in ("gone", None, "x", [1], {}):
            if (key, wrong) in (("versions", wrong), ("vqa_before", {})):
                continue                                          # (for people to read)
            torch.save({k: v if k != key else wrong for k, v in good.items() if k != key or wrong != "gone"},
                       out / checkpoint.LATEST)
            with pytest.raises(ValueError, match="--overwrite"):
                train.train(configuration.make(**TINY, steps=12, resume=True, out=str(out)))


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_payload_is_refused_and_not_run(stopped, tmp_path):
    out, owned = copied(stopped, tmp_path), tmp_path / "owned"
    torch.save({"format": checkpoint.FORMAT, "config": Payload(owned)}, out / checkpoint.LATEST)
    (out / checkpoint.BEFORE).write_bytes(pickle.dumps(Payload(owned)))
    with pytest.raises(ValueError, match="is not a whole"):
        checkpoint.load(out)
    with pytest.raises(ValueError, match="make it again"):
        checkpoint.load_vlm(None, out / checkpoint.LATEST, configuration.make(**TINY))
    assert not owned.exists()


def newest(out):
    """When the newer of the two checkpoints was written, in ns; 0 before the first. (Killed between two renames, a
    run has only the one before; it may also be renamed while we look.)"""
    times = [0]
    for name in (checkpoint.LATEST, checkpoint.BEFORE):
        try:
            times.append((out / name).stat().st_mtime_ns)
        except FileNotFoundError:
            pass
    return max(times)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path):
    """kill -9, writes included (every step is saved): it goes on each time, and ends with the same weights."""
    flags = [*FLAGS, "--steps=600", "--save-every=1"]
    done = run_train(*FLAGS, "--steps=600", "--save-every=600", f"--out={tmp_path / 'whole'}")
    assert done.returncode == 0, done.stderr
    rng, out, torn = np.random.default_rng(int(time.time())), tmp_path / "r", 0
    steps = []
    for kill in range(20):
        args = flags if kill == 0 else ["--resume"]
        child = subprocess.Popen([sys.executable, "-m", "nano_ki.train", *args, f"--out={out}"], cwd=ROOT,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = newest(out)
        while newest(out) == before:
            assert child.poll() is None
            time.sleep(.005)
        time.sleep(rng.uniform(0, .6))
        child.send_signal(signal.SIGKILL)
        child.wait()
        torn += bool(list(out.glob("*.part")) or list(out.glob("*.new")))
        steps.append(checkpoint.load(out, lambda text: None)["step"])
    assert steps == sorted(steps) and steps[-1] < 600, steps
    done = run_train("--resume", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert same(checkpoint.load(out)["model"], checkpoint.load(tmp_path / "whole")["model"])
    lines = checkpoint.read_metrics(out / "metrics.jsonl")
    assert [m["step"] for m in lines] == list(range(20, 601, 20))
    whole = checkpoint.read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [(m["ce"], m["flow"]) for m in lines] == [(m["ce"], m["flow"]) for m in whole]
    print(f"killed at steps {steps}; {torn} of 20 in the middle of a write")


@pytest.mark.slow
def test_sigterm_saves_like_ctrl_c(tmp_path):
    child = subprocess.Popen([sys.executable, "-m", "nano_ki.train", *FLAGS, "--steps=100000", "--workers=1",
                              f"--out={tmp_path / 'r'}"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True)
    for _ in range(2400):
        time.sleep(.05)
        if (tmp_path / "r" / "metrics.jsonl").exists() and (tmp_path / "r" / "metrics.jsonl").stat().st_size:
            break
    child.send_signal(signal.SIGTERM)
    text, _ = child.communicate(timeout=60)
    assert "go on with" in text and "Traceback" not in text and child.returncode == 0
    assert checkpoint.load(tmp_path / "r")["step"] >= 20


# -- full disks ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_disk_that_is_full_keeps_the_last_checkpoint(stopped, tmp_path):
    out = copied(stopped, tmp_path)
    before = {name: (out / name).read_bytes() for name in (checkpoint.LATEST, checkpoint.BEFORE)}

    def limit():                                              # no file may grow beyond 100 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    done = run_train("--resume", f"--out={out}", preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "free some space, then go on with --resume" in done.stderr
    assert {name: (out / name).read_bytes() for name in before} == before and not list(out.glob("*.part"))
    train.train(configuration.parse(["--resume", f"--out={out}"]))
    assert same(checkpoint.load(out)["model"], stopped[1])


def mounted(size, folder, command):
    """Run a command where `folder` is a file system of so many kB (in a mount space of its own)."""
    return subprocess.run(["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size={size}k tmpfs {folder} && {command}"],
                          cwd=ROOT, text=True, capture_output=True, timeout=240)


def can_mount():
    return shutil.which("unshare") and mounted(64, "/mnt", "true").returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="this user may not mount a small file system")
def test_no_space_on_the_device_or_in_shared_memory(stopped, tmp_path):
    python, flags = sys.executable, " ".join(FLAGS)
    (tmp_path / "small").mkdir()
    done = mounted(2500, tmp_path / "small", f"{python} -m nano_ki.train {flags} --steps=9 --save-every=1 "
                   f"--out={tmp_path / 'small'}; ls {tmp_path / 'small'}; dd if=/dev/zero of={tmp_path / 'small'}/x "
                   f"bs=1k count=9 2>&1; {python} -c \"from nano_ki import checkpoint; "
                   f"print('step', checkpoint.load('{tmp_path / 'small'}')['step'])\"")
    assert "No space left on device" in done.stderr and "free some space" in done.stderr
    assert "step 1" in done.stdout or "step 2" in done.stdout, done.stdout
    out = tmp_path / "r"
    run = copied(stopped, tmp_path)
    for path in (out / checkpoint.LATEST, out / checkpoint.BEFORE):
        assert path.exists()
    before = (run / checkpoint.LATEST).read_bytes()
    for size in (16, 400):                # too little for a lock; too little for a batch
        done = mounted(size, "/dev/shm", f"{python} -m nano_ki.train {flags} --workers=2 --batch=64 "
                       f"--out={tmp_path / str(size)}")
        assert done.returncode == 1 and "use --workers 0" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr.split("error: ")[-1]
    assert (run / checkpoint.LATEST).read_bytes() == before


@pytest.mark.parametrize("out", ["/proc/nano_ki/run", "/dev/null/run", "\0", "x" * 300])
def test_a_folder_that_cannot_be_made(out, tiny):
    with pytest.raises((OSError, ValueError), match="--out|null"):
        train.train(replace(tiny, out=out))


# -- metrics ------------------------------------------------------------------------------------------


def test_metrics_only_grow(stopped, tmp_path):
    out = copied(stopped, tmp_path)
    path = out / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 10, "ce": 1}\n{"step": 11, "c')      # past the checkpoint, torn
    before = path.read_bytes()
    train.train(replace(checkpoint.load(out)["config"], out=str(out), resume=True))
    assert path.read_bytes().startswith(before + b'\n{"resumed": 9}\n')
    assert [m["step"] for m in checkpoint.read_metrics(path)] == [12]


@pytest.mark.parametrize("text, steps", [(b"", []), (b"\xff\xfe{", []), (b'{"step": 1}\n[3]\nnull\n{"step": 2}', [1, 2]),
                                         (b'{"step": 5}\n{"st\n{"resumed": 4}\n{"step": 5}\n{"step', [5])])
def test_every_reader_of_metrics_tolerates_what_a_crash_leaves(text, steps, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(text)
    assert [m["step"] for m in checkpoint.read_metrics(tmp_path / "metrics.jsonl")] == steps


# -- rubbish ------------------------------------------------------------------------------------------

VALUES = ["", "x", "-1", "nan", "inf", "-inf", "1e400", "0", "[]", "None", "9" * 25, "1e-400", "0x10", "½", "'", "-0.0",
          "true", "1,5", " 3", "\0", "\ud800", "--", "3.5"]


def bad_flags(rng, _):
    """Flags: a refusal of the parser, or a configuration that passes its own check."""
    names = [configuration.flag(name) for name in configuration.helps()[0]]
    args = []
    for _ in range(rng.integers(1, 4)):
        name = rng.choice(names) if rng.random() < .8 else rng.choice(["--stepz", "-x", "--no", "--step", "ki", "--no-steps"])
        args += [str(name), VALUES[rng.integers(len(VALUES))]][:1 + (rng.random() < .9)]
    config = configuration.parse(args)
    configuration.check(config)
    assert all(np.isfinite(v) for v in vars(config).values() if isinstance(v, float))
    return "taken"


def bad_instruction(rng, _):
    words = [*language.WORDS, "push", "the", "to", "☃", "", "99", "-3", "redd", "x" * 10_000, "<pad>", "\0", "💥", "push"]
    text = " ".join(str(w) for w in rng.choice(np.array(words, object), rng.integers(0, 9)))
    ids = language.parse(text)
    assert (language.parse(language.prompt_text(ids)) == ids).all()
    play.aim(world.sample(rng, 1), text, put=True)
    return "taken"


def bad_checkpoint(rng, files):
    content, tmp = bytearray(files["checkpoint"]), files["tmp"]
    kind = rng.integers(5)
    if kind == 0:
        content = content[:rng.integers(len(content))]
    elif kind == 1:
        for at in rng.integers(len(content), size=rng.integers(1, 4)):
            content[at] ^= int(rng.integers(1, 256))
    elif kind == 2:
        content = bytearray(rng.bytes(rng.integers(0, 3000)))
    else:
        saved = torch.load(io.BytesIO(content), weights_only=True)
        at = saved if kind == 3 else saved["config"] if rng.random() < .7 else saved["model"]
        key = rng.choice(list(at))
        if rng.random() < .3:
            del at[key]
        else:
            at[key] = [None, "x", -1, [], {}, float("nan"), torch.zeros(2)][rng.integers(7)]
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        content = buffer.getvalue()
    (tmp / checkpoint.LATEST).write_bytes(content)
    model = checkpoint.load_model(tmp)
    if kind < 3:                                              # harmless bytes of the archive: the same model
        assert same(model.state_dict(), files["weights"])
    assert all(torch.isfinite(v.float()).all() for v in model.state_dict().values())
    return "taken"


def bad_tokenizer(rng, files):
    text = bytearray(files["tokenizer"])
    kind = rng.integers(3)
    if kind == 0:
        text = text[:rng.integers(len(text))]
    elif kind == 1:
        text[rng.integers(len(text))] = int(rng.integers(256))
    else:
        text = bytearray(rng.bytes(rng.integers(0, 400)))
    (files["tmp"] / "f.json").write_bytes(text)
    again = fast.FAST.load(files["tmp"] / "f.json")
    assert again.state() == json.loads(files["tokenizer"])    # white space, or the same byte
    return "taken"


def bad_episodes(rng, files):
    flat, lengths = rng.normal(size=(40, 3)), np.array([20, 20])
    path, kind = files["tmp"] / "e.npz", rng.integers(7)
    if kind == 0:
        flat[rng.integers(40), 0] = rng.choice((np.nan, np.inf))
    elif kind == 1:
        lengths = rng.choice(np.array([[20, 19], [-20, 60], [41, 0]]))
    elif kind == 2:
        lengths = rng.choice(np.array([20.5, 19.5])) * np.ones(2)
    elif kind == 3:
        flat = flat[..., None]
    elif kind == 4:
        flat = flat.astype(object)
    np.savez(path, **({"flat": flat, "lengths": lengths} if kind != 5 else {"other": flat}))
    if kind == 6:
        content = bytearray(path.read_bytes())
        path.write_bytes(content[:rng.integers(len(content))])
    study.windows(study.read_episodes(path), 16, 1)
    return "taken"


@pytest.mark.parametrize("attempt, count, most_taken", [
    (bad_flags, 300, .25), (bad_instruction, 300, .02), (bad_checkpoint, 200, .35), (bad_tokenizer, 150, .1),
    (bad_episodes, 150, 0.)])
def test_a_thousand_malformed_inputs(attempt, count, most_taken, stopped, tmp_path, capsys):
    """Each gets a refusal with a reason (or was harmless after all, which `attempt` checks): no other error."""
    out, _ = stopped
    files = {"checkpoint": (out / checkpoint.LATEST).read_bytes(), "tmp": tmp_path,
             "weights": checkpoint.load(out)["model"], "tokenizer": json.dumps(checkpoint.load(out)["fast"].state()).encode()}
    rng, taken = np.random.default_rng(0), 0
    for _ in range(count):
        try:
            taken += attempt(rng, files) == "taken"
        except SystemExit as stop:                            # the parser: a usage line, then the reason
            assert stop.code == 2 and "error: " in capsys.readouterr().err
        except ValueError as error:
            assert len(str(error)) > 15, repr(error)
    assert taken <= most_taken * count


@pytest.mark.slow
def test_every_command_refuses_rubbish_in_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"rubbish")
    (tmp_path / "e.npz").write_bytes(b"PK\x03\x04rubbish")
    rubbish = [["nano_ki.train", "--resume", "--out", tmp_path / "run"], ["nano_ki.evaluate", tmp_path / "run"],
               ["nano_ki.evaluate", tmp_path / "nowhere"], ["nano_ki.probe", "--run", tmp_path / "run"],
               ["tutorials.studies.fast", tmp_path / "e.npz"], ["tutorials.studies.fast", tmp_path / "nowhere.npz"],
               ["nano_ki.pretrain", "--steps", "0"], ["nano_ki.pretrain", "--rate", "nan"],
               ["nano_ki.train", "--start", tmp_path / "e.npz", "--out", tmp_path / "new"],
               ["tutorials.studies.bench", "--start", "nowhere.pt"], ["tutorials.studies.compare", "--seeds", "x"]]
    for module, *args in rubbish:
        done = command(module, *args)
        assert done.returncode in (1, 2) and "error: " in done.stderr and "Traceback" not in done.stderr, (module, args,
                                                                                                           done.stderr)


def test_a_stored_zip_without_our_pickle_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / checkpoint.LATEST, "w") as z:
        z.writestr("archive/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match="is not a whole"):
        checkpoint.read(tmp_path / checkpoint.LATEST)
