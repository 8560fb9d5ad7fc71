"""What FAST tokens cost and lose: one setting varied at a time, on one robot's actions.

    python -m tutorials.studies.fast_sweeps FILE.npz      # measures; writes tutorials/results/fast.jsonl, .md, .png
    python -m tutorials.studies.fast_sweeps               # writes the page again from the .jsonl alone

FILE.npz: see python -m tutorials.studies.fast --help. Its rate (Hz) is read from `hz`, if it has that.
"""
import json
import sys
import time
from pathlib import Path

import numpy as np

from nano_ki import draw, program
from nano_ki.fast import FAST
from tutorials.studies import fast as study
from tutorials.studies.fast import read_episodes, windows

RESULTS = Path(__file__).parent.parent / "results"
SWEEPS = {          # what is varied: (its values, its name, what stays)
    "gamma": ((2, 5, 10, 20, 40), "gamma", "one second, 693 merges"),
    "vocab": ((256, 512, 1024, 2048, 4096), "vocabulary", "one second, gamma 10, alphabet for |x| <= 2"),
    "horizon": ((5, 10, 20, 30, 50, 100), "steps per chunk", "gamma 10, 693 merges"),
    "hz": ((5, 10, 20, 30, 50), "control rate, Hz", "one second, gamma 10, 693 merges"),
    "order": (("frequency", "use"), "order of the coefficients", "one second, gamma 10, 693 merges"),
}


def resample(episode, old, new):
    """The same motion [T, D] at another rate, by linear interpolation."""
    t = np.arange(0, len(episode) - 1, old / new)
    at = np.floor(t).astype(int)
    return episode[at] + (t - at)[:, None] * (episode[at + 1] - episode[at])


def measure(episodes, rate, sweep, value):
    """One line of the study: fit on the first 80 % of the episodes, measure on the rest."""
    settings = {"gamma": 10., "horizon": round(rate), "hz": rate, "reach": 3., "order": "use"} | {sweep: value}
    if sweep == "hz":
        settings["horizon"] = round(value)
        episodes = [resample(e, rate, value) for e in episodes]
    if sweep == "vocab":
        settings["reach"] = 2.
    horizon, gamma, reach = settings["horizon"], settings["gamma"], settings["reach"]
    base = 2 * int(np.ceil(gamma * reach * np.sqrt(horizon))) + 1
    vocab = settings.setdefault("vocab", base + 693)
    cut = int(.8 * len(episodes))
    train, test = (windows(part, horizon, 5) for part in (episodes[:cut], episodes[cut:]))
    fast = FAST.fit(train, gamma, vocab, reach=reach, order=settings["order"])
    times = []
    for _ in range(5):
        start = time.process_time()
        fast.encode(test)
        times.append(1000 * (time.process_time() - start) / len(test))
    report = study.report(fast, test)
    return {"sweep": sweep, "value": value, "encode_ms": round(float(np.median(times)), 4),
            **{k: round(float(report[k]), 5) for k in ("tokens_mean", "tokens_p95", "naive", "rmse", "rmse_bound",
                                                       "max_error", "bound", "saturated", "chunks")}}


def page(lines):
    """The Markdown page of these lines."""
    source = lines[0]
    out = ["# What FAST tokens cost and lose", "",
           f"Data: {source['data']}, {source['episodes']} episodes at {source['hz']:g} Hz, {source['dims']} dimensions; "
           "fitted on the first 80 % of the episodes, measured on the rest. Naive: one token a number (256 bins). RMSE "
           "in normalised units (1st to 99th percentile = -1 to 1). Encode: CPU milliseconds a chunk, in batch, median of "
           "5. Made by `python -m tutorials.studies.fast_sweeps FILE.npz`, from fast.jsonl.", "",
           "![tokens per chunk and RMSE against each setting](fast.png)"]
    for sweep, (_, name, fixed) in SWEEPS.items():
        mine = [m for m in lines if m.get("sweep") == sweep]
        out += ["", f"## {name}", "", f"Fixed: {fixed}.", "",
                f"| {name} | tokens mean | p95 | naive | times fewer | RMSE | bound | saturated | encode ms |", "|---" * 9 + "|"]
        out += [f"| {m['value']} | {m['tokens_mean']:.1f} | {m['tokens_p95']:.0f} | {m['naive']:.0f} | "
                f"{m['naive'] / m['tokens_mean']:.1f} | {m['rmse']:.4f} | {m['rmse_bound']:.4f} | {m['saturated']:.0f} | "
                f"{m['encode_ms']:.3f} |" for m in mine]
    return "\n".join(out) + "\n"


def main():
    path = RESULTS / "fast.jsonl"
    if len(sys.argv) > 1:
        episodes = read_episodes(sys.argv[1])
        with np.load(sys.argv[1]) as z:
            rate = float(z["hz"]) if "hz" in z and z["hz"] > 0 else 30.
        lines = [{"data": Path(sys.argv[1]).stem, "episodes": len(episodes), "hz": rate,
                  "dims": episodes[0].shape[1]}]
        for sweep, (values, _, _) in SWEEPS.items():
            for value in values:
                lines.append(measure(episodes, rate, sweep, value))
                print(lines[-1], flush=True)
        text = "".join(json.dumps(m) + "\n" for m in lines)
        program.write_whole(path, lambda f: f.write(text.encode()))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    program.write_whole(RESULTS / "fast.md", lambda f: f.write(page(lines).encode()))

    def curve(sweep, key):
        mine = [m for m in lines if m.get("sweep") == sweep]
        return [m["value"] for m in mine], [m[key] for m in mine]
    draw.curves({f"{what} against {SWEEPS[s][1]}": {what: curve(s, key)} for key, what in
                 (("tokens_mean", "tokens per chunk"), ("rmse", "RMSE")) for s in SWEEPS if s != "order"}, RESULTS / "fast.png")


if __name__ == "__main__":
    program.run(main)
