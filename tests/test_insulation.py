"""The point of the project: the flow loss reaches no VLM weight, the cross-entropy reaches all of them,
and every wrong place for the stop-gradient is told from the right one."""
import pytest
import torch

from nano_ki import decoder, probe, vit


def expert_sees(name, depth):
    """Whether a part of the VLM can change what the expert reads. What comes after the last K and V cannot."""
    return name not in ("head", *(f"layer {depth - 1} {p}" for p in ("q", "o", "mlp")))


def verdict(model, batch):
    """None if the model is insulated as the paper says, else what is wrong. The whole test is in here, so
    that planted mistakes can be shown to fail it."""
    model.insulate = True
    norms = probe.gradient_norms(model, batch)
    vlm = [name for name in probe.parts(model) if name != "expert"]
    leak = [name for name in vlm if norms["flow"][name] != 0]
    if leak:
        return f"flow reaches {leak[0]}"
    starved = [name for name in vlm if norms["fast"][name] == 0 or norms["text"][name] == 0]
    if starved:
        return f"cross-entropy does not reach {starved[0]}"
    if norms["flow"]["expert"] == 0:
        return "flow does not reach the expert"
    return None


def test_insulated_both_halves(model, batch):
    assert verdict(model, batch) is None


def test_parts_cover_every_parameter_once(model):
    ids = [id(p) for group in probe.parts(model).values() for p in group]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}


def test_without_the_stop_gradient_flow_reaches_all_that_the_expert_sees(model, batch):
    model.insulate = False
    flow = probe.gradient_norms(model, batch)["flow"]
    for name in probe.parts(model):
        sees = name == "expert" or expert_sees(name, model.config.depth)
        assert (flow[name] > 0) == sees, name


def test_cross_entropy_gradient_is_the_same_with_and_without(model, batch):
    model.insulate = True
    a = probe.gradient_norms(model, batch)
    model.insulate = False
    b = probe.gradient_norms(model, batch)
    assert a["fast"] == b["fast"] and a["text"] == b["text"]


def test_forward_values_are_equal_with_and_without(model, batch):
    out = []
    for model.insulate in (True, False):
        out.append(model.losses(batch, torch.Generator().manual_seed(0)))
    memories = [[x for kv in losses.pop("memory") for x in kv] for losses in out]
    assert all(torch.equal(out[0][k], out[1][k]) for k in out[0])
    assert all(torch.equal(a, b) and not a.requires_grad and b.requires_grad for a, b in zip(*memories, strict=True))


# Wrong placements found in public code. Each replaces memory_for_expert, or the attention of the VLM.

def keys_only(memory):
    return [(k.detach(), v) for k, v in memory]


def values_only(memory):
    return [(k, v.detach()) for k, v in memory]


def last_layer_only(memory):
    return [*memory[:-1], tuple(x.detach() for x in memory[-1])]


def nothing(memory):
    return memory


@pytest.mark.parametrize("wrong", [keys_only, values_only, last_layer_only, nothing])
def test_leaks_are_rejected(model, batch, wrong):
    model.memory_for_expert = wrong
    assert verdict(model, batch).startswith("flow reaches")


def test_detached_before_the_concatenation_is_rejected(model, batch, monkeypatch):
    """K and V detached for everybody: the flow gradient is 0, and so is that of the cross-entropy on the
    K and V maps. A test of the first half alone would pass."""
    def attend(q, k, v, mask=None):
        return original(q, k.detach(), v.detach(), mask)
    original = vit.attend
    monkeypatch.setattr(vit, "attend", attend)
    model.insulate = True
    norms = probe.gradient_norms(model, batch)
    assert all(norms["flow"][n] == 0 for n in norms["flow"] if n != "expert")
    assert "cross-entropy does not reach" in verdict(model, batch)


def test_hidden_state_detached_then_projected_is_rejected(model, batch, monkeypatch):
    """Row 2 of the table of mistakes: what is projected after the detach still trains the projections."""
    def forward(self, prefix, answer=None, layers=None, keep=0):
        x, length = prefix, prefix.shape[1]
        mask = None
        if answer is not None:
            x = torch.cat((x, self.embed(answer) + self.position[self.slots:self.slots + answer.shape[1]]), 1)
            mask = decoder.prefix_mask(length, answer.shape[1])
        memory = []
        for block in self.blocks:
            h = vit.norm(x[:, :length + keep].detach())
            memory.append((vit.norm(vit.heads(block.k(h))), vit.heads(block.v(h))))
            x, _ = block(x, mask)
        return self.head(vit.norm(x[:, length - 1:])), memory
    monkeypatch.setattr(decoder.VLM, "forward", forward)
    model.memory_for_expert = nothing
    assert verdict(model, batch) == "flow reaches layer 0 k"


def test_no_grad_around_the_vlm_is_rejected(model, batch, monkeypatch):
    forward = decoder.VLM.forward

    def without(self, *args, **options):
        with torch.no_grad():
            return forward(self, *args, **options)
    monkeypatch.setattr(decoder.VLM, "forward", without)
    assert verdict(model, batch).startswith("cross-entropy does not reach")


def test_closed_gates_hide_a_leak(tiny, data, batch):
    """Why the tests above open the gates: as made, the expert leaks nothing even without the detach."""
    from nano_ki.model import VLA
    torch.manual_seed(0)
    fresh = VLA(tiny, data.fast)
    fresh.insulate = False
    assert all(v == 0 for n, v in probe.gradient_norms(fresh, batch)["flow"].items() if n != "expert")
    probe.open_gates(fresh)
    assert probe.gradient_norms(fresh, batch)["flow"]["layer 0 v"] > 0


def test_each_part_is_clipped_on_its_own(tiny, data, tmp_path, monkeypatch):
    """A huge alpha must not shrink the VLM's step: with insulation the VLM's weights do not depend on it."""
    from dataclasses import replace

    from nano_ki import checkpoint, train
    weights = []
    for alpha in (1e-3, 1e3):
        config = replace(tiny, steps=3, alpha=alpha, out=str(tmp_path / str(alpha)))
        train.train(config, stop=lambda step: step == 2)
        weights.append(checkpoint.load_model(config.out).vlm.state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.parametrize("recipe", ["ki", "frozen"])
def test_several_updates_of_the_expert_leave_the_vlm_as_one_does(recipe, tmp_path, monkeypatch):
    """They share one pass of the VLM, whose weights end up with the same bits. The expert's do not."""
    from conftest import TINY

    from nano_ki import checkpoint, config, train
    flags = {k: v for k, v in TINY.items() if recipe == "ki" or k != "vlm_samples"}
    passes, weights, forward = [], [], decoder.VLM.forward
    original = train.train_step

    def step(*args):
        monkeypatch.setattr(decoder.VLM, "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
        try:
            return original(*args)
        finally:
            monkeypatch.setattr(decoder.VLM, "forward", forward)
    monkeypatch.setattr(train, "train_step", step)
    for updates in (1, 2, 4):
        c = config.make(**{**flags, "flow_draws": 4}, recipe=recipe, expert_updates=updates, steps=9, out=str(tmp_path / str(updates)))
        train.train(c, stop=lambda step: step == 3)
        weights.append(checkpoint.load(c.out)["model"])
        assert c.updates == updates
    assert len(passes) == 3 * 3 * (2 if recipe == "ki" else 1)          # (ki: one page, and two)
    for other in weights[1:]:
        assert all(torch.equal(weights[0][k], other[k]) for k in other if k.startswith("vlm"))
        assert any(not torch.equal(weights[0][k], other[k]) for k in other if k.startswith("expert"))
    assert any(not torch.equal(weights[1][k], weights[2][k]) for k in weights[1])


def test_a_step_is_so_many_updates_of_the_expert_on_one_memory(tiny, data, batch):
    """train_step against the same by hand, by plain gradient descent."""
    from dataclasses import replace

    from nano_ki import train
    from nano_ki.model import VLA
    config = replace(tiny, warmup=1, clip=1e9, steps=9)
    assert config.updates == 2
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(VLA(config, data.fast))
        probe.open_gates(models[-1])
    model, hand = models

    def descent(part):
        optimiser = torch.optim.SGD(part.parameters(), lr=.1)
        optimiser.param_groups[0]["peak"] = .1
        return part, [optimiser]
    parts = {name: descent(getattr(model, name)) for name in ("vlm", "expert")}
    noise = torch.Generator().manual_seed(5)
    train.train_step(model, parts, [batch], [torch.Generator().manual_seed(5)], config, 0)

    out = hand.losses(batch, noise)
    (out["ce"] + out["flow"]).backward()
    for losses in (out, None):
        if losses is None:                   # (the memory is that of the VLM before its update)
            hand.flow_loss(batch, out["memory"], noise).backward()
        with torch.no_grad():
            for p in hand.parameters():
                if p.grad is not None:
                    p -= .1 * p.grad
        hand.zero_grad(set_to_none=True)
    for (name, p), q in zip(model.named_parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5, msg=name)
