"""Several processes give the same step as one, and nothing is lost between them."""
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, TINY

from nano_ki import checkpoint, episodes, flow, model, ranks, train
from nano_ki import config as configuration
from nano_ki.language import FIRST_FAST
from tutorials.studies import bench

FLAGS = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]


def torchrun(count, *args, timeout=240):
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "-m",
                           "--", "nano_ki.train", *FLAGS, *map(str, args)], cwd=ROOT, text=True, capture_output=True,
                          timeout=timeout)
    return done


def weights(folder):
    return checkpoint.load(folder)["model"]


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Eight steps by one process, the batch in two shards; each step has two updates of the expert, and questions about two
    pages."""
    out = tmp_path_factory.mktemp("alone") / "r"
    config = configuration.make(**TINY, steps=9, shards=2, out=str(out))
    assert config.updates == 2 and len(episodes.Data(config).batch().reply) == 1
    train.train(config, stop=lambda step: step == 8)
    return out


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one_with_two_shards(alone, tmp_path):
    done = torchrun(2, "--steps=9", f"--out={tmp_path / 'r'}")
    assert done.returncode == 0, done.stderr[-2000:]
    saved = checkpoint.load(tmp_path / "r")
    assert saved["step"] == 9 and saved["config"].shards == 2
    assert checkpoint.read_metrics(tmp_path / "r" / "metrics.jsonl")[-1]["step"] == 9
    resumed = train.train(replace(checkpoint.load(alone)["config"], out=str(alone), resume=True))
    assert resumed["steps"] == 9 and resumed["ranks"] == 1
    assert same(saved["model"], weights(alone))                  # and one process finished what it began
    assert len(list((tmp_path / "r").glob("summary.json"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--recipe=frozen", "--vlm-samples=0"), ("--flow-draws=4", "--expert-updates=2", "--shards=4")])
def test_two_processes_do_several_updates_of_the_expert(flags, tmp_path):
    """On a frozen VLM, and where each process has two shards, whose memories it keeps. (More than two are added up in
    another order: close, not the same bits.)"""
    flags = ["--vlm-samples=8", "--two-pages=.5", "--steps=5", *flags]
    done = torchrun(2, *flags, f"--out={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr[-2000:]
    config = configuration.parse(["--shards=2", *FLAGS, *flags, f"--out={tmp_path / 'one'}"])
    assert config.updates == 2
    train.train(config)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert same(one, two) or config.shards > 2
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-2, rtol=1e-2)
    a, b = (next(m for m in reversed(checkpoint.read_metrics(tmp_path / name / "metrics.jsonl")) if "ce" in m) for name in ("one", "two"))
    for key in ("ce", "flow"):
        assert a[key] == pytest.approx(b[key], rel=2e-3)


@pytest.mark.slow
def test_two_processes_resume_what_one_began(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    config = configuration.make(**TINY, steps=7, shards=2, out=str(one))
    train.train(config)
    train.train(replace(config, out=str(two)), stop=lambda step: step == 3)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "nano_ki.train",
                           "--resume", f"--out={two}"], cwd=ROOT, text=True, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert same(weights(one), weights(two))


@pytest.mark.slow
def test_fsdp_follows_the_same_losses(alone, tmp_path):
    """Gradients and norms of cut-up matrices are added up in another order: close, not the same bits."""
    done = torchrun(2, "--steps=8", "--fsdp", f"--out={tmp_path / 'r'}")
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = (next(m for m in reversed(checkpoint.read_metrics(f / "metrics.jsonl")) if "ce" in m)
            for f in (tmp_path / "r", _logged(tmp_path)))
    assert a["step"] == b["step"] == 8
    for key in ("ce", "flow"):
        assert a[key] == pytest.approx(b[key], rel=2e-3)
    for part in ("vlm", "expert"):
        assert a["gradient"][part] == pytest.approx(b["gradient"][part], rel=1e-2)
    again = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "nano_ki.train",
                            "--resume", f"--out={tmp_path / 'r'}"], cwd=ROOT, text=True, capture_output=True, timeout=240)
    assert again.returncode == 0, again.stderr[-2000:]
    train.load_model(tmp_path / "r")                             # a whole model, for one process


def _logged(tmp_path):
    """The same eight steps by one process, to their end."""
    out = tmp_path / "plain"
    train.train(configuration.make(**TINY, steps=8, shards=2, out=str(out)))
    return out


def test_two_half_batches_are_one_whole_batch(tmp_path, monkeypatch, data):
    """N ranks with B / N samples give the step of one with B: the cross-entropy is averaged over the real tokens
    of all, whatever each shard has. By plain gradient descent, as Muon would amplify what rounding leaves."""
    config = configuration.make(**{**TINY, "warmup": 1, "clip": 1e9}, steps=2, shards=2, out=str(tmp_path / "two"))
    monkeypatch.setattr(train, "optimisers", lambda part, *rates: [_descent(part)])
    halves = episodes.Data(config)
    parts = [halves.batch(0, shard) for shard in (0, 1)]
    real = [int((b.answer != episodes.PAD).sum()) for b in parts]
    assert real[0] != real[1]                                    # else the mean of means would do
    draws, path, target = [], flow.path, flow.target
    monkeypatch.setattr(flow, "path", lambda action, noise, t: draws.append((noise, t)) or path(action, noise, t))
    train.train(config, stop=lambda step: True)
    assert len(draws) == 4                                       # two updates of the expert, two halves each
    draws = [[torch.cat(x) for x in zip(*pair, strict=True)] for pair in (draws[:2], draws[2:])]

    wide = max(b.answer.shape[1] for b in parts)
    answers = [torch.nn.functional.pad(b.answer, (0, wide - b.answer.shape[1])) for b in parts]
    robots = [torch.arange(len(b.image)) < len(b.chunk) for b in parts]

    def join(a, b):                                              # robot samples first, then questions
        return torch.cat([x[r] for x, r in zip((a, b), robots, strict=True)]
                         + [x[~r] for x, r in zip((a, b), robots, strict=True)])
    whole = model.Batch(*(join(*(getattr(b, name) for b in parts)) for name in ("image", "prompt")), join(*answers),
                        *(torch.cat([getattr(b, name) for b in parts]) for name in ("chunk", "pages", "words", "reply")))
    assert len(whole.reply) == 2
    monkeypatch.setattr(episodes.Data, "batch", lambda self, step=0, shard=0: whole)
    monkeypatch.setattr(flow, "sample_time", lambda *shape, **kw: draws[0][1])
    monkeypatch.setattr(flow, "path", lambda action, noise, t: path(action, *draws[0]))
    monkeypatch.setattr(flow, "target", lambda action, noise: target(action, draws.pop(0)[0]))
    train.train(replace(config, shards=1, out=str(tmp_path / "one")), stop=lambda step: True)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    fresh = train.new_model(replace(config), halves.fast).state_dict()
    assert max((one[k] - fresh[k]).abs().max() for k in one) > .01
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-5)


def _descent(part):
    optimiser = torch.optim.SGD(part.parameters(), lr=1.)
    optimiser.param_groups[0]["peak"] = 1.
    return optimiser


def test_workers_change_no_bit(tmp_path):
    runs = []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        train.train(configuration.make(**TINY, steps=5, workers=workers, out=str(out)), stop=lambda step: step == 4)
        runs.append(weights(out))
    assert same(*runs)


def test_shards_must_fit(monkeypatch, tiny):
    monkeypatch.setattr(ranks, "who", lambda: (1, 2))
    assert list(ranks.shares(4)) == [1, 3]
    with pytest.raises(ValueError, match="multiple of 2"):
        ranks.shares(3)
    with pytest.raises(ValueError, match="must divide"):
        configuration.make(**TINY, shards=3)
    with pytest.raises(ValueError, match="torchrun"):
        ranks.spread(None, fsdp=True)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [dict(bfloat16=True), dict(rate=2, pucks=4, execute=16), dict(image=64)])
def test_what_the_gpu_presets_change_works_here(flags, tmp_path):
    config = configuration.make(**{**TINY, **flags}, steps=3, out=str(tmp_path / "r"))
    summary = train.train(config)
    assert summary["success"]["seen"]["n"] == 4 and summary["data_wait_share"] < 1
    acted = train.load_model(tmp_path / "r")
    assert acted.fast.horizon == 16 * config.rate


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["gpu", "big"])
def test_gpu_presets_run_here_when_made_small(preset, tmp_path):
    """The same code path, compiled, in bfloat16, with workers, the VLM pre-trained first."""
    small = dict(vlm_width=64, vit_depth=1, depth=2, expert_width=32, batch=8, vlm_samples=4, episodes=100, scenes=2,
                 steps=3, workers=1, check_every=0, warmup=1)
    vlm = dict(start=str(tmp_path / "v.pt"), vlm_steps=2) if preset == "gpu" else {}
    summary = train.train(configuration.make(device="cpu", preset=preset, **small, **vlm, out=str(tmp_path / "r")))
    assert summary["preset"] == preset and summary["steps"] == 3
    assert (tmp_path / "v.pt").exists() == (preset == "gpu")


def test_presets_have_the_sizes_that_the_help_names():
    def millions(preset):
        c = configuration.make(device="cpu", preset=preset)
        p = bench.parameters(c, FIRST_FAST + c.fast_vocab, 99)
        return (p["vlm"] + p["vlm rest"]) / 1e6, sum(p.values()) / 1e6
    assert 10 <= millions("gpu")[0] <= 30 and millions("big")[1] >= 300
