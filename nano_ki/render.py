"""The camera: tables -> RGB pictures, by signed distance in a small window around each object.

There are two kinds of picture. The *picture book*, from which the VLM learns, shows pucks of several sizes, turned a
little, on plain or graded grounds from dark to light. The *robot camera* shows a table with a chequered cloth, goal
rings and the finger, none of which is in the book. Places are in table units, y points down, colours run from 0 to 1.

Try it: python -m nano_ki.render out.png          Read next: language.py
"""
import sys
from functools import lru_cache

import numpy as np

from nano_ki import program, world

RGB = np.array([(.88, .10, .12), (.10, .62, .18), (.14, .26, .90), (.96, .86, .12),     # world.COLOURS
                (.10, .80, .84), (.48, .14, .66), (.96, .52, .06), (.98, .58, .76)], np.float32)
WHITE, DARK = np.ones(3, np.float32), np.full(3, .08, np.float32)
CHECKS = 12                                       # along each side of the robot's table
MARGIN = 12                                       # pixels; enough for pictures up to 192 x 192

def _star(u, v):
    r, angle = np.sqrt(u * u + v * v), np.arctan2(u, -v)
    fold = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)     # 0 at a point, pi/5 between two
    x, y = r * np.cos(fold) - 1.15, r * np.sin(fold)
    edge = np.array((.46 * np.cos(np.pi / 5) - 1.15, .46 * np.sin(np.pi / 5)))
    edge /= np.sqrt((edge ** 2).sum())
    return x * np.float32(edge[1]) - y * np.float32(edge[0])

# The signed distance at (u, v) to each outline, in units of its radius, in the order of world.SHAPES.
OUTLINES = (lambda u, v: np.sqrt(u * u + v * v) - 1,                                # disc
            lambda u, v: np.maximum(np.abs(u), np.abs(v)) - .84,                    # square
            lambda u, v: np.maximum(v, np.abs(u) * .866 - v * .5) - .6,             # triangle
            _star,
            lambda u, v: np.minimum(np.maximum(np.abs(u) - .32, np.abs(v) - 1),     # cross
                                    np.maximum(np.abs(u) - 1, np.abs(v) - .32)),
            lambda u, v: np.abs(np.sqrt(u * u + v * v) - .72) - .26)                # ring
DISC, RING = 0, 5

def stamp(image, xy, outline, radius, colour, angle=None, opacity=1.):
    """Draw one object on each picture, in place. Edges are one pixel soft. image: float32 [B, wide, wide, 3]; MARGIN
    pixels of border are cut off later, so nothing needs clipping. xy: [B, 2]. outline (index into OUTLINES), radius
    (table units): one or [B]. colour: [3] or [B, 3]. angle: radians [B] or None. opacity: 0 to 1."""
    batch, wide = image.shape[:2]
    if not batch:
        return
    scale = (wide - 2 * MARGIN) / (2 * world.HALF)                         # pixels per table unit
    radius = np.broadcast_to(np.asarray(radius, np.float32) * np.float32(scale), batch)[:, None, None]
    half = int(np.ceil(radius.max() * 1.2)) + 1                            # of the window, in pixels
    centre = ((xy + world.HALF) * scale - .5 + MARGIN).astype(np.float32)[:, None]
    pixel = np.floor(centre).astype(int) - half + np.arange(2 * half + 2)[:, None]         # [B, W, (x, y)]
    offset = ((pixel - centre) / radius).astype(np.float32)
    u, v = np.broadcast_arrays(offset[:, None, :, 0], offset[:, :, None, 1])
    if angle is not None:
        cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
        u, v = u * cos + v * sin, v * cos - u * sin
    distance = np.empty(u.shape, np.float32)
    for index in np.unique(outline):
        rows = np.broadcast_to(outline == index, batch)
        distance[rows] = OUTLINES[index](u[rows], v[rows])
    alpha = np.clip(.5 - distance * radius, 0, opacity)[..., None]
    at = (np.arange(batch)[:, None, None] * wide + pixel[:, :, None, 1]) * wide + pixel[:, None, :, 0]
    pixels = image.reshape(-1, 3)
    under = pixels[at]
    pixels[at] = under + alpha * (np.reshape(colour, (-1, 1, 1, 3)) - under)

def picture_book(tables, rng, size=48):
    """uint8 [B, size, size, 3]: pictures of the pucks alone, in the style of a book. rng: numpy Generator."""
    batch, pucks = tables.puck.shape[:2]
    ends = rng.uniform(.1, 1, (2, batch, 1)) + rng.uniform(-.15, .15, (2, batch, 3))
    ends[1] = np.where(rng.random((batch, 1)) < .5, ends[0], ends[1])      # half plain, half graded
    ends = ends.transpose(0, 2, 1)[..., None, None].astype(np.float32)     # [2, 3, B, 1, 1]
    turn = rng.uniform(0, 2 * np.pi, (batch, 1, 1)).astype(np.float32)
    grid = np.linspace(-.7, .7, size + 2 * MARGIN, dtype=np.float32)
    mix = (.5 + .5 * (np.cos(turn) * grid + np.sin(turn) * grid[:, None])).clip(0, 1)
    image = np.stack([a + (b - a) * mix for a, b in zip(*ends, strict=True)], -1)    # (a last axis of length 3 is slow)
    for p in range(pucks):
        stamp(image, tables.puck[:, p], tables.kind[:, p, 1], world.PUCK * rng.uniform(.85, 1.15, batch), RGB[tables.kind[:, p, 0]], rng.uniform(-.35, .35, batch))
    return _to_bytes(image)

def robot_camera(tables, size=48, cloth=0.):
    """uint8 [B, size, size, 3]: what the robot sees. The same table always gives the same picture. cloth: the contrast
    of its chequered cloth, from 0 (plain grey) to .5 (black and white): how much the robot has left to learn."""
    image = np.repeat(_bare_table(size, cloth)[None], len(tables), 0)
    for p in range(tables.puck.shape[1]):
        stamp(image, tables.puck[:, p], tables.kind[:, p, 1], world.PUCK, RGB[tables.kind[:, p, 0]])
    stamp(image, tables.finger, np.where(tables.pressed, DISC, RING), np.where(tables.pressed, world.FINGER, 1.4 * world.FINGER), DARK)
    return _to_bytes(image)

@lru_cache
def _bare_table(size, cloth):
    """The cloth and the four goal rings, float32 with the border. They are the same every time."""
    check = np.arange(-MARGIN, size + MARGIN) * CHECKS // size
    grey = np.where((check + check[:, None]) % 2, .5 - cloth, .5 + cloth)
    image = np.repeat(grey[None, ..., None], 3, -1).astype(np.float32)
    for xy in world.PLACES:
        stamp(image, xy[None], RING, .24, WHITE, opacity=.25)
    return image[0]

def _to_bytes(image):
    return (image[:, MARGIN:-MARGIN, MARGIN:-MARGIN].clip(0, 1) * 255 + .5).astype(np.uint8)

if __name__ == "__main__":
    from PIL import Image
    tables = world.sample(rng := np.random.default_rng(0), 8)
    rows = picture_book(tables, rng, 96), robot_camera(tables, 96), robot_camera(tables, 96, .4)
    sheet = np.concatenate([np.concatenate(row, 1) for row in rows])
    program.write_whole([*sys.argv, "render.png"][1], lambda f: Image.fromarray(sheet).save(f, "PNG"))
    print(f"picture book, robot's camera, the same with its cloth: {rows[0].dtype} {rows[0].shape} each")
