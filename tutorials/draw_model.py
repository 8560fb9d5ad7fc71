"""Draws the whole model for the README: two networks, two losses, and how far the gradient of each loss gets.

    python -m tutorials.draw_model [model.png]

Black arrows are values (forward), blue and orange ones are gradients (backward). A shaded area holds the
weights that one loss trains. The scene and its command are real ones.
"""
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from nano_ki import draw, language, program, render
from nano_ki.config import Config
from nano_ki.evaluate import test_scenes

OUT = Path(__file__).parent / "results" / "model.png"
WIDTH, HEIGHT, ZOOM = 1000, 576, 2           # drawn ZOOM times as large, then reduced: smooth edges
INK, GREY, BOX = (25, 25, 25), (95, 95, 95), (226, 226, 226)
BLUE, ORANGE, RED = (0, 90, 181), (220, 110, 0), (205, 20, 50)
PALE_BLUE, PALE_ORANGE = (233, 241, 251), (253, 241, 226)
SCENE = 75                                   # of the test scenes: nothing hides anything in it
VLM, EXPERT = (345, 551), (760, 966)         # left and right end of the layers
LAYERS, TALL = (294, 236, 178, 120), 44      # top of layer 0, 1, 2, 3; their height
ROW, WALL = 392, 690                         # the middle of the row of tokens; the place of the red line


def grow(*points):
    """Points of the final picture, which all functions here take -> points of the large one."""
    return [tuple(ZOOM * value for value in point) for point in points]


def write(pen, x, y, text, colour=INK, size=16, anchor="mm", bold=False):
    """Lines of text; anchor is Pillow's, for each line."""
    for number, line in enumerate(text.split("\n")):
        place = ZOOM * x, ZOOM * (y + 1.25 * size * number)
        pen.text(place, line, colour, draw.font_of(ZOOM * size), anchor, stroke_width=int(bold))


def box(pen, left, top, right, bottom, text="", fill=BOX, edge=GREY, thick=1, colour=INK, bold=False):
    pen.rounded_rectangle(grow((left, top), (right, bottom)), ZOOM * 6, fill, edge, ZOOM * thick)
    write(pen, (left + right) / 2, (top + bottom) / 2 - 10 * text.count("\n"), text, colour, bold=bold)


def arrow(pen, x0, y0, x, y, colour=INK):
    """Level or upright, from (x0, y0) to (x, y); gradients are thicker than values."""
    thick = 2 if colour == INK else 4
    dx, dy, long, wide = (x > x0) - (x < x0), (y > y0) - (y < y0), 7 + thick, 3 + thick
    pen.line(grow((x0, y0), (x - 6 * dx, y - 6 * dy)), colour, ZOOM * thick)
    pen.polygon(grow((x, y), (x - long * dx + wide * dy, y - long * dy + wide * dx),
                     (x - long * dx - wide * dy, y - long * dy - wide * dx)), colour)


def inputs(pen, sheet):
    """A scene as the robot's camera sees it, its command, and both as one row of tokens, the prefix."""
    scene = test_scenes("recombined", SCENE + 1).take([SCENE])
    picture = Image.fromarray(render.robot_camera(scene, 96, Config.cloth)[0])
    picture = picture.resize((ZOOM * 144, ZOOM * 144), Image.Resampling.NEAREST)
    sheet.paste(picture, grow((24, 262))[0])
    command = language.instruction(scene)[0].replace(" to ", "\nto ")
    write(pen, 96, 248, "the robot's camera")
    write(pen, 24, 430, f'"{command}"\n+ where the finger is', anchor="lm")
    box(pen, 206, ROW - 24, 306, ROW + 24, "vision\nencoder")
    box(pen, 400, 436, 551, 470, "word embeddings")
    arrow(pen, 168, ROW, 206, ROW)
    arrow(pen, 306, ROW - 8, 343, ROW - 8)
    arrow(pen, 180, 453, 400, 453)
    arrow(pen, 494, 436, 494, ROW + 9)
    for i in range(5):                       # (the second row's: there is something to be seen in it)
        part = picture.crop((ZOOM * 24 * i, ZOOM * 24, ZOOM * 24 * (i + 1), ZOOM * 48))
        sheet.paste(part.resize((ZOOM * 14, ZOOM * 14)), grow((345 + 16 * i, ROW - 7))[0])
    for i in range(7):
        pen.rectangle(grow((443 + 16 * i, ROW - 7), (457 + 16 * i, ROW + 7)), draw.PAPER, INK, ZOOM)
    pen.line(grow((345, 382), (345, 378), (557, 378), (557, 382)), INK, ZOOM)
    write(pen, 345, ROW + 22, "36 picture tokens", size=15, anchor="lm")
    write(pen, 500, ROW + 22, "7 prompt", size=15, anchor="lm")
    write(pen, 434, ROW - 4, "...")
    write(pen, 474, 360, "the prefix", anchor="lm")


def stack(pen, left, right, x, start, result, loss, colour):
    """Four layers; values rise at x, from what goes in below to what comes out on top, and the loss on it."""
    below = start
    for number, top in enumerate(LAYERS):
        box(pen, left, top, right, top + TALL, f"layer {number}")
        arrow(pen, x, below, x, top + TALL)
        below = top
    arrow(pen, x, below, x, 99)
    write(pen, x, 68, result)
    arrow(pen, x, 58, x, 44)
    box(pen, left, 10, right, 44, loss, draw.PAPER, colour, 3, colour, bold=True)


def wall(pen):
    """The stop-gradient, and the memory that passes it, from each layer of the VLM to the expert's."""
    for y in range(102, 350, 14):
        pen.line(grow((WALL, y), (WALL, y + 9)), RED, ZOOM * 3)
    write(pen, WALL, 48, ".detach()", RED, 20, bold=True)
    write(pen, WALL, 68, "values pass,\ngradients do not", RED)
    for top in LAYERS:
        arrow(pen, VLM[1], top + 12, EXPERT[0], top + 12)
        write(pen, 622, top, "memory: K, V", size=15)
    write(pen, 684, 436, "memory: K and V of each layer,\nof the prefix and the landing\nplace, never of FAST tokens", size=15)


def gradients(pen):
    """Blue: everywhere in the VLM. Orange: everywhere in the expert, and in each layer as far as the wall."""
    blue, orange = VLM[0] + 20, EXPERT[0] + 20
    for ends in ((blue, 44, blue, ROW - 9), (343, ROW + 8, 306, ROW + 8), (476, ROW + 9, 476, 436)):
        arrow(pen, *ends, BLUE)
    arrow(pen, orange, 44, orange, LAYERS[0] + TALL, ORANGE)
    for y in (top + 27 for top in LAYERS):
        arrow(pen, orange, y, WALL + 8, y, ORANGE)
        for down in (-8, 8):
            pen.line(grow((WALL - 8, y - down), (WALL + 8, y + down)), ORANGE, ZOOM * 4)
    write(pen, 333, 208, "gradient of the\ncross-entropy", BLUE, 17, "rm")
    write(pen, 657, 372, "gradient of the flow\nloss: stops here", ORANGE, 17)


def captions(pen):
    """What arrows and areas mean, the equation, what the losses compare with, and what acting needs."""
    arrow(pen, 24, 20, 62, 20)
    arrow(pen, 62, 37, 24, 37, BLUE)
    arrow(pen, 62, 51, 24, 51, ORANGE)
    box(pen, 24, 62, 62, 78, fill=PALE_BLUE, edge=BLUE)
    box(pen, 24, 86, 62, 102, fill=PALE_ORANGE, edge=ORANGE)
    for y, text in ((20, "values (forward)"), (44, "gradients (backward)"),
                    (70, "trained by the cross-entropy alone"), (94, "trained by the flow loss alone")):
        write(pen, 72, y, text, anchor="lm")
    x = 294
    for text, colour in (("loss  =  ", INK), ("cross-entropy", BLUE), ("  +  alpha  *  ", INK),
                         ("flow loss", ORANGE)):
        write(pen, x, 508, text, colour, 22, "lm")
        x += draw.font_of(ZOOM * 22).getlength(text) / ZOOM
    write(pen, WIDTH / 2, 540, "A demonstrated motion is the target of both losses, as tokens and as "
          "numbers. Questions give a cross-entropy only.\nTo act: the prefix goes through the VLM once, "
          "it says where the finger lands, and the expert turns noise into motion. No FAST token is needed.", GREY, 15)


def main():
    sheet = Image.new("RGB", (ZOOM * WIDTH, ZOOM * HEIGHT), draw.PAPER)
    pen = ImageDraw.Draw(sheet)
    box(pen, 196, 108, 566, 482, fill=PALE_BLUE, edge=PALE_BLUE)
    box(pen, 748, 108, 980, 404, fill=PALE_ORANGE, edge=PALE_ORANGE)
    write(pen, 208, 132, "VLM:\n4 layers", size=20, anchor="lm", bold=True)
    write(pen, 758, 362, "action expert:\n4 layers", size=20, anchor="lm", bold=True)
    inputs(pen, sheet)
    stack(pen, *VLM, 460, 378, "landing place, FAST\ntokens; or words", "cross-entropy", BLUE)
    stack(pen, *EXPERT, 890, 418, "velocity: from\nnoise to action", "flow loss", ORANGE)
    write(pen, 890, 431, "noisy action x_t,\nflow time t")
    wall(pen)
    gradients(pen)
    captions(pen)
    sheet = sheet.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    sheet = sheet.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)       # (a small file)
    draw.save(sheet, sys.argv[1] if len(sys.argv) > 1 else OUT, optimize=True)


if __name__ == "__main__":
    program.run(main)
