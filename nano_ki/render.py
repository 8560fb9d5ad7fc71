"""The camera: tables -> RGB pictures, by signed distance in a small window around each object.

Two kinds of picture. The *picture book* (what the VLM learns from): backgrounds from dark to light,
plain or graded, pucks of several sizes, turned a little, no finger, nothing else. The *robot camera*:
one grained table, goal rings, pads, the finger, and noise if asked for (`grain`). How far they differ decides what there is to learn.

Try it: python -m nano_ki.render out.png          Read next: language.py
"""
import sys
from functools import lru_cache

import numpy as np

from nano_ki import world

RGB = np.array([(.88, .10, .12), (.10, .62, .18), (.14, .26, .90), (.96, .86, .12),     # world.COLOURS
                (.10, .80, .84), (.48, .14, .66), (.96, .52, .06), (.98, .58, .76)], np.float32)
WHITE, DARK = np.ones(3, np.float32), np.full(3, .08, np.float32)
MARGIN = 12                                       # pixels; enough for pictures up to 192 x 192
SPREAD = 211                                      # of the sheet that grain is cut from: 211^2 windows
TABLE = np.array((.50, .42, .34), np.float32)     # the robot's table


def _disc(u, v):
    return np.sqrt(u * u + v * v) - 1


def _square(u, v):
    return np.maximum(np.abs(u), np.abs(v)) - .84


def _triangle(u, v):
    return np.maximum(v, np.abs(u) * .866 - v * .5) - .6


def _star(u, v):
    r, angle = np.sqrt(u * u + v * v), np.arctan2(u, -v)
    fold = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)     # 0 at a point, pi/5 between two
    x, y = r * np.cos(fold) - 1.15, r * np.sin(fold)
    edge = np.array((.46 * np.cos(np.pi / 5) - 1.15, .46 * np.sin(np.pi / 5)))
    edge /= np.sqrt((edge ** 2).sum())
    return x * np.float32(edge[1]) - y * np.float32(edge[0])


def _cross(u, v):
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - .32, v - 1), np.maximum(u - 1, v - .32))


def _ring(u, v):
    return np.abs(np.sqrt(u * u + v * v) - .72) - .26


def _frame(u, v):
    return np.abs(np.maximum(np.abs(u), np.abs(v)) - .8) - .2


# Signed distance at (u, v) to the outline, in units of the radius: world.SHAPES, then the frame pad.
OUTLINES = (_disc, _square, _triangle, _star, _cross, _ring, _frame)
DISC, RING, FRAME = 0, 5, 6


def stamp(image, xy, outline, radius, colour, angle=None, opacity=1.):
    """Draw one object on each picture, in place.

    image: float32 [B, S + 2 MARGIN, S + 2 MARGIN, 3], with a border that is cut off later, so that
    nothing needs clipping; xy [B, 2] and radius [B] or a number, in table units; outline: int [B]
    index into OUTLINES or one for all; colour [B, 3] or [3]; angle: None or [B] radians; opacity 0 to
    1. Edges are one pixel soft.
    """
    batch, wide = image.shape[:2]
    if not batch:
        return
    scale = (wide - 2 * MARGIN) / (2 * world.HALF)                         # pixels per unit
    radius = np.broadcast_to(np.asarray(radius, np.float32) * np.float32(scale), batch)
    half = int(np.ceil(radius.max() * 1.2)) + 1
    centre = ((xy + world.HALF) * scale - .5 + MARGIN).astype(np.float32)
    corner = np.floor(centre).astype(int) - half
    k = np.arange(2 * half + 2)
    px, py = corner[:, :1] + k, corner[:, 1:] + k                          # [B, W] pixel columns, rows
    u = ((px - centre[:, :1]) / radius[:, None]).astype(np.float32)[:, None, :]
    v = ((py - centre[:, 1:]) / radius[:, None]).astype(np.float32)[:, :, None]
    if angle is not None:
        cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
        u, v = u * cos + v * sin, v * cos - u * sin
    if np.ndim(outline) == 0:
        distance = OUTLINES[outline](u, v)
    else:
        u, v = np.broadcast_arrays(u, v)
        distance = np.empty(u.shape, np.float32)
        for index in np.unique(outline):
            rows = np.flatnonzero(outline == index)
            distance[rows] = OUTLINES[index](u[rows], v[rows])
    alpha = np.clip(.5 - distance * radius[:, None, None], 0, opacity)[..., None]
    pixels = image.reshape(-1, 3)
    at = (np.arange(batch)[:, None] * wide + py)[:, :, None] * wide + px[:, None, :]
    under = pixels[at]
    pixels[at] = under + alpha * (np.reshape(colour, (-1, 1, 1, 3)) - under)


def picture_book(tables, rng, size=48):
    """uint8 [B, size, size, 3] pictures of the pucks alone, in the style of a book. rng: Generator."""
    batch, pucks = tables.puck.shape[:2]
    ends = rng.uniform(.1, 1, (2, batch, 1)) + rng.uniform(-.15, .15, (2, batch, 3))
    ends[1] = np.where(rng.random((batch, 1)) < .5, ends[0], ends[1])      # half plain, half graded
    turn = rng.uniform(0, 2 * np.pi, (batch, 1, 1)).astype(np.float32)
    grid = np.linspace(-.7, .7, size + 2 * MARGIN, dtype=np.float32)
    mix = (.5 + .5 * (np.cos(turn) * grid + np.sin(turn) * grid[:, None])).clip(0, 1)
    first, last = ends.astype(np.float32)[..., None, None]
    image = np.empty((*mix.shape, 3), np.float32)
    for c in range(3):                    # (one numpy product over the last axis, of length 3, is slow)
        image[..., c] = first[:, c] + (last - first)[:, c] * mix
    for p in range(pucks):
        stamp(image, tables.puck[:, p], tables.kind[:, p, 1],
              world.PUCK * rng.uniform(.85, 1.15, batch), RGB[tables.kind[:, p, 0]],
              rng.uniform(-.35, .35, batch))
    return _to_bytes(image)


def robot_camera(tables, size=48, grain=0.):
    """uint8 [B, size, size, 3]: what the robot sees. The same table always gives the same picture. grain: standard
    deviation of its pixels' noise (they run from 0 to 1), another for each table."""
    batch, pucks = tables.puck.shape[:2]
    image = np.repeat(_bare_table(size)[None], batch, 0)
    for i, outline in enumerate((DISC, FRAME)):
        rows = np.flatnonzero(tables.pads[:, i] >= 0)
        if len(rows):
            part = image[rows]
            stamp(part, world.PLACES[tables.pads[rows, i]], outline, .18, WHITE)
            image[rows] = part
    for p in range(pucks):
        stamp(image, tables.puck[:, p], tables.kind[:, p, 1], world.PUCK, RGB[tables.kind[:, p, 0]])
    stamp(image, tables.finger, np.where(tables.pressed, DISC, RING),
          np.where(tables.pressed, world.FINGER, 1.4 * world.FINGER), DARK)
    if grain and batch:
        bits = np.concatenate((tables.finger, tables.puck.reshape(batch, -1)), 1).astype(np.float32).view(np.uint32)
        place = (bits.astype(np.uint64) * (2 * np.arange(bits.shape[1], dtype=np.uint64) + 3)).sum(1) // 8
        row, column = (place // n % SPREAD for n in (1, SPREAD))
        windows = np.lib.stride_tricks.sliding_window_view(_noise(size), (size, size), (0, 1))
        image[:, MARGIN:-MARGIN, MARGIN:-MARGIN] += grain * windows[row, column].transpose(0, 2, 3, 1)
    return _to_bytes(image)


@lru_cache
def _noise(size):
    """float32 [SPREAD + size, SPREAD + size, 3], standard normal: each window of it is a picture's noise."""
    return np.random.default_rng(11).standard_normal((SPREAD + size, SPREAD + size, 3), np.float32)


@lru_cache
def _bare_table(size):
    """float32, with its border: the grain and the four goal rings, the same every time."""
    wide = size + 2 * MARGIN
    grain = np.random.default_rng(7).normal(0, 1, (wide, -(-wide // 4))).repeat(4, 1)[:, :wide, None]
    image = (TABLE * (1 + .10 * grain.clip(-2, 2))).astype(np.float32)[None]
    for xy in world.PLACES:
        stamp(image, xy[None], RING, .24, WHITE, opacity=.25)
    return image[0]


def _to_bytes(image):
    return (image[:, MARGIN:-MARGIN, MARGIN:-MARGIN].clip(0, 1) * 255 + .5).astype(np.uint8)


def main():
    from PIL import Image
    rng = np.random.default_rng(0)
    tables = world.sample(rng, 8, goals="mixed")
    rows = [np.concatenate(picture(tables), 1) for picture in (
        lambda t: picture_book(t, rng, 96), lambda t: robot_camera(t, 96), lambda t: robot_camera(t, 96, .16))]
    Image.fromarray(np.concatenate(rows)).save(sys.argv[1] if len(sys.argv) > 1 else "render.png")
    print(f"a picture book, the robot's camera, and the same with grain: {len(tables)} pictures of {rows[0].dtype} each")


if __name__ == "__main__":
    main()
