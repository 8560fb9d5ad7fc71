"""Flow, masks, memory, acting: training and acting are the same computation."""
import pytest
import torch
import torch.nn.functional as F

from nano_ki import flow, language, optim, vit
from nano_ki.decoder import prefix_mask
from nano_ki.expert import draw_mask
from nano_ki.language import END, FIRST_FAST, PAD

# -- flow ---------------------------------------------------------------------------------------------


def test_path_ends_and_sign():
    action, noise = torch.randn(2, 4, 16, 3).unbind(0)
    zero, one = torch.zeros(4), torch.ones(4)
    assert torch.equal(flow.path(action, noise, zero), noise) and torch.equal(flow.path(action, noise, one), action)
    later = flow.path(action, noise, zero + .25)
    torch.testing.assert_close(later + .75 * flow.target(action, noise), action)    # forward with +v


def test_noise_levels_lean_to_noise():
    level = 1 - flow.sample_time(200_000, generator=torch.Generator().manual_seed(0))
    assert level.mean().item() == pytest.approx(.600, abs=.005)      # a known sampler bug gives .558
    assert level.min() >= .001 - 1e-6 and level.max() <= 1
    assert level.median().item() == pytest.approx(.5 ** (1 / 1.5), abs=.005)


def test_euler_is_exact_on_a_constant_field():
    action, noise = torch.randn(2, 5, 1, 16, 3).unbind(0)
    for steps in (1, 5, 10):
        out = flow.euler(lambda x, t: flow.target(action, noise), noise, flow.times(steps))
        torch.testing.assert_close(out, action, atol=1e-5, rtol=1e-5)


def test_euler_asks_at_the_times_that_training_samples():
    asked = []
    flow.euler(lambda x, t: asked.append(t[0, 0].item()) or torch.zeros_like(x), torch.zeros(2, 1, 16, 3), torch.linspace(0, 1, 6))
    assert asked == pytest.approx([0, .2, .4, .6, .8])
    for steps in (1, 2, 3, 10):              # each step is shorter than the one before, by as much
        long = flow.times(steps).diff()
        assert flow.times(steps)[[0, -1]].tolist() == [0, 1] and torch.allclose(long / long[-1], torch.arange(steps, 0, -1.))


def test_time_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="silently broadcast"):
        flow.path(torch.zeros(3, 1, 3, 3), torch.zeros(3, 1, 3, 3), torch.zeros(3))


def test_target_and_sampler_agree():
    """A velocity trained by the rule of losses() (here: the closed form for one known action) leads the
    sampler to that action; with the sign flipped it does not."""
    action = torch.randn(1, 1, 16, 3)

    def field(x, t):                       # E[action - noise | x_t] for a single action
        return (action - x) / (1 - t[..., None, None])
    out = flow.euler(field, torch.randn(4, 1, 16, 3), flow.times(10))
    torch.testing.assert_close(out, action.expand_as(out), atol=1e-4, rtol=1e-4)
    assert (flow.euler(lambda x, t: -field(x, t), torch.randn(4, 1, 16, 3), flow.times(10)) - action).abs().mean() > .5


# -- masks --------------------------------------------------------------------------------------------


def test_masks_are_the_literal_table():
    assert prefix_mask(3, 3).int().tolist() == [
        [1, 1, 1, 0, 0, 0],          # picture + prompt: all of the prefix, nothing else
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],          # answer: the prefix, and itself causally
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1]]
    assert draw_mask(2, 2, 2).int().tolist() == [
        [1, 1, 1, 1, 0, 0],          # action tokens: the prefix, and their own draw
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 1],
        [1, 1, 0, 0, 1, 1]]


def forward(model, batch):
    logits, memory = model.vlm(model.vlm.prefix(batch.image, batch.prompt), batch.answer, keep=2)
    x = torch.randn(12, 2, 16, 3, generator=torch.Generator().manual_seed(0))
    return logits, model.expert(x, torch.full((12, 2), .3), memory)


def test_fast_tokens_never_change_the_experts_output(model, batch):
    logits, velocity = forward(model, batch)
    answer = batch.answer.clone()
    answer[:, 2:] = (answer[:, 2:] + 7) % FIRST_FAST
    logits2, velocity2 = forward(model, batch._replace(answer=answer))
    assert torch.equal(velocity, velocity2) and not torch.allclose(logits, logits2)
    answer[:, 1] += 1                                                     # but the words where to land do
    assert not torch.allclose(velocity, forward(model, batch._replace(answer=answer))[1])
    changed = batch._replace(prompt=batch.prompt.roll(1, 0))
    assert not torch.allclose(velocity, forward(model, changed)[1])      # but the prompt does


def test_later_answer_tokens_never_change_earlier_logits(model, batch):
    logits, _ = forward(model, batch)
    for j in (0, 3):
        answer = batch.answer.clone()
        answer[:, j] = (answer[:, j] + 5) % FIRST_FAST
        changed, _ = forward(model, batch._replace(answer=answer))
        torch.testing.assert_close(logits[:, :j + 1], changed[:, :j + 1], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(logits[:, j + 1], changed[:, j + 1])


def test_every_answer_token_sees_every_prefix_token(model, batch):
    """Bidirectional prefix: the first picture token hears of the last word."""
    prefix = model.vlm.prefix(batch.image, batch.prompt).detach()
    base = model.vlm(prefix)[1][1][0]
    prefix[:, -1] += 1
    assert not torch.allclose(base[:, :, 0], model.vlm(prefix)[1][1][0][:, :, 0])


def test_padding_changes_nothing(model, batch):
    def losses(b):
        return model.losses(b, torch.Generator().manual_seed(0))
    short = losses(batch)
    long = losses(batch._replace(answer=F.pad(batch.answer, (0, 9), value=PAD)))
    for name in short:
        torch.testing.assert_close(short[name], long[name], atol=1e-5, rtol=1e-5)


def test_cross_entropy_is_the_mean_over_real_tokens(model, batch):
    out = model.losses(batch, torch.Generator().manual_seed(0))
    logits, _ = model.vlm(model.vlm.prefix(batch.image, batch.prompt), batch.answer[:, :-1])
    pages = [x for i in (0, 1) for x in (batch.pages[:, i], batch.words[:, i])]
    again, _ = model.vlm(model.vlm.prefix(*pages), batch.reply[:, :-1])
    total, count = [0, 0], [0, 0]
    for said, answer in ((logits, batch.answer), (again, batch.reply)):
        for i, row in enumerate(answer):
            for j, token in enumerate(row):
                if token != PAD:
                    text = bool(token < FIRST_FAST)        # (words, and <end>)
                    total[text] -= said[i, j].log_softmax(-1)[token].item()
                    count[text] += 1
    assert len(batch.reply) == 2
    assert out["fast"].item() == pytest.approx(total[0] / count[0], rel=1e-4)
    assert out["text"].item() == pytest.approx(total[1] / count[1], rel=1e-4)
    assert out["ce"].item() == pytest.approx(sum(total) / sum(count), rel=1e-4)


# -- the parts ----------------------------------------------------------------------------------------


def with_gradients(function, *inputs):
    """What a function gives with and without gradients, and the gradients of all its inputs (for one cotangent)."""
    plain = function(*inputs)
    asked = [x.clone().requires_grad_() for x in inputs]
    out = function(*asked)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
    return plain, out.detach(), *(x.grad for x in asked)


@pytest.mark.parametrize("size", [.1, 1, 30])
@pytest.mark.parametrize("wide", [32, 96])
def test_norm_is_pytorchs_with_and_without_gradients(size, wide):
    x = size * torch.randn(4, 5, wide, generator=torch.Generator().manual_seed(0))
    for view in (x, x.transpose(0, 1), x[..., :32]):
        ours = with_gradients(vit.norm, view)
        theirs = with_gradients(lambda x: F.rms_norm(x, x.shape[-1:]), view)
        assert torch.equal(ours[0], ours[1])
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5 / min(size, 1), rtol=1e-5)
    assert torch.equal(vit.norm(torch.zeros(2, 32, requires_grad=True)), torch.zeros(2, 32))


def test_squared_relu_is_the_square_of_relu_with_and_without_gradients():
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    for a, b in zip(with_gradients(vit.squared_relu, x), with_gradients(lambda x: F.relu(x).square(), x), strict=True):
        assert torch.equal(a, b)
    wide = x.double().requires_grad_()
    assert torch.autograd.gradcheck(vit.squared_relu, wide[:2, :5])


def test_queries_keys_and_values_in_one_product_are_three_products():
    """Of a block (all of one width) and of the expert (wide in, narrow out)."""
    for inputs, outputs in ((64, 64), (96, 64)):
        q, k, v = (vit.linear(inputs, outputs) for _ in range(3))
        h = torch.randn(3, 5, inputs)
        wanted = [F.rms_norm(vit.heads(q(h)), (32,)), F.rms_norm(vit.heads(k(h)), (32,)), vit.heads(v(h))]
        for a, b in zip(vit.queries_keys_values(h, q, k, v), wanted, strict=True):
            assert a.shape == (3, 2, 5, 32)
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        for i, layer in enumerate((q, k, v)):                        # each map gets its own gradient
            grads = [torch.autograd.grad((out[i] * torch.arange(32.)).sum(), layer.weight)[0]
                     for out in (vit.queries_keys_values(h, q, k, v), wanted)]
            torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


def test_modulation_that_is_known_is_the_one_that_is_computed(model, batch):
    _, memory = model.vlm(model.vlm.prefix(batch.image, batch.prompt))
    x, t = torch.randn(12, 2, 16, 3), torch.rand(12, 2)
    base, known = model.expert(x, t, memory), model.expert.modulation(t)
    depth, width = len(model.expert.blocks), model.expert.position.shape[1]
    assert known.shape == (12, 2, depth, 6, 1, width)
    assert torch.equal(model.expert(x, t, memory, known), base)
    assert torch.equal(model.expert(x, None, memory, known), base)          # (times count by it alone)
    one = model.expert.modulation(torch.tensor(.3))                         # of one time, for all
    torch.testing.assert_close(model.expert(x, None, memory, one), model.expert(x, torch.full((12, 2), .3), memory), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model.expert(x, None, memory, known.flip(2)), base)          # each layer has its own


def test_a_new_experts_layers_are_the_identity_and_its_scales_are_one(tiny, data):
    from nano_ki.expert import Expert
    expert = Expert(48, 32, 3, 16, 3)
    scale1, shift1, gate1, scale2, shift2, gate2 = expert.modulation(torch.rand(5)).unbind(-3)
    assert all((x == 1).all() for x in (scale1, scale2)) and not any(x.any() for x in (shift1, gate1, shift2, gate2))
    assert not expert(torch.randn(2, 1, 16, 3), torch.rand(2, 1), [(torch.randn(2, 1, 5, 32),) * 2] * 3).any()


def test_words_hear_the_word_before_and_pages_are_told_apart(model, batch):
    vlm, words = model.vlm, batch.prompt
    prefix = vlm.prefix(batch.image, words)
    base, other = prefix[:, 36:], words.clone()
    other[:, 6] = (other[:, 6] + 1) % FIRST_FAST
    changed = (vlm.prefix(batch.image, other)[:, 36:] != base).any(2)
    assert changed.tolist() == [[False] * 6 + [True]] * 12                 # (the first slot does not hear the last)
    other[:, 6], other[:, 2] = words[:, 6], (words[:, 2] + 1) % FIRST_FAST
    assert (vlm.prefix(batch.image, other)[:, 36:] != base).any(2).tolist() == [[False, False, True, True] + [False] * 3] * 12
    both = vlm.prefix(batch.image, words, batch.image, words)
    assert both.shape[1] == 2 * prefix.shape[1] and torch.equal(both[:, :43], prefix)
    torch.testing.assert_close(both[:, 43:] - prefix, (vlm.page[1] - vlm.page[0]).expand(12, 43, -1), atol=1e-5, rtol=1e-5)
    assert (vlm.page[0] != vlm.page[1]).all()


# -- one pass and many --------------------------------------------------------------------------------


def test_joint_pass_equals_cached_prefix_pass(model, batch):
    """The memory of a pass with an answer is that of a pass without; tokens one by one give its logits."""
    prefix = model.vlm.prefix(batch.image, batch.prompt)
    logits, memory = model.vlm(prefix, batch.answer)
    alone_logits, alone = model.vlm(prefix)
    for (k, v), (k2, v2) in zip(memory, alone, strict=True):
        torch.testing.assert_close(k, k2, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(v, v2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone_logits[:, 0], logits[:, 0], atol=1e-5, rtol=1e-5)
    past = alone
    for j in range(batch.answer.shape[1]):
        step, past = model.vlm.extend(batch.answer[:, j], j, past)
        torch.testing.assert_close(step, logits[:, j + 1], atol=1e-4, rtol=1e-4)


def test_many_draws_in_one_pass_equal_separate_passes(model, batch):
    _, memory = model.vlm(model.vlm.prefix(batch.image, batch.prompt))
    x, t = torch.randn(12, 3, 16, 3), torch.rand(12, 3)
    together = model.expert(x, t, memory)
    for r in range(3):
        torch.testing.assert_close(together[:, r:r + 1], model.expert(x[:, r:r + 1], t[:, r:r + 1], memory),
                                   atol=1e-5, rtol=1e-5)


def test_half_of_the_samples_go_by_the_subtask(model, batch):
    """Their expert is told the goal, where the finger is and where to land. It neither sees the picture nor hears which object."""
    def loss(tokens=(), samples=()):
        noise = torch.Generator().manual_seed(1)
        memory = [(k.clone(), v.clone()) for k, v in model.losses(batch, torch.Generator().manual_seed(0))["memory"]]
        for kv in memory:
            for x in kv:
                for token in tokens:
                    x[samples, :, token] += 3
        return model.flow_loss(batch, memory, noise).item()
    half, rest = list(range(1, 8, 2)), list(range(0, 8, 2))
    hidden, told = ([*range(36), 36 + language.VERB, 36 + language.SHAPE, 36 + language.COLOUR],
                    [36 + language.GOAL, 36 + language.X, 36 + language.Y, 36 + language.HEIGHT, 43, 44])
    assert sorted(hidden + told) == list(range(45)) and len(batch.chunk) == 8
    assert loss(hidden, half) == loss() and all(loss([token], rest) != loss() for token in hidden)
    assert all(loss([token], samples) != loss() for token in told for samples in (half, rest))
    model.said = 0                                                      # (nothing is hidden from who has no subtask)
    assert loss(hidden, half) != loss()


def test_acting_is_the_training_velocity_integrated(model, batch):
    got = model.act(batch.image, batch.prompt, torch.Generator().manual_seed(3), steps=4)
    x = torch.randn(12, 1, 16, 3, generator=torch.Generator().manual_seed(3))
    words = model.vlm.generate((batch.image, batch.prompt), 2, model.allowed)      # (its own, not the demonstration's)
    _, memory = model.vlm(model.vlm.prefix(batch.image, batch.prompt), words, keep=2)
    assert memory[0][0].shape[2] == 36 + 7 + 2
    with torch.no_grad():
        for t, step in ((0, .4), (.4, .3), (.7, .2), (.9, .1)):
            x = x + model.expert(x, torch.full((12, 1), t), memory) * step
    torch.testing.assert_close(got, x[:, 0], atol=1e-5, rtol=1e-5)


def test_tokens_drawn_by_the_model_always_decode(model, batch, data):
    for _ in range(5):                     # a random model is the worst case: it draws anything allowed
        with torch.no_grad():
            model.vlm.head.weight.normal_(0, 3)
        chunk = model.act_tokens(batch.image, batch.prompt)
        assert chunk.shape == (12, 16, 3) and chunk.isfinite().all()


def test_the_models_mask_is_the_tokenizers(model, data):
    tokens = data.fast.encode(data.fast.restore(data.chunks[:1]))[0]
    for j in range(2):                                    # where to land, in words, comes first
        ours = model.allowed(torch.full((3, j), FIRST_FAST - 1))
        assert ours.shape == (3, FIRST_FAST + data.fast.vocab) and (ours.nonzero()[:, 1].unique() == torch.arange(30, 62)).all()
    for j in range(len(tokens) + 1):
        ours = model.allowed(torch.tensor([[30, 31, *(tokens[:j] + FIRST_FAST)]]))[0]
        theirs = torch.from_numpy(data.fast.allowed(tokens[:j]))
        assert torch.equal(ours[FIRST_FAST:], theirs[:-1]) and ours[END] == theirs[-1]
        assert ours[:FIRST_FAST].sum() == ours[END]       # no word is ever an action


def test_one_batch_is_learned_by_heart(tiny, data):
    """The overfit test: both losses to near zero on one small batch."""
    from nano_ki.model import VLA
    from nano_ki.optim import optimisers, set_rates
    torch.manual_seed(0)
    model, batch = VLA(tiny, data.fast), data.batch()
    groups = optimisers(model.vlm, .02, .003) + optimisers(model.expert, .03, .0045)
    noise = torch.Generator().manual_seed(0)
    for step in range(200):
        out = model.losses(batch, noise)
        model.zero_grad()
        (out["ce"] + out["flow"]).backward()
        set_rates(groups, step, 200, 10, .5)
        for o in groups:
            o.step()
    assert out["ce"] < .05
    chunk = model.act(batch.image[:8], batch.prompt[:8], noise)[::2]              # (of the others the expert never saw the picture)
    assert (chunk - batch.chunk[::2]).abs().mean() < .08


def test_muon_is_pytorchs_muon():
    """In float32 instead of bfloat16, all matrices of a shape at once: the same steps but for bfloat16's rounding."""
    shapes = [(64, 64), (64, 64), (256, 64), (64, 256), (96, 576)]
    torch.manual_seed(0)
    start = [torch.randn(s) for s in shapes]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    a = optim.Muon(ours, lr=.02, momentum=.95, weight_decay=.1)
    b = torch.optim.Muon(theirs, lr=.02, momentum=.95, weight_decay=.1)
    for step in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        if step == 2:
            ours[1].grad = theirs[1].grad = None               # a matrix that a loss did not reach stays as it is
        a.step()
        b.step()
    for p, q, s in zip(ours, theirs, start, strict=True):
        assert 0 < (p - q).norm() < .02 * (p - s).norm()
    assert a.state_dict()["state"].keys() == b.state_dict()["state"].keys()
    wide = torch.linalg.svdvals(optim.orthogonal(torch.randn(3, 40, 96), (3.4445, -4.7750, 2.0315), 5))
    assert .6 < wide.min() and wide.max() < 1.3
