"""The map: when does the stop-gradient pay? Runs with the detach against runs without it, all else equal.

Two bases: post-training a generalist by flow alone on three kinds (as the recipe comes, and with an expert that reads no
subtask), and joint training from the VLM, of 400 steps (the dials) and of 800 and more (the arms). Each row changes something of its base.
It says what a practitioner sees, success on the kinds that are shown, and what stays unseen: the kinds that the VLM knew before,
new ones, and its answers.

    python -m tutorials.studies.map          # the tables; writes map.png, map_joint.png, dial.png

The runs are lines of post.jsonl, joint.jsonl and arms.jsonl (claims.FILES has the commands).          Read next: claims.py
"""
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from nano_ki import draw, program, world
from tutorials.studies import compare
from tutorials.studies.compare import RESULTS, book, config_of, curve, difference, first_at, lines_of, table

SIDES = {           # what is compared: (key in a line, test sets); first what a practitioner sees
    "shown kinds": ("success", "shown"), "twelve kinds": ("success", "seen"),
    "new colours": ("success", "new_colour"), "new both": ("success", "new_both"),
    "right puck, new colours": ("right_puck", "new_colour"), "right puck, new both": ("right_puck", "new_both"),
}
DRAWN = ("shown kinds", "twelve kinds", "new colours", "new both")
WORDS = {           # settings that are turned -> how a row is called
    "steps": "{:,} steps", "vlm_rate": "VLM rate {:g}", "kinds": "{} kinds shown",
    "vlm_samples": "{} questions", "fast_loss": ("no FAST", "FAST"),
    "alpha": "alpha {:g}", "subtask": ("no subtask", "subtask"), "tokens": "{} tokens", "start": "from a generalist",
}
FEWER = ("as it is", "1,800 steps", "3,600 steps", "VLM rate 0.0003", "48 kinds shown", "24 questions", "0 questions, no FAST, no subtask")
WAYS = {"post_tenth": "a tenth of the gradient", "post_late": "stopped for half of the steps", "post_held": "features held to a copy's"}


def pairs(lines):
    """[((the Config of the runs without the detach, how they let the gradient through), runs with it, runs without it)] of the
    same seeds and the same VLMs at the beginning (each seed's generalist was trained on two machines)."""
    runs, out = {}, []                   # (Config, way): {(seed, what the VLM knew): line}
    for m in lines:
        if m["arm"] not in compare.PROGRAMS or m["arm"] in WAYS:
            c = replace(config_of(m), recipe="ki", seed=0, check_every=0, threads=0)          # (recipes are but names for settings)
            start = m["seed"], *m["vqa_before"].values()
            runs.setdefault((c, WAYS.get(m["arm"], "")), {})[start] = m

    def detached(c):
        c = replace(c, insulate=True)
        if c.vlm_learns:
            return runs.get((c, ""), {})
        # Nothing teaches the VLM then, and its rate changes nothing: runs without the detach at all rates share those with it.
        return next((found for (d, way), found in runs.items() if not way
                     and d == replace(c, vlm_rate=d.vlm_rate, vlm_adam=d.vlm_adam)), {})
    for (c, way), through in runs.items():
        if not c.insulate:
            stopped = detached(c)
            if both := sorted(stopped.keys() & through.keys()):
                out.append(((c, way), [stopped[start] for start in both], [through[start] for start in both]))
    return out


def bases(lines):
    """[(what is done, the Config that its rows change, its lines)]: first post-training as the recipe comes, then without a subtask."""
    out = []
    for name, arm, flags in (("post-training", "post_through", []), ("post-training without a subtask", "post_through", ["--no-subtask"]),
                             ("joint training", "joint", ["--steps", "400"]), ("joint training", "joint", [])):
        base, post = replace(config_of({"arm": arm, "flags": flags}), recipe="ki", check_every=0), arm != "joint"
        out.append((f"{name}, {base.steps} steps", base, [m for m in lines if m["arm"].startswith("post") == post
                    and (config_of(m).subtask == base.subtask if post else (m["steps"] == 400) == (base.steps == 400))]))
    return out


def told(c, way, base):
    """What a row changes of its base, in words."""
    changed = [(words, getattr(c, name)) for name, words in WORDS.items() if getattr(c, name) != getattr(base, name)]
    said = [words[value] if isinstance(words, tuple) else words.format(len(world.KINDS[value]) if value in world.KINDS else value)
            for words, value in changed]
    return ", ".join([way] * bool(way) + said) or "as it is"


def rows_of(lines, base):
    """[(what is changed, Config, runs with the detach, runs without it)] of one base, what changes least first."""
    def place(pair):
        c, way = pair[0]
        changed = [k for k, name in enumerate(WORDS) if getattr(c, name) != getattr(base, name)]
        return bool(way), len(changed) > 1, changed, c.steps, c.vlm_rate, len(world.KINDS[c.kinds]), c.alpha
    return [(told(c, way, base), c, ours, theirs) for (c, way), ours, theirs in sorted(pairs(lines), key=place)]


def at(line, side):
    """(key, test set) of a side in this line: where all demonstrations are of the kinds of "seen", that is what was shown."""
    key, name = SIDES[side]
    return key, "seen" if name == "shown" and "shown" not in line["success"] else name


def apart(ours, theirs, side):
    """(difference, low, high), 95 % bootstrap over seeds and scenes."""
    return difference(ours, theirs, *at(ours[0], side))


def rate_of(lines, side):
    key, name = at(lines[0], side)
    return float(np.mean([m[key][name]["rate"] for m in lines]))


def seconds_to(lines, level=.8):
    """Seconds of training until the mean success on the twelve kinds reaches `level`; "" where nobody looked on the way."""
    points = [(seconds, won.mean()) for _, seconds, won in curve(lines, "seen")]
    there = first_at(points, level)
    return "" if len(points) < 2 else "never" if there is None else f"{there:.0f}"


def answers(lines, key="vqa_after"):
    """The mean of what is answered, about the book after training."""
    return float(np.mean([book(m[key]) for m in lines]))


def tables(lines, brief=False, fewer=False):
    """Markdown: with / without the detach, for each row of each base; and the differences, unless brief. fewer: of each base
    only the rows of FEWER."""
    def cell(ours, theirs, side):
        middle, low, high = apart(ours, theirs, side)
        return f"{rate_of(ours, side):.2f} / {rate_of(theirs, side):.2f}" + f": {middle:+.2f} [{low:+.2f}, {high:+.2f}]" * (not brief)
    out = []
    for name, base, mine in bases(lines):
        found, rows = rows_of(mine, base), []
        # Else these are the twelve.
        sides = [side for side in (DRAWN if brief else SIDES) if side != "shown kinds"
                 or any("shown" in m["success"] for row in found for m in row[2])]
        for label, _, ours, theirs in found:
            if fewer and label not in FEWER:
                continue
            pace = [f"{np.mean([m['samples_a_second'] for m in ours]):.0f} / {np.mean([m['samples_a_second'] for m in theirs]):.0f}",
                    " / ".join(map(seconds_to, (ours, theirs))).strip(" /")]
            rows.append([label, len(theirs), *(cell(ours, theirs, side) for side in sides),
                         f"{answers(ours):.2f} / {answers(theirs):.2f}", *([] if brief else pace)])
        if rows:
            heads = [f"{name}: what is changed", "seeds", *sides, "answers, book", "samples a second", "seconds to .8 on the twelve kinds"]
            out.append(table(heads[:-2] if brief else heads, rows))
    return "\n\n".join(out)


def plot(lines, folder=RESULTS):
    """Each row's differences, with minus without the detach, and their intervals: map.png of post-training, map_joint.png of joint
    training."""
    found = bases(lines)
    for some, file in ((found[:2], "map.png"), (found[2:], "map_joint.png")):
        rows = []
        for name, base, mine in some:
            changed = rows_of(mine, base)
            rows += [(name, None)] * bool(changed) + [
                (f"{label} ({len(theirs)})", [*(apart(ours, theirs, side) for side in DRAWN), (answers(ours) - answers(theirs),) * 3])
                for label, _, ours, theirs in changed]
        if rows:
            draw.save(forest(rows, (*DRAWN, "answers, book")), folder / file)


def forest(rows, heads, low=-.45, high=.95):
    """rows: [(label, None: a headline, or (middle, low, high) for each column)] -> a picture: one row each, a column for each head."""
    left, wide, tall, font = 290, 150, 24, draw.font_of(13)
    sheet = Image.new("RGB", (left + (wide + 16) * len(heads), tall * (len(rows) + 2) + 8), draw.PAPER)
    pen = ImageDraw.Draw(sheet)
    for k, head in enumerate(heads):
        x0 = left + k * (wide + 16)

        def place(value, x0=x0):
            return x0 + (np.clip(value, low, high) - low) / (high - low) * wide
        pen.text((place(0), 4), head, draw.INK, font)
        if k == 0:
            pen.text((8, 4), "with minus without the detach (seeds)", draw.GREY, font)
        for value in (0, .4, .8):
            pen.line((place(value), tall, place(value), sheet.height - tall), draw.GREY if value == 0 else (225, 225, 225))
            pen.text((place(value), sheet.height - 18), f"{value:+.1f}" if value else "0", draw.GREY, font, "ma")
        for i, (label, values) in enumerate(rows):
            y = tall * (i + 1) + 14
            if k == 0:
                pen.text((8 + 12 * (values is not None), y), label, draw.INK, font, "lm")
            if values:
                middle, *ends = values[k]
                colour = draw.LINES[1 if k == 0 else 0]
                pen.line((place(ends[0]), y, place(ends[1]), y), colour, 2)
                pen.ellipse((place(middle) - 4, y - 4, place(middle) + 4, y + 4), colour)
    return sheet


def dial(lines):
    """Post-training: {what is done: [(VLM rate, runs with the detach, runs without it)]}, where more rates than one were tried.
    Without the detach the VLM's rate is a dial; with it there is nothing to turn."""
    out = {}
    for name, base, mine in bases(lines)[:2]:
        for (c, way), ours, theirs in sorted(pairs(mine), key=lambda pair: pair[0][0].steps):
            if not way and replace(c, steps=base.steps, vlm_rate=base.vlm_rate, vlm_adam=base.vlm_adam) == base:
                out.setdefault(f"{name.split(',')[0]}, {c.steps:,} steps", []).append((c.vlm_rate, ours, theirs))
    return {what: sorted(runs, key=lambda r: r[0]) for what, runs in out.items() if len(runs) > 1}


def plot_dial(lines, path=RESULTS / "dial.png"):
    charts = {}
    for what, runs in dial(lines).items():
        chart = charts[f"{what}, against the VLM's rate"] = {}
        for name, value, k in (("shown kinds", rate_of, 2), ("twelve kinds", rate_of, 2),
                               ("answers, book", lambda mine, _: answers(mine), 2), ("twelve kinds", rate_of, 1)):
            chart[name + ", detached" * (k == 1)] = [r[0] for r in runs], [value(r[k], name) for r in runs]
    if charts:
        draw.curves(charts, path, 640, 400, 2, log=True)


def dial_table(lines):
    """The rate that success on the shown kinds picks, the one that forgets least, and the detach."""
    rows = []
    for what, tried in dial(lines).items():
        picked, kept = (max(tried, key=key) for key in (lambda r: rate_of(r[2], "shown kinds"), lambda r: answers(r[2])))
        for how, rate, runs in (("picked by the shown kinds", picked[0], picked[2]),
                                ("keeps most answers", kept[0], kept[2]), ("none: with the detach", "-", picked[1])):
            rows.append([what, how, rate, len(runs), *(f"{rate_of(runs, side):.2f}" for side in DRAWN), f"{answers(runs):.2f}"])
    return table(["what is trained", "how the VLM's rate is chosen", "rate", "seeds", *DRAWN, "answers, book"], rows)


def main():
    program.parser(__doc__).parse_args()
    lines = [m for name in ("post", "joint", "arms") for m in lines_of(RESULTS / f"{name}.jsonl")]
    plot(lines)
    plot_dial(lines)
    print(tables(lines), dial_table(lines), sep="\n\n")


if __name__ == "__main__":
    program.run(main)
