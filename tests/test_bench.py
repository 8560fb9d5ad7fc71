"""The formulas of bench.py against what PyTorch counts and what a small model really holds."""
import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nano_ki import config as configuration
from nano_ki import ranks
from nano_ki.episodes import Data
from nano_ki.language import FIRST_FAST
from nano_ki.model import VLA
from nano_ki.optim import optimisers
from tutorials.studies import bench

SIZES = [dict(), dict(vlm_width=64, depth=3, expert_width=48, flow_draws=3, rate=2, execute=16, image=64),
         dict(flow_draws=4, expert_updates=2, vlm_samples=9, two_pages=.5)]


def built(sizes, recipe="ki"):
    own = set() if recipe == "ki" else {"expert_updates"} if recipe == "joint" else {"vlm_samples"}
    own |= {"expert_updates"} if recipe in ("pi0", "pi0_fast") else set()      # (what a recipe decides, or cannot have)
    config = configuration.make(**{k: v for k, v in {**TINY, **sizes}.items() if k not in own}, recipe=recipe)
    data = Data(config)
    torch.manual_seed(0)
    model = VLA(config, data.fast)
    if not config.vlm_learns:
        model.vlm.requires_grad_(False)
    return config, data, model


def backward(model, batch):
    """The passes of one training step: those of the VLM, and all of the expert's."""
    out = model.losses(batch)
    (out["ce"] + out["flow"]).backward()
    for _ in range(1, model.config.updates if "memory" in out else 1):
        model(batch, memory=out["memory"])["flow"].backward()


@pytest.mark.parametrize("recipe", ["ki", "joint", "pi0", "pi0_fast", "frozen"])
@pytest.mark.parametrize("sizes", SIZES)
def test_counted_work_is_pytorchs_count(sizes, recipe):
    config, data, model = built(sizes, recipe)
    # The plain attention: what fused kernels compute twice is not work that the step needs.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        backward(model, data.batch())
    assert bench.step_flops(config, data) == counter.get_total_flops()


@pytest.mark.parametrize("sizes", SIZES)
def test_counted_weights_and_states_are_those_of_the_model(sizes):
    config, data, model = built(sizes)
    p = bench.parameters(config, FIRST_FAST + data.fast.vocab, data.fast.horizon * 3 + 3)
    assert p["vlm"] + p["vlm rest"] == sum(x.numel() for x in model.vlm.parameters())
    assert p["expert"] + p["expert rest"] == sum(x.numel() for x in model.expert.parameters())
    groups = optimisers(model.vlm, .01, .01) + optimisers(model.expert, .01, .01)
    backward(model, data.batch())
    held = [x for x in model.parameters()] + [x.grad for x in model.parameters()]
    for optimiser in groups:
        optimiser.step()
        held += [v for s in optimiser.state.values() for v in s.values() if v.ndim]
    assert bench.state_bytes(p, config) == sum(x.numel() * x.element_size() for x in held)


@pytest.mark.parametrize("sizes, share", [(SIZES[0], 1), (SIZES[1], 1), (SIZES[2], 1), ({**SIZES[1], "bfloat16": True}, bench.HALVED)])
def test_counted_activations_are_about_what_is_kept(sizes, share):
    config, data, model = built(sizes)
    kept, own = {}, {x.untyped_storage().data_ptr() for x in model.parameters()}

    def keep(x):
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x                # (held, so that no address is used twice)
        return x
    batch = data.batch()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = model(batch)
        (out["ce"] + out["flow"]).backward()
    measured = sum(x.untyped_storage().nbytes() for x in kept.values())
    if share < 1:                                                       # (copies of the weights in bfloat16)
        measured -= 2 * sum(x.numel() for x in model.parameters())
    counted = share * bench.activation_bytes(config, FIRST_FAST + data.fast.vocab, batch.answer.shape[1])
    assert counted == pytest.approx(measured, rel=.15)


def test_ddp_sends_each_gradient_once(tmp_path):
    """What the plan says of traffic starts from here: four bytes for each trained weight."""
    import torch.distributed as dist
    config, data, model = built(SIZES[0])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    sent = []
    try:
        spread = ranks.spread(model, False)

        def hook(state, bucket):
            sent.append(bucket.buffer().nbytes)
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future
        spread.register_comm_hook(None, hook)
        out = spread(data.batch())
        (out["ce"] + out["flow"]).backward()
    finally:
        dist.destroy_process_group()
    p = bench.parameters(config, FIRST_FAST + data.fast.vocab, data.fast.horizon * 3 + 3)
    assert sum(sent) == 4 * sum(p.values())
    one = bench.plan(config, 1, 400, 13, 49)
    two = bench.plan(config, 2, 400, 13, 49)
    assert one["ddp_gb"] == 0 and two["states_gb"] == one["states_gb"] / 2 and two["tokens"] == 2 * one["tokens"]


def test_the_planned_job_has_three_billion_parameters():
    c = configuration.make(device="cpu", preset="laptop", **bench.PLANNED)
    p = bench.parameters(c, bench.PLANNED_VOCABULARY, bench.PLANNED_LONGEST)
    assert 2.9e9 < p["vlm"] + p["vlm rest"] < 3.3e9


@pytest.mark.slow
def test_bench_runs(tmp_path):
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]
    done = subprocess.run([sys.executable, "-m", "tutorials.studies.bench", "--json", f"--save={tmp_path / 'b.json'}", *flags],
                          cwd=ROOT, text=True, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "b.json").read_text())
    assert set(bench.NAMES) - set(result) <= {"peak_gpu_mib"} and 0 < result["share_of_peak"] < 1
    assert "| training step, ms |" in bench.table(result)
