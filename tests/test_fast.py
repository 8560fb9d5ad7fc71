"""The tokenizer: bounds, round trips, always-valid generation, bad input."""
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano_ki import language
from nano_ki.fast import FAST, GAP, _checksum, _flatten, dct_matrix


def smooth(rng, n, h, d, rough=.02):
    t = np.linspace(0, 1, h)[:, None]
    a, b, c, f = (rng.normal(size=(n, 1, d)) for _ in range(4))
    return a + b * t + .5 * c * np.sin(6 * t + f) + rough * rng.normal(size=(n, h, d))


@pytest.fixture(scope="module")
def fast():
    return FAST.fit(smooth(np.random.default_rng(0), 400, 16, 3), gamma=10, vocab=512)


def normal_error(fast, chunks):
    return fast.normalise(fast.decode(fast.encode(chunks))) - fast.normalise(chunks)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10 ** 6), st.sampled_from((5, 16, 50)), st.sampled_from((2., 10., 40.)),
       st.sampled_from(("smooth", "noisy", "constant", "extreme")))
def test_error_within_the_bounds_when_nothing_saturated(seed, h, gamma, kind):
    rng = np.random.default_rng(seed)
    chunks = {"smooth": smooth(rng, 30, h, 4), "noisy": rng.normal(size=(30, h, 4)),
              "constant": np.tile(rng.normal(size=(1, 1, 4)), (30, h, 1)),
              "extreme": rng.choice((-1., 1.), (30, h, 4)) * 10. ** rng.integers(-3, 6, (1, 1, 4))}[kind]
    fast = FAST.fit(chunks, gamma, vocab=2 * int(np.ceil(gamma * 3 * h ** .5)) + 101)
    error = normal_error(fast, chunks)
    inside = np.abs(fast.normalise(chunks)).max() <= 3
    fast.encode(chunks)
    assert not (inside and fast.saturated)                 # Cauchy-Schwarz: |x| <= 3 cannot saturate
    if not fast.saturated:
        rmse, worst = fast.bound()
        assert np.sqrt((error ** 2).mean()) <= rmse + 1e-9 and np.abs(error).max() <= worst + 1e-9


def test_bounds_are_those_of_the_specification():
    for h, value in zip((5, 10, 15, 20, 30, 50), (.106, .147, .178, .204, .249, .320), strict=True):
        assert FAST(h, [-1], [1], 10, 9, []).bound()[1] == pytest.approx(value, abs=6e-4)
    np.testing.assert_allclose(dct_matrix(16) @ dct_matrix(16).T, np.eye(16), atol=1e-12)


def test_saturation_is_counted_and_stays_finite(fast):
    chunk = np.full((16, 3), 1e9)
    tokens = fast.encode(chunk)
    assert fast.saturated == 3 and np.isfinite(fast.decode(tokens)).all()
    fast.encode(np.zeros((16, 3)))
    assert fast.saturated == 0


def reference(fast, symbols):
    """Byte-pair encoding of one chunk the plain way: merge by rank, left to right."""
    seq = list(symbols)
    for m, (a, b) in enumerate(fast.merges):
        out, i = [], 0
        while i < len(seq):
            if seq[i:i + 2] == [a, b]:
                out.append(fast.base + m)
                i += 2
            else:
                out.append(seq[i])
                i += 1
        seq = out
    return seq


def test_batch_equals_single_chunks_and_the_plain_loop(fast):
    chunks = smooth(np.random.default_rng(1), 40, 16, 3, .1)
    tokens = fast.encode(chunks)
    for chunk, ids, symbols in zip(chunks, tokens, fast._symbols(chunks), strict=True):
        assert list(ids) == list(fast.encode(chunk)) == reference(fast, symbols.tolist())
    np.testing.assert_array_equal(fast.decode(tokens)[3], fast.decode(tokens[3]))


def test_runs_merge_left_to_right():
    fast = FAST(7, [-1], [1], 10, 1, [(1, 1), (3, 3)])
    assert list(fast.encode(np.zeros((7, 1)))) == reference(fast, [1] * 7) == [4, 3, 1]
    assert (_flatten(np.ones((2, 3), int)) == [GAP, 1, 1, 1, GAP, 1, 1, 1, GAP]).all()


def test_random_sequences_drawn_under_the_mask_all_decode(fast):
    rng = np.random.default_rng(2)
    lengths, ids = fast.lengths, []
    for n in range(10_000):
        left, row = 48, []
        while left:
            row.append(rng.choice(np.flatnonzero(lengths <= left)))
            left -= lengths[row[-1]]
        ids.append(row)
        if n < 50:
            for k in range(len(row) + 1):                  # the loop above is what allowed() says
                mask = fast.allowed(np.array(row[:k], int))
                assert mask[-1] == (k == len(row)) and (k == len(row) or mask[row[k]])
    chunks = fast.decode(ids)
    assert chunks.shape == (10_000, 16, 3) and np.isfinite(chunks).all()
    most = fast.alphabet / fast.gamma * np.abs(fast.dct).sum(0).max()
    assert np.abs(fast.normalise(chunks)).max() <= most + 1e-9


def test_constant_and_rarely_moving_dimensions():
    rng = np.random.default_rng(3)
    chunks = smooth(rng, 300, 10, 3)
    chunks[..., 1] = .7
    chunks[..., 2] = 0
    chunks[5, 5:, 2] = 1                                   # a gripper that closes in one episode of 300
    fast = FAST.fit(chunks, vocab=1024)
    out = fast.decode(fast.encode(chunks))
    np.testing.assert_array_equal(out[..., 1], .7)
    assert abs(out[5, 8, 2] - 1) < .2 and abs(out[6, 8, 2]) < .2


def test_another_robot_is_encoded_within_the_bound(fast):
    other = np.random.default_rng(9).uniform(-1, 1, (200, 16, 3)) * fast.scale + fast.middle
    tokens = fast.encode(other)
    assert fast.saturated == 0
    error = fast.normalise(fast.decode(tokens)) - fast.normalise(other)
    assert np.abs(error).max() <= fast.bound()[1]


def test_merges_save_tokens(fast):
    chunks = smooth(np.random.default_rng(4), 100, 16, 3)
    assert np.mean([len(t) for t in fast.encode(chunks)]) < .6 * 48


def test_the_order_by_use_puts_quiet_dimensions_last():
    rng = np.random.default_rng(6)
    chunks = smooth(rng, 300, 16, 6) * (3, .05, .05, 3, .05, .05)
    orders = [FAST.fit(chunks, 10, 512, [-3] * 6, [3] * 6, order=o) for o in ("use", "frequency")]
    tokens = [np.mean([len(t) for t in f.encode(chunks)]) for f in orders]
    assert tokens[0] < .95 * tokens[1] and (orders[1].order == np.arange(96)).all()
    used = (orders[0]._symbols(chunks) != orders[0].alphabet).mean(0)
    assert (np.diff(np.ceil(8 * used)) <= 0).all()
    np.testing.assert_allclose(*(f.decode(f.encode(chunks)) for f in orders))       # nothing else changes


def test_json_round_trip(fast, tmp_path):
    chunks = smooth(np.random.default_rng(5), 20, 16, 3)
    fast.save(tmp_path / "f.json")
    again = FAST.load(tmp_path / "f.json")
    for a, b in zip(fast.encode(chunks), again.encode(chunks), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(fast.decode(fast.encode(chunks)), again.decode(again.encode(chunks)))
    assert not list(tmp_path.glob("*.part"))


GOOD = np.zeros((16, 3))


@pytest.mark.parametrize("bad, says", [
    (np.full((16, 3), np.nan), "48 values that are NaN"), (GOOD[None] + np.inf, "NaN or infinite"),
    (np.zeros((15, 3)), r"wanted \[N, 16, 3\]"), (np.zeros((2, 16, 4)), r"wanted \[N, 16, 3\]"),
    (np.zeros(48), "wanted"), ([[1, 2], [3]], "one shape"), ("chunk", "numbers")])
def test_bad_chunks_are_refused(fast, bad, says):
    with pytest.raises(ValueError, match=says):
        fast.encode(bad)


def test_bad_ids_are_refused(fast):
    good = fast.encode(GOOD)
    for bad, says in (([512], r"wanted 0\.\.511"), ([-1], r"wanted 0\.\.511"), (good.astype(float), "whole numbers"),
                      (good[:-1], "of 48 coefficients"), ([*good, 3], "49 of 48 coefficients"),
                      ([], "0 of 48"), ([True], "whole numbers"), (["a"], "whole numbers")):
        with pytest.raises(ValueError, match=says):
            fast.decode(bad)
    out = fast.decode([good[:-1], [*good, 3], good], strict=False)
    assert fast.repaired == 2
    np.testing.assert_allclose(out[1], out[2])             # what is too much is cut


def test_bad_fits_are_refused():
    for bad, kw, says in ((np.zeros((0, 16, 3)), {}, "none of them 0"), (GOOD, {}, r"\[N, H, D\]"),
                          (GOOD[None], {"vocab": 10}, "raise vocab or lower gamma"),
                          (GOOD[None], {"gamma": 0}, "above 0"), (GOOD[None], {"order": "size"}, "'use' or 'frequency'"),
                          (GOOD[None] * np.nan, {}, "NaN")):
        with pytest.raises(ValueError, match=says):
            FAST.fit(bad, **kw)


def test_edited_files_are_refused(fast, tmp_path):
    path, good = tmp_path / "f.json", fast.state()
    texts = ["", "{", "[]", "3", json.dumps(good)[:-40], json.dumps({"format": "other"})]
    for key, value in (("version", 1), ("horizon", 0), ("horizon", 16.5), ("alphabet", -3), ("gamma", 0),
                       ("gamma", "ten"), ("low", [1, 2]), ("low", [np.nan] * 3), ("merges", [[1, 2, 3]]),
                       ("merges", [[600, 1]]), ("merges", [[.5, 1]]), ("order", None), ("order", [0] * 48),
                       ("order", [.5]), ("order", [[1], 2]), ("merges", None), ("high", [-9, -9, -9])):
        edited = {k: v for k, v in {**good, key: value}.items() if k != "checksum"}
        texts.append(json.dumps(edited | {"checksum": _checksum(edited)}))       # wrong, though it adds up
    texts.append(json.dumps({**good, "alphabet": good["alphabet"] + 1}))          # plausible, but edited
    texts += [json.dumps({k: v for k, v in good.items() if k != key}) for key in good]
    for text in texts:
        path.write_text(text)
        with pytest.raises(ValueError, match="FAST tokenizer"):
            FAST.load(path)


def test_the_toys_tokens(data):
    assert data.fast.saturated == 0
    decoded = data.fast.normalise(data.fast.decode(data.fast.encode(data.fast.restore(data.chunks))))
    assert np.abs(decoded - data.chunks).max() <= data.fast.bound()[1]
    assert np.array_equal(np.sign(decoded[..., 2]), np.sign(data.chunks[..., 2])) or (
        np.mean(np.sign(decoded[..., 2]) == np.sign(data.chunks[..., 2])) > .97)    # press survives
    assert language.FIRST_FAST == len(language.WORDS)     # ids of their own, from the start


def test_limits_that_mean_nothing_are_refused_and_no_chunks_are_no_tokens():
    chunks = np.random.default_rng(0).normal(size=(50, 8, 3)).cumsum(1)
    for limits in ({"low": [1, 1, 1], "high": [0, 0, 0]}, {"low": [-1, -1, -1]}, {"high": [1, 1, 1]}):
        with pytest.raises(ValueError, match="low"):
            FAST.fit(chunks, **limits)
    assert FAST.fit(chunks).encode(chunks[:0]) == []
