"""Draws four ideas for the pages, from the library's own numbers: who sees whom, one way from noise to action, how a chunk becomes
tokens, and a layer of the expert with its gates.

    python -m tutorials.draw_ideas          # into tutorials/drawings/
"""
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from nano_ki import checkpoint, config, draw, evaluate, flow, play, program, world
from nano_ki.decoder import prefix_mask
from nano_ki.expert import draw_mask
from tutorials.draw_model import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE_BLUE,
    PALE_ORANGE,
    RED,
    ZOOM,
    arrow,
    box,
    grow,
    write,
)

FOLDER = Path(__file__).parent / "drawings"


def sheet_of(width, height):
    sheet = Image.new("RGB", (ZOOM * width, ZOOM * height), draw.PAPER)
    return sheet, ImageDraw.Draw(sheet)


def save(sheet, name):
    sheet = sheet.resize((sheet.width // ZOOM, sheet.height // ZOOM), Image.Resampling.LANCZOS)
    draw.save(sheet.quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE), FOLDER / f"{name}.png", optimize=True)


def mask():
    """The block table of model.py, cell by cell, with few tokens in each group. The cells are prefix_mask's and draw_mask's."""
    groups = (("picture\n+ prompt", 4), ("words of\nthe answer", 2), ("FAST\ntokens", 3),
              ("action tokens,\nfirst noise", 2), ("action tokens,\nsecond noise", 2))
    read, spoken, own = 6, 9, 4                              # tokens of: the memory, the VLM, the expert
    sees = np.zeros((spoken + own, spoken + own), bool)
    sees[:spoken, :spoken] = prefix_mask(4, 5).numpy()
    expert = draw_mask(read, 2, 2).numpy()
    sees[spoken:, :read], sees[spoken:, spoken:] = expert[:, :read], expert[:, read:]
    sheet, pen = sheet_of(760, 640)
    left, top, cell = 190, 120, 36
    for row, column in np.ndindex(sees.shape):
        colour = (BLUE if row < spoken else ORANGE) if sees[row, column] else (240, 240, 240)
        pen.rectangle(grow((left + column * cell, top + row * cell),
                           (left + column * cell + cell - 3, top + row * cell + cell - 3)), colour)
    at = 0
    for text, count in groups:
        middle = (at + count / 2) * cell
        write(pen, left - 12, top + middle - 9 * text.count("\n"), text, size=15, anchor="rm")
        write(pen, left + middle, top - 50, text.replace("action tokens,\n", "action,\n").replace(" noise", ""), size=13)
        at += count
        for line in ((left - 8, top + at * cell - 1.5, left + len(sees) * cell, top + at * cell - 1.5),
                     (left + at * cell - 1.5, top - 8, left + at * cell - 1.5, top + len(sees) * cell)):
            pen.line(grow(line[:2], line[2:]), GREY, ZOOM)
    write(pen, left, 24, "Row: who looks. Column: at whom. Blue: the VLM. Orange: the expert.", GREY, 15, "lm")
    write(pen, left, 612, "The expert never sees FAST tokens, and no VLM token sees the expert.", GREY, 15, "lm")
    save(sheet, "mask")


def flow_way():
    """A shipped policy's chunk on its way from noise: at the times of its Euler steps, on the table."""
    model = checkpoint.load_model(program.ROOT / "data" / "ki.pt")
    tables = evaluate.test_scenes("seen", 1, evaluate.CHECK_SEED)
    times = flow.times(model.config.euler_steps).tolist()
    way = np.array(play.plan(model, tables.take(slice(None)), seed=1)["plan"])               # (of x and y, at each time)
    side, size = 300, 250
    sheet, pen = sheet_of(side * len(times) + 20, side + 60)
    for k, (t, x) in enumerate(zip(times, way, strict=True)):
        # An Euler step is its velocity times its length.
        v = (way[k + 1] - x) / (times[k + 1] - t) if k + 1 < len(times) else None
        left, top = 15 + k * side, 45

        def at(xy, left=left, top=top):
            return left + size * (xy[0] + world.HALF) / 2 / world.HALF, top + size * (xy[1] + world.HALF) / 2 / world.HALF
        pen.rectangle(grow((left, top), (left + size, top + size)), (246, 242, 236), GREY)
        for puck in tables.puck[0]:
            pen.ellipse(grow(at(puck - world.PUCK), at(puck + world.PUCK)), (225, 225, 225), GREY)
        target = tables.puck[0, tables.target[0]]
        pen.ellipse(grow(at(target - world.PUCK), at(target + world.PUCK)), (170, 205, 240), BLUE, 2 * ZOOM)
        for i, point in enumerate(x):
            if v is not None:
                ends = np.clip((point, point + v[i] / 3), -world.HALF, world.HALF)
                pen.line(grow(*map(at, ends)), (245, 190, 130), 2 * ZOOM)
            px, py = at(point)
            pen.ellipse(grow((px - 3, py - 3), (px + 3, py + 3)), ORANGE)
        write(pen, left + size / 2, 22, f"t = {t:.2f}" + {0: ": noise", len(times) - 1: ": the chunk"}.get(k, ""), size=17)
    write(pen, 15, side + 25, "Orange: the 16 waypoints (x, y). Lines: "
          "a third of the velocity that the expert predicts for each. Blue: the puck that is meant.", GREY, 14, "lm")
    save(sheet, "flow")


def tokens():
    """One chunk: waypoints, integers, tokens. The tokenizer is the generalist's."""
    _, fast = checkpoint.begin("data/generalist.pt", config.make(device="cpu", preset="laptop", recipe="generalist"))
    strokes = world.stroke(evaluate.test_scenes("seen", 1, evaluate.CHECK_SEED))
    ids = fast.encode(strokes[0])
    sheet, pen = sheet_of(900, 390)
    write(pen, 20, 24, "Sixteen waypoints, three numbers each (x, y, press), over time", size=16, anchor="lm")
    shown = fast.normalise(strokes[0])
    for d, colour in enumerate((BLUE, ORANGE, GREY)):
        points = [(20 + 53 * h + 26, 90 - 38 * shown[h, d]) for h in range(16)]
        pen.line(grow(*points), colour, 2 * ZOOM)
        for x, y in points:
            pen.ellipse(grow((x - 3, y - 3), (x + 3, y + 3)), colour)
    write(pen, 20, 152, f"Cosine transform, times {fast.gamma:g}, rounded: "
          "48 integers in one list, x y press of the lowest frequency first", size=16, anchor="lm")
    integers, x = np.concatenate([fast.spans[i] for i in ids]), 20
    for k, value in enumerate(integers):
        colour = BLUE if value else (200, 200, 200)
        write(pen, 20 + 53 * (k % 16) + 26, 182 + 26 * (k // 16), f"{value}", colour, 16, bold=bool(value))
    write(pen, 20, 284, f"Neighbours that often come together are one token (byte-pair encoding): {len(ids)} tokens",
          size=16, anchor="lm")
    wide = 860 / sum(max(1., len(fast.spans[i]) ** .5) for i in ids)
    for i in ids:
        w = wide * max(1., len(fast.spans[i]) ** .5)
        text = " ".join(map(str, fast.spans[i])) if len(fast.spans[i]) <= 4 else f"{len(fast.spans[i])} integers"
        box(pen, x + 2, 304, x + w - 2, 340, f"{i}", PALE_BLUE, BLUE)
        write(pen, x + w / 2, 356, text, GREY, 12)
        x += w
    save(sheet, "tokens")


def gates():
    """A half layer of the expert: adaptive RMSNorm, and the gate that is 0 at first."""
    sheet, pen = sheet_of(900, 330)
    box(pen, 20, 20, 160, 64, "flow time t", PALE_ORANGE, ORANGE)
    box(pen, 200, 20, 400, 64, "sines, cosines,\nsmall network", PALE_ORANGE, ORANGE)
    arrow(pen, 160, 42, 200, 42)
    for x, text in ((335, "scale"), (455, "shift"), (735, "gate")):
        pen.line(grow((400, 42), (max(x, 400), 42)), INK, ZOOM * 2)
        box(pen, x - 45, 96, x + 45, 128, text, PALE_ORANGE, ORANGE)
        arrow(pen, x, 42 if x > 400 else 64, x, 96)
        arrow(pen, x, 128, x, 192)
    y = 210
    box(pen, 20, y - 22, 110, y + 22, "x", PALE_BLUE, BLUE)
    box(pen, 170, y - 22, 280, y + 22, "norm(x)", PALE_BLUE, BLUE)
    for x, text in ((335, "x"), (455, "+"), (735, "x"), (835, "+")):
        pen.ellipse(grow((x - 18, y - 18), (x + 18, y + 18)), draw.PAPER, INK, ZOOM * 2)
        write(pen, x, y, text, size=20)
    box(pen, 520, y - 30, 670, y + 30, "attention\n(or the MLP)", PALE_BLUE, BLUE)
    for a, b in ((110, 170), (280, 317), (353, 437), (473, 520), (670, 717), (753, 817), (853, 892)):
        arrow(pen, a, y, b, y)
    pen.line(grow((65, y + 22), (65, 280), (835, 280)), INK, ZOOM * 2)
    arrow(pen, 835, 280, 835, y + 18)
    write(pen, 450, 306, "The gate of a new expert is 0: the layer passes x on as it came, "
          "and no gradient gets through to the memory.", RED, 15)
    save(sheet, "gates")


def main():
    for picture in (mask, flow_way, tokens, gates):
        picture()
    print(f"{FOLDER}/ holds {', '.join(sorted(p.name for p in FOLDER.glob('*.png')))}")


if __name__ == "__main__":
    program.run(main)
