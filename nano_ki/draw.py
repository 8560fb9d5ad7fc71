"""Pictures for people, with pillow: curves as PNG, rollouts as GIF. No idea of the method is in here.

Try it: python -m nano_ki.draw out.png
"""
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nano_ki.program import write_whole

INK, GREY, PAPER = (30, 30, 30), (150, 150, 150), (255, 255, 255)
LINES = ((31, 119, 180), (214, 99, 20), (44, 140, 44), (190, 40, 50), (120, 85, 170), (110, 75, 65))


def curves(charts, path, width=480, height=300, columns=4, log=False):
    """PNG of charts, `columns` of them in a row. charts: {title: {name: (xs, ys) or (xs, ys, lows, highs)}}, the last two
    for error bars; curves with no points are left out. log: the x axis is logarithmic."""
    columns = min(columns, len(charts))
    sheet = Image.new("RGB", (width * columns, height * -(-len(charts) // columns)), PAPER)
    for i, (title, lines) in enumerate(charts.items()):
        left, top = i % columns * width + 52, i // columns * height + 50
        _chart(ImageDraw.Draw(sheet), title, lines, left, top, left + width - 68, top + height - 80, log)
    save(sheet, path)


def _chart(pen, title, lines, left, top, right, bottom, log):
    """One chart of `curves`; the box is in pixels."""
    font = font_of(13)
    lines = {name: np.array(values, float) for name, values in lines.items() if len(values[0])}
    if log:
        lines = {name: np.concatenate((np.log10(v[:1]), v[1:])) for name, v in lines.items()}
    pen.text((left, top - 44), title, INK, font)
    if not lines:
        pen.text((left, top), "no data", GREY, font)
        return
    xs, ys = np.concatenate([v[0] for v in lines.values()]), np.concatenate([v[1:].ravel() for v in lines.values()])
    x0, x1, y0 = xs.min(), xs.max(), min(0, ys.min())
    step = nice((ys.max() - y0) / 4)
    y0, y1 = np.floor(y0 / step) * step, np.ceil(ys.max() / step - 1e-9) * step
    x1, y1 = x1 if x1 > x0 else x0 + 1, y1 if y1 > y0 else y0 + step

    def place(x, y):
        return left + (x - x0) / (x1 - x0) * (right - left), bottom - (y - y0) / (y1 - y0) * (bottom - top)
    for value in np.arange(y0, y1 + step / 2, step):
        y = place(x0, value)[1]
        pen.line((left, y, right, y), (225, 225, 225))
        pen.text((left - 6, y), f"{value:.3g}" if abs(value) > 1e-9 else "0", GREY, font, "rm")
    for x, anchor, value in ((left, "la", x0), (right, "ra", x1)):
        pen.text((x, bottom + 8), f"{10 ** value:.6g}" if log else f"{value:.4g}", GREY, font, anchor)
    name_x = left
    for k, (name, values) in enumerate(lines.items()):
        points, colour = list(zip(*place(values[0], values[1]), strict=True)), LINES[k % len(LINES)]
        for x, low, high in values[[0, 2, 3]].T if len(values) == 4 else ():
            pen.line((*place(x, low), *place(x, high)), colour, 1)
        pen.line(points, colour, 2)
        if len(points) < 30:
            for x, y in points:
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
        if len(lines) > 1:
            pen.text((name_x, top - 24), name, colour, font)
            name_x += pen.textlength(name, font) + 14


def font_of(size):
    """Pillow's own font; its small one where Pillow was built without FreeType."""
    try:
        return ImageFont.load_default(size)
    except (ImportError, OSError):
        return ImageFont.load_default()


def nice(step):
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `step`."""
    power = 10. ** np.floor(np.log10(max(step, 1e-12)))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step * (1 - 1e-9))


def panels(pictures, texts, won, waypoints=None):
    """One frame: pictures uint8 [B, S, S, 3] in rows of four, a text above each; waypoints: {index:
    [n, 2] table coordinates still to come}."""
    count, size = pictures.shape[:2]
    columns = min(count, 4)
    sheet = Image.new("RGB", (columns * (size + 6) - 6, -(-count // columns) * (size + 42) - 6), PAPER)
    pen, font = ImageDraw.Draw(sheet), font_of(12)
    for i, text in enumerate(texts):
        x, y = i % columns * (size + 6), i // columns * (size + 42)
        words = text.split(" to ")
        pen.multiline_text((x + 2, y + 1), f"{words[0]}\nto {words[-1]}", INK, font, spacing=1)
        sheet.paste(Image.fromarray(pictures[i]), (x, y + 36))
        if waypoints and i in waypoints:
            for px, py in (waypoints[i] + 1.2) / 2.4 * size:
                if 0 <= px < size and 0 <= py < size:
                    pen.ellipse((x + px - 2, y + 34 + py, x + px + 2, y + 38 + py), PAPER, INK)
        if won[i]:
            pen.text((x + size - 2, y + 16), "done", LINES[2], font, "ra")
    return sheet


def save_gif(frames, path, milliseconds=90):
    """frames: PIL images of one size."""
    # One palette for all: median cut, the default, would spend it on the table's grain.
    first = frames[0].quantize(128, Image.Quantize.FASTOCTREE)
    small = [f.quantize(palette=first, dither=Image.Dither.NONE) for f in frames]
    save(small[0], path, save_all=True, append_images=small[1:], duration=milliseconds, loop=0,
          optimize=True)


def save(image, path, **options):
    """A PIL image into a file of the kind that its name says."""
    kind = str(path).rsplit(".", 1)[-1].upper()
    write_whole(path, lambda f: image.save(f, kind, **options))


def main():
    x = np.arange(0, 100, 4)
    curves({"sines": {"sin": (x, np.sin(x / 9)), "cos": (x, np.cos(x / 9), np.cos(x / 9) - .1, np.cos(x / 9) + .1)}, "empty": {}},
           sys.argv[1] if len(sys.argv) > 1 else "curves.png")


if __name__ == "__main__":
    main()
