"""The map: when does the stop-gradient pay? Runs with the detach against runs without it, all else equal.

Each row says what a practitioner sees, success on the kinds that are shown, and what stays unseen: the kinds that the
VLM knew before, new ones, and its answers. From post.jsonl (post-training a generalist on three kinds):

    python -m tutorials.studies.compare --arms post post_through --results tutorials/results/post.jsonl
    python -m tutorials.studies.compare --arms post_through --sweep vlm_rate=.001,.003 --results tutorials/results/post.jsonl
    python -m tutorials.studies.map          # the table; writes tutorials/results/map.png

Read next: claims.py
"""
from dataclasses import replace

import numpy as np

from nano_ki import draw, program
from tutorials.studies.compare import RESULTS, book, config_of, difference, first_at, lines_of, table

WITH, WITHOUT = "post", "post_through"
SIDES = {           # what is compared: (key in a line, test set); first what a practitioner sees
    "shown": ("success", "shown"), "twelve kinds": ("success", "seen"), "new colour": ("success", "new_colour"), "new both": ("success", "new_both"),
    "right puck, new colour": ("right_puck", "new_colour"), "right puck, new both": ("right_puck", "new_both"),
}


def pairs(lines):
    """[(the Config of the runs without the detach, runs with it, runs without it)] of the same seeds, by length and rate. With the
    detach the VLM's rate changes nothing, so that all rates share these runs."""
    groups, out = {}, []
    for m in lines:
        if m["arm"] in (WITH, WITHOUT):
            groups.setdefault(replace(config_of(m), seed=0), {})[m["seed"]] = m
    for c, theirs in sorted(groups.items(), key=lambda g: (g[0].steps, not g[0].subtask, g[0].vlm_rate)):
        ours = next((mine for d, mine in groups.items() if d == replace(c, insulate=True, vlm_rate=d.vlm_rate, vlm_adam=d.vlm_adam)), {})
        if not c.insulate and (both := sorted(ours.keys() & theirs.keys())):
            out.append((c, [ours[seed] for seed in both], [theirs[seed] for seed in both]))
    return out


def apart(ours, theirs, side):
    """(difference, low, high), 95 % bootstrap over seeds and scenes."""
    return difference(ours, theirs, *SIDES[side])


def rate_of(lines, side):
    key, name = SIDES[side]
    return float(np.mean([m[key][name]["rate"] for m in lines]))


def seconds_to(lines, level=.8):
    """Seconds of training until the mean success on the twelve kinds reaches `level`."""
    points = []
    for k in range(min(len(m["checks"]) for m in lines) + 1):
        at = [m["checks"][k] if k < len(m["checks"]) else {"seconds": m["train_seconds"], "success": m["success"]} for m in lines]
        points.append((np.mean([c["seconds"] for c in at]), np.mean([c["success"]["seen"]["rate"] for c in at])))
    there = first_at(points, level)
    return "never" if there is None else f"{there:.0f}"


def answers(lines):
    """The mean of what is answered about the book after training."""
    return np.mean([book(m["vqa_after"]) for m in lines])


def tables(lines, brief=False):
    """Markdown: with / without the detach, for each setting of post-training; and the differences, unless brief."""
    def cell(ours, theirs, side):
        middle, low, high = apart(ours, theirs, side)
        return f"{rate_of(ours, side):.2f} / {rate_of(theirs, side):.2f}" + f": {middle:+.2f} [{low:+.2f}, {high:+.2f}]" * (not brief)
    sides = [side for side in SIDES if not (brief and side.startswith("right puck"))]
    head = ["steps, VLM rate", "seeds", *sides, "answers, book", "samples a second", "seconds to .8 on the twelve kinds"]
    rows = []
    for at, ours, theirs in pairs(lines):
        pace = [f"{np.mean([m['samples_a_second'] for m in ours]):.0f} / {np.mean([m['samples_a_second'] for m in theirs]):.0f}",
                f"{seconds_to(ours)} / {seconds_to(theirs)}"]
        rows.append([f"{at.steps:,}, {at.vlm_rate:g}" + ", no subtask" * (not at.subtask), len(theirs), *(cell(ours, theirs, side) for side in sides),
                     f"{answers(ours):.2f} / {answers(theirs):.2f}", *([] if brief else pace)])
    return table(head[:-2] if brief else head, rows)


def plot(lines, path=RESULTS / "map.png"):
    """One chart for each length: what the detach gains, against the VLM's rate."""
    charts = {}
    for at, ours, theirs in pairs(lines):
        title = f"with minus without the detach, against the VLM rate; {at.steps:,} steps{', no subtask' * (not at.subtask)}"
        chart = charts.setdefault(title, {})
        for side in ("shown", "twelve kinds", "new colour", "new both"):
            for values, value in zip(chart.setdefault(f"success, {side}" if side == "shown" else side, ([], [], [], [])), (at.vlm_rate, *apart(ours, theirs, side)), strict=True):
                values.append(value)
        xs, ys = chart.setdefault("answers", ([], []))
        xs.append(at.vlm_rate)
        ys.append(answers(ours) - answers(theirs))
    charts = {title: chart for title, chart in charts.items() if len(chart["answers"][0]) > 1}        # (one rate is no curve)
    if charts:
        draw.curves(charts, path, 640, 400, 2, log=True)


def main():
    program.parser(__doc__).parse_args()
    lines = lines_of(RESULTS / "post.jsonl")
    plot(lines)
    print(tables(lines))


if __name__ == "__main__":
    program.run(main)
