"""FAST on the actions of your own robot: what the tokens cost, and what they lose.

    python -m tutorials.studies.fast FILE.npz --horizon 30 [--plot chunk.png]

Without a FILE it takes smooth made-up chunks. What each setting does: fast_sweeps.py, tutorials/results/fast.md.
"""
import argparse
import json
import time
import timeit

import numpy as np
from PIL import Image, ImageDraw

from nano_ki import draw, program
from nano_ki.fast import FAST, finite


def read_episodes(path):
    """A list of float arrays [T, D] from an .npz with `flat` [sum T, D] and `lengths` [episodes]."""
    try:
        with np.load(path, allow_pickle=False) as z:
            flat, lengths = finite(z["flat"], "flat"), np.asarray(z["lengths"])
    except Exception as error:          # (numpy and zipfile raise many kinds for a foreign file)
        raise ValueError(f"{path} is not an .npz with arrays flat [sum T, D] and lengths: {error}") from None
    whole = flat.ndim == 2 and lengths.ndim == 1 and lengths.dtype.kind in "iu"
    if not whole or (lengths < 0).any() or lengths.sum() != len(flat):
        raise ValueError(f"{path}: flat has shape {flat.shape}, lengths {lengths.dtype} of shape {lengths.shape} "
                         f"adding up to {lengths.sum()}; wanted [sum T, D] and whole numbers adding up to sum T")
    return np.split(flat, np.cumsum(lengths)[:-1])


def windows(episodes, horizon, stride):
    """Chunks [N, H, D]: every `stride`-th window of each episode; shorter episodes give none."""
    views = [np.lib.stride_tricks.sliding_window_view(e, horizon, 0)[::stride] for e in episodes
             if len(e) >= horizon]
    if not views:
        raise ValueError(f"no episode is {horizon} steps long; the longest has {max(map(len, episodes), default=0)}")
    return np.concatenate(views).swapaxes(1, 2)


def report(fast, chunks):
    """What these chunks cost and lose, as a dict of numbers.

    tokens_mean, tokens_p50, tokens_p95, tokens_max per chunk; naive (one token a number) and
    compression against it; rmse and max_error in normalised units with their bounds (rmse_bound,
    bound), which hold when `saturated` coefficients are 0.
    """
    tokens = fast.encode(chunks)
    saturated = fast.saturated
    error = fast.normalise(fast.decode(tokens)) - fast.normalise(finite(chunks, "chunks"))
    count = np.array([len(t) for t in tokens])
    naive, (rmse_bound, bound) = fast.horizon * fast.dims, fast.bound()
    return {"chunks": len(count), "tokens_mean": count.mean(), "tokens_p50": np.percentile(count, 50),
            "tokens_p95": np.percentile(count, 95), "tokens_max": int(count.max()), "naive": naive,
            "compression": naive / count.mean(), "rmse": np.sqrt((error ** 2).mean()),
            "rmse_bound": rmse_bound, "max_error": np.abs(error).max(), "bound": bound,
            "saturated": saturated}


def plot(fast, chunk, path):
    """PNG: one chunk before and after, its coefficients, and the spans of its tokens."""
    tokens = fast.encode(chunk)
    before, after = fast.normalise(chunk), fast.normalise(fast.decode(tokens))
    grid = (fast._symbols(chunk[None]) - fast.alphabet).reshape(fast.horizon, fast.dims)
    cell = max(3, min(14, 900 // fast.dims, 420 // fast.horizon))
    wide = max(900, fast.dims * cell + 40)
    image = Image.new("RGB", (wide, 320 + fast.horizon * cell), "white")
    pen, font = ImageDraw.Draw(image), draw.font_of(13)
    hues = [tuple(int(127 + 110 * np.cos(2.4 * d + k)) for k in (0, 2.1, 4.2)) for d in range(fast.dims)]
    low, high = min(before.min(), after.min()), max(before.max(), after.max()) + 1e-9
    pen.text((20, 6), f"one chunk, {fast.horizon} steps x {fast.dims} dimensions, normalised: as it was (thin), "
             "decoded (dots)", "black", font)
    for d in range(fast.dims):
        x = 20 + np.arange(fast.horizon) * (wide - 40) / max(fast.horizon - 1, 1)
        pen.line(list(zip(x, 215 - 185 * (before[:, d] - low) / (high - low), strict=True)), hues[d], 1)
        for px, py in zip(x, 215 - 185 * (after[:, d] - low) / (high - low), strict=True):
            pen.ellipse((px - 2, py - 2, px + 2, py + 2), hues[d])
    pen.text((20, 228), f"its {grid.size} coefficients in the order of the list, row by row; blue -, red +, grey 0;", "black", font)
    pen.text((20, 246), f"a black bar begins each of its {len(tokens)} tokens", "black", font)
    for k, value in enumerate(grid.ravel()):
        x, y = 20 + k % fast.dims * cell, 272 + k // fast.dims * cell
        shade = int(150 * min(1, abs(value) / 8))
        pen.rectangle((x, y, x + cell - 1, y + cell - 1), (230, 230, 230) if value == 0 else
                      (255, 190 - shade, 190 - shade) if value > 0 else (190 - shade, 190 - shade, 255))
    for k in np.cumsum(fast.lengths[tokens]) - fast.lengths[tokens]:
        x, y = 20 + k % fast.dims * cell, 272 + k // fast.dims * cell
        pen.line((x, y, x, y + cell - 1), "black", max(1, cell // 5))
    draw.save(image, path)


HELP_DATA = """
Data: an .npz with `flat`, float [sum T, D], all episodes behind each other, and `lengths`, int [episodes].
From LeRobot: a dataset's parquet files hold a row a frame; np.stack the column "action", and count rows per
"episode_index" for lengths. From LIBERO (HDF5): flat is the concatenation of data/demo_*/actions, lengths
their numbers of rows. Then np.savez("mine.npz", flat=flat, lengths=lengths)."""


def main():
    parser = program.parser("Fit a FAST tokenizer on the first 80 % of a file's episodes, report on the rest.",
                            epilog=HELP_DATA, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="episodes; none: smooth made-up chunks")
    parser.add_argument("--horizon", type=int, default=30, help="steps per chunk (about one second)")
    parser.add_argument("--gamma", type=float, default=10., help="coefficients are rounded to 1 / gamma")
    parser.add_argument("--vocab", type=int, default=1024, help="tokens in all")
    parser.add_argument("--stride", type=int, default=5, help="steps from one window to the next")
    parser.add_argument("--out", help="JSON to write the tokenizer to (default: FILE.fast.json)")
    parser.add_argument("--plot", help="PNG of one chunk, its coefficients and tokens")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    for name, value, most in (("horizon", args.horizon, 10_000), ("stride", args.stride, 10 ** 9), ("vocab", args.vocab, 30_000),
                              ("gamma", args.gamma, 1000)):
        if not (1 if name != "gamma" else 1e-3) <= value <= most:
            raise ValueError(f"--{name} is {value}; it must be above 0, and at most {most}")
    if args.file:
        episodes = read_episodes(args.file)
    else:
        rng, t = np.random.default_rng(0), np.linspace(0, 4, 120)[:, None]
        episodes = [np.sin(t * rng.uniform(.5, 2, 7) + rng.uniform(0, 6, 7)) for _ in range(50)]
    if len(episodes) < 2:
        raise ValueError(f"{args.file} holds {len(episodes)} episode(s); wanted 2 or more, {args.horizon} steps long: the first 80 % "
                         "are for the fit, the rest for the test")
    cut = max(1, int(.8 * len(episodes)))
    train, test = (windows(part, args.horizon, args.stride) for part in (episodes[:cut], episodes[cut:]))
    start = time.perf_counter()
    fast = FAST.fit(train, args.gamma, args.vocab)
    fit_s = time.perf_counter() - start
    tokens = fast.encode(test)
    encode_ms, decode_ms = (1000 * float(np.median(timeit.repeat(f, number=1, repeat=5))) / len(test) for f in (
        lambda: fast.encode(test), lambda: fast.decode(tokens)))
    r = {k: round(float(v), 5) for k, v in report(fast, test).items()}
    r |= {"fit_s": round(fit_s, 3), "encode_ms": round(encode_ms, 4), "decode_ms": round(decode_ms, 4)}
    out = args.out or (f"{args.file.removesuffix('.npz')}.fast.json" if args.file else None)
    if out:
        fast.save(out)
    if args.plot:
        plot(fast, test[len(test) // 2], args.plot)
    if args.json:
        print(json.dumps(r))
        return
    print(f"{len(train)} chunks to fit ({r['fit_s']} s), {len(test)} to test, {fast.horizon} x {fast.dims}")
    print(f"  tokens per chunk  mean {r['tokens_mean']:.1f}  p50 {r['tokens_p50']:.0f}  p95 {r['tokens_p95']:.0f}  "
          f"max {r['tokens_max']:.0f}   naive {r['naive']:.0f}: {r['compression']:.1f} x as many")
    print(f"  RMSE {r['rmse']:.4f} (bound {r['rmse_bound']:.3f})  maximum error {r['max_error']:.3f} "
          f"(bound {r['bound']:.3f})  saturated coefficients {r['saturated']:.0f}")
    print(f"  encode {r['encode_ms']:.3f} ms, decode {r['decode_ms']:.3f} ms a chunk, in batch"
          + (f"   -> {out}" if out else ""))


if __name__ == "__main__":
    program.run(main)
