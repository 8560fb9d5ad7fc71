"""The map: when does the stop-gradient pay? Runs with the line against runs without it, all else equal.

Each row says what a practitioner sees, success on the kinds that are shown, and what he does not: the kinds that the
VLM knew before, new ones, and its answers. From post.jsonl (post-training a generalist on three kinds):

    python -m tutorials.studies.compare --arms post post_through --sweep vlm_rate=.001,.003,.01,.03 --results tutorials/results/post.jsonl
    python -m tutorials.studies.map          # the table; writes tutorials/results/map.png

Read next: claims.py
"""
import numpy as np

from nano_ki import config as configuration
from nano_ki import draw, program
from tutorials.studies.compare import ARMS, RESULTS, difference, lines_of

WITH, WITHOUT = "post", "post_through"
SIDES = {           # what is compared: (key in a line, test set); first what a practitioner sees
    "shown": ("success", "shown"), "twelve kinds": ("success", "seen"), "new colour": ("success", "new_colour"), "new both": ("success", "new_both"),
    "right puck, new colour": ("right_puck", "new_colour"), "right puck, new both": ("right_puck", "new_both"),
}


def config_of(line):
    return configuration.parse([*ARMS[line["arm"]][0], *line["flags"], "--device", "cpu"])


def book(line):
    """The mean of the three kinds of question about one book page, after training."""
    return float(np.mean([line["vqa_after"][k] for k in ("where", "colour", "shape")]))


def pairs(lines):
    """[(settings {kinds, steps, rate}, runs with the line, runs without it)], by rate. The rate of a VLM that no loss reaches
    changes nothing, so that every rate has the same runs with the line."""
    groups = {}
    for m in lines:
        c = config_of(m)
        rate = c.vlm_rate if c.vlm_learns else 0
        groups.setdefault((c.kinds, c.steps), {}).setdefault((m["arm"], rate), {})[m["seed"]] = m
    return [({"kinds": kinds, "steps": steps, "rate": rate}, list(of[WITH, 0].values()), list(mine.values()))
            for (kinds, steps), of in sorted(groups.items(), key=lambda g: g[0][1]) for (arm, rate), mine in sorted(of.items(), key=lambda g: g[0][1])
            if arm == WITHOUT and (WITH, 0) in of]


def apart(ours, theirs, side):
    """(difference, low, high), 95 % bootstrap over seeds and scenes."""
    return difference(ours, theirs, *SIDES[side])


def rate_of(lines, side):
    key, name = SIDES[side]
    return float(np.mean([m[key][name]["rate"] for m in lines]))


def seconds_to(lines, level=.8):
    """Seconds of training until the mean success on the twelve kinds reaches `level`, between checks by straight lines."""
    x0 = y0 = 0
    for k in range(min(len(m["checks"]) for m in lines) + 1):
        at = [m["checks"][k] if k < len(m["checks"]) else {"seconds": m["train_seconds"], "success": m["success"]} for m in lines]
        x, y = np.mean([c["seconds"] for c in at]), np.mean([c["success"]["seen"]["rate"] for c in at])
        if y >= level:
            return f"{x0 + (level - y0) / (y - y0) * (x - x0):.0f}"
        x0, y0 = x, y
    return "never"


def tables(lines, brief=False):
    """Markdown: with / without the line, for each setting of post-training; and the differences, unless brief."""
    def cell(ours, theirs, side):
        middle, low, high = apart(ours, theirs, side)
        return f"{rate_of(ours, side):.2f} / {rate_of(theirs, side):.2f}" + f": {middle:+.2f} [{low:+.2f}, {high:+.2f}]" * (not brief)
    sides = [side for side in SIDES if not (brief and side.startswith("right puck"))]
    rows = [["kinds shown, steps, VLM rate", "seeds", *sides, "answers, book", "samples a second", "seconds to .8 on the twelve kinds"][:None if not brief else -2]]
    rows.append(["---"] * len(rows[0]))
    for at, ours, theirs in pairs(lines):
        pace = [f"{np.mean([m['samples_a_second'] for m in ours]):.0f} / {np.mean([m['samples_a_second'] for m in theirs]):.0f}",
                f"{seconds_to(ours)} / {seconds_to(theirs)}"]
        rows.append([f"{at['kinds']}, {at['steps']:,}, {at['rate']:g}", len({m["seed"] for m in theirs}), *(cell(ours, theirs, side) for side in sides),
                     f"{np.mean([*map(book, ours)]):.2f} / {np.mean([*map(book, theirs)]):.2f}", *([] if brief else pace)])
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def plot(lines, path=RESULTS / "map.png"):
    """One chart for each length: what the line gains, against the VLM's rate."""
    charts = {}
    for at, ours, theirs in pairs(lines):
        chart = charts.setdefault(f"with minus without the line, against the VLM rate; {at['kinds']} kinds, {at['steps']:,} steps", {})
        for side in ("shown", "twelve kinds", "new colour", "new both"):
            for values, value in zip(chart.setdefault(f"success, {side}" if side == "shown" else side, ([], [], [], [])), (at["rate"], *apart(ours, theirs, side)), strict=True):
                values.append(value)
        xs, ys = chart.setdefault("answers", ([], []))
        xs.append(at["rate"])
        ys.append(np.mean([*map(book, ours)]) - np.mean([*map(book, theirs)]))
    if charts:
        draw.curves(charts, path, 640, 400, 2, log=True)


def main():
    program.parser(__doc__).parse_args()
    lines = lines_of(RESULTS / "post.jsonl")
    plot(lines)
    print(tables(lines))


if __name__ == "__main__":
    program.run(main)
