"""The tokenizer on real robot actions (skipped where they are not), on random token strings and on rubbish."""
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, command

from nano_ki import fast as fast_file
from nano_ki.fast import FAST
from tutorials.studies.fast import read_episodes, report, windows

ROBOT = ROOT.parent / "shared" / "data" / "robot"
here = pytest.mark.skipif(not ROBOT.exists(), reason="robot data (../shared/data/robot) is not here")
# name, H, tokens per chunk and RMSE not to exceed (gamma 10, vocabulary 1024, last 20 % of the episodes)
ROWS = [("bridge_octo_debug_5hz", 5, 16.1, .0290), ("robosuite_handover_20hz", 20, 61.8, .0207),
        ("g1_inspire_30hz", 30, 60.9, .0142), ("g1_inspire_30hz", 50, 90.0, .0138),
        ("adroit_door_human", 50, 554, .0275)]


def split(name, horizon, stride=1):
    episodes = read_episodes(ROBOT / f"{name}.npz")
    cut = int(.8 * len(episodes))
    return windows(episodes[:cut], horizon, stride), windows(episodes[cut:], horizon, stride)


@here
@pytest.mark.slow
@pytest.mark.parametrize("name, horizon, tokens, rmse", ROWS)
def test_real_robots(name, horizon, tokens, rmse):
    train, test = split(name, horizon)
    fast = FAST.fit(train, 10, 1024)
    found = report(fast, test)
    assert found["tokens_mean"] <= tokens and found["rmse"] <= rmse + 5e-5
    assert found["saturated"] or found["max_error"] <= found["bound"] + 1e-9


@here
def test_one_robot_encodes_another():
    """What breaks the public tokenizer: symbols that the fit never saw."""
    train, _ = split("robosuite_lift_20hz", 20, 5)
    other = split("robosuite_handover_20hz", 20, 5)[0][:, :, :7]
    fast = FAST.fit(train, 10, 1024)
    assert fast.constant.any()                     # (what moves here and did not there cannot be said, and is counted)
    with pytest.warns(UserWarning, match="a dimension that was constant"):
        fast.encode(other)
    other[:, :, fast.constant] = fast.middle[fast.constant]
    inside = other[np.abs(fast.normalise(other)).max((1, 2)) <= 3]
    error = fast.normalise(fast.decode(fast.encode(inside))) - fast.normalise(inside)
    assert len(inside) > 20 and fast.saturated == 0 and np.abs(error).max() <= fast.bound()[1] + 1e-9


@pytest.fixture(scope="module")
def toy(data):
    return data.fast, data.fast.restore(data.chunks)


def test_a_hundred_thousand_random_strings_decode(toy):
    fast, _ = toy
    rng, size = np.random.default_rng(0), fast.horizon * fast.dims
    left, rows = np.full(100_000, size), []
    while (left > 0).any():                    # all strings grow by one token at a time
        fits = np.searchsorted(np.sort(fast.lengths), left, "right")         # tokens that still fit
        order = np.argsort(fast.lengths, kind="stable")
        pick = order[(rng.random(len(left)) * np.maximum(fits, 1)).astype(int)]
        rows.append(np.where(left > 0, pick, -1))
        left = left - np.where(left > 0, fast.lengths[pick], 0)
    grid = np.stack(rows, 1)
    assert (left == 0).all()
    for ids in grid[:20]:
        ids = ids[ids >= 0]
        assert all(fast.allowed(ids[:k])[ids[k]] for k in range(len(ids))) and fast.allowed(ids)[-1]
    chunks = fast.decode([ids[ids >= 0] for ids in grid])
    most = fast.alphabet / fast.gamma * np.abs(fast.dct).sum(0).max()
    assert np.isfinite(chunks).all() and np.abs(fast.normalise(chunks)).max() <= most + 1e-9


def test_a_thousand_malformed_inputs_each_get_a_value_error(toy, tmp_path):
    fast, chunks = toy
    rng, path, count = np.random.default_rng(0), tmp_path / "f.json", 0
    good_text, good_ids = json.dumps(fast.state()), fast.encode(chunks[0])

    def bad_chunk():
        c = chunks[rng.integers(len(chunks))].copy()
        kind = rng.integers(5)
        if kind == 0:
            c[rng.integers(16), rng.integers(3)] = rng.choice((np.nan, np.inf, -np.inf))
        elif kind == 1:
            c = np.zeros((int(rng.integers(0, 16)), 3))
        elif kind == 2:
            c = np.zeros((16, int(rng.choice((0, 1, 2, 4, 7)))))
        elif kind == 3:
            c = np.zeros((2, 2, 16, 3))
        else:
            c = c.astype(object)
            c[0, 0] = "x"
        fast.encode(c)

    def bad_ids():
        ids = good_ids.copy()
        kind = rng.integers(6)
        if kind == 0:
            ids[rng.integers(len(ids))] = rng.choice((-1, -999, fast.vocab, 10 ** 9))
        elif kind == 1:
            ids = ids + rng.random()
        elif kind == 2:
            ids = ids[:rng.integers(len(ids))]
        elif kind == 3:
            ids = np.append(ids, rng.integers(fast.vocab))
        elif kind == 4:
            ids = ids.astype(str)
        else:
            ids = [[int(i)] for i in ids] + [["a"]]
        fast.decode(ids)

    def bad_file():
        text, kind = good_text, rng.integers(3)
        if kind == 0:
            text = text[:rng.integers(len(text))]
        elif kind == 1:
            state = json.loads(text)
            key = rng.choice(list(state))
            state[key] = rng.choice(np.array([None, "x", -1, 1.5, [], {}, [[1]], "NaN"], object))
            text = json.dumps(state)
        else:
            at = rng.integers(len(text))
            text = text[:at] + "\x00" + text[at + 1:]
        path.write_text(text)
        FAST.load(path)

    for _ in range(400):
        for attempt in (bad_chunk, bad_ids, bad_file):
            with pytest.raises(ValueError) as error:
                attempt()
            assert len(str(error.value)) > 15
            count += 1
    assert count == 1200


def cli(*args):
    return command("tutorials.studies.fast", *args)


def test_command_line(toy, tmp_path):
    _, chunks = toy
    flat, lengths = chunks[:50].reshape(-1, 3), np.full(25, 32)
    np.savez(tmp_path / "toy.npz", flat=flat, lengths=lengths)
    done = cli(tmp_path / "toy.npz", "--horizon", 16, "--json", "--plot", tmp_path / "p.png")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for key in "tokens_mean tokens_p95 tokens_max naive rmse max_error bound saturated fit_s encode_ms decode_ms".split():
        assert key in said
    fast = FAST.load(tmp_path / "toy.fast.json")
    again = report(fast, windows(np.split(flat, np.cumsum(lengths)[:-1])[20:], 16, 5))
    assert said["tokens_mean"] == pytest.approx(again["tokens_mean"], abs=1e-4) and said["naive"] == 48
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert "LeRobot" in cli("--help").stdout


@pytest.mark.parametrize("arrays, says", [
    ({"flat": np.zeros((9, 2))}, "lengths"), ({"flat": np.zeros((9, 2)), "lengths": [4, 4]}, "adding up to 8"),
    ({"flat": np.zeros(9), "lengths": [9]}, "shape"), ({"flat": np.full((9, 2), np.nan), "lengths": [9]}, "NaN"),
    ({"flat": np.zeros((9, 2)), "lengths": [4.5, 4.5]}, "whole numbers"), ({"flat": np.zeros((9, 2)), "lengths": [9]}, "long")])
def test_bad_files_get_a_clear_error(arrays, says, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    done = cli(tmp_path / "x.npz", "--horizon", 16)
    assert done.returncode != 0 and says in done.stderr and "Traceback" not in done.stderr


def test_the_file_needs_numpy_alone():
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'nano_ki')!r}); import fast; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert fast_file.VERSION == 2
