"""Pictures for people, with pillow: curves as PNG, rollouts as GIF. No idea of the method is in here."""
import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from nano_ki.program import write_whole

INK, GREY, PAPER = (30, 30, 30), (150, 150, 150), (255, 255, 255)
LINES = ((31, 119, 180), (214, 99, 20), (44, 140, 44), (190, 40, 50), (120, 85, 170), (110, 75, 65))

def curves(charts, path, width=480, height=300, columns=4, log=False):
    """Write a PNG of charts, `columns` in a row. charts: {title: {name: (xs, ys) or (xs, ys, lows, highs)}}, where
    lows and highs end error bars. A curve without points is left out. log: the x axis is logarithmic."""
    columns = min(columns, len(charts))
    sheet = Image.new("RGB", (width * columns, height * int(np.ceil(len(charts) / columns))), PAPER)
    for i, (title, lines) in enumerate(charts.items()):
        left, top = i % columns * width + 52, i // columns * height + 50
        _chart(ImageDraw.Draw(sheet), title, lines, left, top, left + width - 68, top + height - 80, log)
    save(sheet, path)

def _chart(pen, title, lines, left, top, right, bottom, log):
    """One chart of `curves`; the box is in pixels."""
    font, name_x = font_of(13), left
    lines = {name: np.array((np.log10(x) if log else x, *y), float) for name, (x, *y) in lines.items() if len(x)}
    pen.text((left, top - 44), title, INK, font)
    if not lines:
        pen.text((left, top), "no data", GREY, font)
        return
    xs = np.concatenate([values[0] for values in lines.values()])
    ys = np.concatenate([values[1:].ravel() for values in lines.values()])
    x0, x1, y0 = xs.min(), xs.max(), min(0, ys.min())
    power = 10. ** np.floor(np.log10(max((ys.max() - y0) / 4, 1e-12)))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if 4 * m * power >= (ys.max() - y0) * (1 - 1e-9))        # (a round number)
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
    for k, (name, values) in enumerate(lines.items()):
        points, colour = list(zip(*place(values[0], values[1]), strict=True)), LINES[k % len(LINES)]
        for x, low, high in values[[0, 2, 3]].T if len(values) == 4 else ():
            pen.line((*place(x, low), *place(x, high)), colour, 1)
        pen.line(points, colour, 2)
        for x, y in points if len(points) < 30 else ():
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
        if len(lines) > 1:
            pen.text((name_x, top - 24), name, colour, font)
            name_x += pen.textlength(name, font) + 14

def font_of(size):
    """Pillow's own font; its small one where Pillow was built without FreeType."""
    return ImageFont.load_default(size if features.check("freetype2") else None)

def panels(pictures, texts, won, waypoints=None):
    """One frame: pictures uint8 [B, S, S, 3] in rows of four, under texts. waypoints: {index: places [n, 2] ahead}."""
    count, size = pictures.shape[:2]
    columns = min(count, 4)
    sheet = Image.new("RGB", (columns * (size + 6) - 6, int(np.ceil(count / columns)) * (size + 42) - 6), PAPER)
    pen, font = ImageDraw.Draw(sheet), font_of(12)
    for i, text in enumerate(texts):
        x, y = i % columns * (size + 6), i // columns * (size + 42)
        pen.multiline_text((x + 2, y + 1), text.replace(" to ", "\nto "), INK, font, spacing=1)
        sheet.paste(Image.fromarray(pictures[i]), (x, y + 36))
        for px, py in (waypoints[i] + 1.2) / 2.4 * size if waypoints and i in waypoints else ():
            if 0 <= px < size and 0 <= py < size:
                pen.ellipse((x + px - 2, y + 34 + py, x + px + 2, y + 38 + py), PAPER, INK)
        if won[i]:
            pen.text((x + size - 2, y + 16), "done", LINES[2], font, "ra")
    return sheet

def save_gif(frames, path, milliseconds=90):
    """frames: PIL images of one size. (Median cut, the default, would spend the palette on the cloth.)"""
    palette = frames[0].quantize(128, Image.Quantize.FASTOCTREE)
    small = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    save(small[0], path, save_all=True, append_images=small[1:], duration=milliseconds, loop=0, optimize=True)

def save(image, path, **options):
    """A PIL image into a file of the kind that its name says."""
    kind = Image.registered_extensions().get(f".{str(path).rsplit('.', 1)[-1].lower()}")
    if kind is None:
        raise ValueError(f"{path} does not end like a picture; name it .png or .gif")
    write_whole(path, lambda f: image.save(f, kind, **options))
