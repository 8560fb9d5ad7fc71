"""Pictures for people, with pillow: curves as PNG, rollouts as GIF. No idea of the method is in here.

Try it: python -m nano_ki.draw out.png
"""
import os
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, GREY, PAPER = (30, 30, 30), (150, 150, 150), (255, 255, 255)
LINES = ((31, 119, 180), (214, 99, 20), (44, 140, 44), (190, 40, 50), (120, 85, 170), (110, 75, 65))


def curves(charts, path, width=480, height=300, columns=4):
    """PNG of charts, `columns` of them in a row. charts: {title: {name: (xs, ys)}}; curves with no points are left out."""
    columns = min(columns, len(charts))
    sheet = Image.new("RGB", (width * columns, height * -(-len(charts) // columns)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, (title, lines) in enumerate(charts.items()):
        left, top = i % columns * width + 52, i // columns * height + 34
        right, bottom = left + width - 68, top + height - 64
        lines = {name: np.array(xy, float) for name, xy in lines.items() if len(xy[0])}
        pen.text((left, top - 26), title, INK, font)
        if not lines:
            pen.text((left, top), "no data", GREY, font)
            continue
        xy = np.concatenate(list(lines.values()), 1)
        (x0, y0), (x1, y1) = xy.min(1), xy.max(1)
        y0 = min(0, y0)
        y1 = y1 if y1 > y0 else y0 + 1
        x1 = x1 if x1 > x0 else x0 + 1
        for k in range(5):
            y = bottom - (bottom - top) * k / 4
            pen.line((left, y, right, y), (225, 225, 225))
            pen.text((left - 6, y), f"{y0 + (y1 - y0) * k / 4:.3g}", GREY, font, "rm")
        for x, anchor, value in ((left, "la", x0), (right, "ra", x1)):
            pen.text((x, bottom + 8), f"{value:g}", GREY, font, anchor)
        for k, (name, (xs, ys)) in enumerate(lines.items()):
            points = list(zip(left + (xs - x0) / (x1 - x0) * (right - left),
                              bottom - (ys - y0) / (y1 - y0) * (bottom - top), strict=True))
            colour = LINES[k % len(LINES)]
            pen.line(points, colour, 2)
            if len(points) < 30:
                for x, y in points:
                    pen.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
            if len(lines) > 1:
                pen.text((right - 4, top + 4 + 16 * k), name, colour, font, "ra")
    _save(sheet, path)


def panels(pictures, texts, won, waypoints=None):
    """One frame: pictures uint8 [B, S, S, 3] in rows of four, a text above each; waypoints: {index:
    [n, 2] table coordinates still to come}."""
    count, size = pictures.shape[:2]
    columns = min(count, 4)
    sheet = Image.new("RGB", (columns * (size + 6) - 6, -(-count // columns) * (size + 42) - 6), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
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
    _save(small[0], path, save_all=True, append_images=small[1:], duration=milliseconds, loop=0,
          optimize=True)


def _save(image, path, **options):
    kind = str(path).rsplit(".", 1)[-1].upper()
    image.save(f"{path}.part", kind, **options)
    os.replace(f"{path}.part", path)


def main():
    x = np.arange(100)
    curves({"sines": {"sin": (x, np.sin(x / 9)), "cos": (x, np.cos(x / 9))}, "empty": {}},
           sys.argv[1] if len(sys.argv) > 1 else "curves.png")


if __name__ == "__main__":
    main()
