"""The tabletop: pucks, a retractable finger, and a scripted expert, for thousands of tables at once.

A square table [-1.2, 1.2]^2 (y points down, as in the picture) holds three pucks. A finger is raised
(it passes over pucks) or pressed (it pushes them). An action is a waypoint (x, y, press): where the
finger should be one step from now, and whether it is pressed (> 0). Contact is quasi-static: the
penetration moves the puck along the contact normal, Coulomb friction drags it along the tangent.

A task is three things: data (the goal fields of `Tables`), a success test (`success`) and an expert
(`stroke`). A new kind of task adds to these three and to language.py; no model code knows of tasks.

Try it: python -m nano_ki.world          Read next: render.py
"""
from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np

HALF = 1.2           # half the table's side; all lengths are in these table units
PUCK = .22           # contact radius of a puck, whatever its shape
FINGER = .08         # radius of the finger
REACH = .45          # the finger moves at most this far in one step
SUBSTEPS = 4         # contact is solved this often in one step
PASSES = 3           # and this often among pucks and walls: each halves what a wall makes overlap
FRICTION = 1.        # Coulomb: tangential drag <= FRICTION * normal displacement
NEAR = .15           # success: the target's centre is this close to its goal
HORIZON = 80         # steps allowed for one task
STEPS = 16           # waypoints in one stroke of the expert (a chunk), at control rate 1
TRIES = 2000         # draws of a scene before it is given up
TOUCH = PUCK + FINGER
PUCK_LIMIT, FINGER_LIMIT = HALF - PUCK, HALF - FINGER

COLOURS = ("red", "green", "blue", "yellow", "cyan", "purple", "orange", "pink")
SHAPES = ("disc", "square", "triangle", "star", "cross", "ring")
SIDES = ("left", "right", "top", "bottom")     # goals that the word alone gives away
PADS = ("dot", "frame")                        # goals that only the camera shows
GOALS = SIDES + PADS
PLACES = np.array([(-.9, 0), (.9, 0), (0, -.9), (0, .9)], np.float32)  # of SIDES, in order


def kinds(colours, shapes):
    """All (colour, shape) index pairs of these names, as an int array [n, 2]."""
    return np.array([(COLOURS.index(c), SHAPES.index(s)) for c in colours for s in shapes])


def _test_sets():
    four = np.array([(COLOURS.index(c), SHAPES.index(s)) for c, s in (
        ("red", "star"), ("green", "square"), ("blue", "disc"), ("yellow", "triangle"))])
    old_c, new_c = ("red", "green", "blue", "yellow"), ("cyan", "purple", "orange", "pink")
    old_s, new_s = ("star", "square", "disc", "triangle"), ("cross", "ring")
    old = kinds(old_c, old_s)
    twelve = old[~(old[:, None] == four).all(-1).any(1)]
    return {"seen": twelve, "recombined": four, "new_colour": kinds(new_c, old_s), "new_shape": kinds(old_c, new_s),
            "new_both": kinds(new_c, new_s), "all": kinds(COLOURS, SHAPES),
            "3": four[:3], "4": four, "8": np.concatenate((four, twelve[[0, 4, 8, 9]])), "16": old}


KINDS = _test_sets()                           # which objects exist in which set of scenes
TEST_SETS = ("seen", "recombined", "new_colour", "new_both")


@dataclass
class Tables:
    """B tables at one moment. float32 and int arrays, leading axis B; P pucks each."""
    puck: np.ndarray      # [B, P, 2] centres
    kind: np.ndarray      # [B, P, 2] (colour, shape) indices
    finger: np.ndarray    # [B, 2]
    pressed: np.ndarray   # [B] bool
    target: np.ndarray    # [B] which puck the command means
    goal: np.ndarray      # [B] index into GOALS: the word that names where to push it
    pads: np.ndarray      # [B, 2] index into PLACES of the dot and of the frame, -1 where absent
    goal_xy: np.ndarray   # [B, 2] where that is

    def __len__(self):
        return len(self.puck)

    def take(self, index):
        """The tables at `index` (ints, slice or bool mask), copied."""
        return Tables(*(np.array(getattr(self, f.name)[index]) for f in fields(self)))

    def target_xy(self):
        """[B, 2] centre of the target puck."""
        return self.puck[np.arange(len(self)), self.target]


def join(parts):
    """One `Tables` from several, in order."""
    return Tables(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Tables)))


def sample(rng, batch, kind_set=None, goals="sides", pucks=3):
    """`batch` new scenes. rng: numpy Generator; kind_set: int [n, 2] (default all 48 kinds), n >= pucks.

    Never two pucks of one kind; in 60 % of the scenes another puck shares the target's colour or its
    shape (where `kind_set` has such), so that both words matter. goals: "sides" | "pads" | "mixed".
    """
    kind_set = KINDS["all"] if kind_set is None else np.asarray(kind_set)
    if goals not in ("sides", "pads", "mixed"):
        raise ValueError(f"goals is {goals!r}; it must be 'sides', 'pads' or 'mixed'")
    if len(kind_set) < pucks:
        raise ValueError(f"{len(kind_set)} kinds of object cannot fill {pucks} places without repeats")
    rows = np.arange(batch)
    key = rng.random((batch, len(kind_set)))            # the largest keys win
    chosen = [key.argmax(1)]
    related = (kind_set[chosen[0]][:, None] == kind_set).any(-1)
    bonus = related * (rng.random((batch, 1)) < .6)     # for the second puck only
    for i in range(1, pucks):
        key[rows, chosen[-1]] = -9
        chosen.append((key + bonus if i == 1 else key).argmax(1))
    kind = kind_set[np.stack(chosen, 1)]

    pads = np.full((batch, 2), -1)
    goal = rng.integers(4, size=batch)
    if goals != "sides":
        pads = rng.random((batch, 4)).argsort(1)[:, :2]
        to_pad = rng.random(batch) < (1. if goals == "pads" else .5)
        goal = np.where(to_pad, rng.integers(4, 6, size=batch), goal)
    goal_xy = PLACES[np.where(goal < 4, goal, pads[rows, np.maximum(goal - 4, 0)])]

    xy = np.empty((batch, pucks, 2), np.float32)
    todo = rows
    for _ in range(TRIES):    # rejection: pucks apart, the goal and the place behind the target free
        if not len(todo):
            break
        xy[todo] = rng.uniform(-.8, .8, (len(todo), pucks, 2))
        gap = np.linalg.norm(xy[todo, :, None] - xy[todo, None], axis=-1) + 9 * np.eye(pucks)
        to_goal = np.linalg.norm(xy[todo] - goal_xy[todo, None], axis=-1)
        landing = _behind(xy[todo, 0], goal_xy[todo])[0]
        to_landing = np.linalg.norm(xy[todo] - landing[:, None], axis=-1)
        todo = todo[(gap.min((1, 2)) < 2 * PUCK + .08) | (to_goal.min(1) < 2 * PUCK)
                    | (to_landing.min(1) < TOUCH + .02)]
    if len(todo):
        raise ValueError(f"{pucks} pucks find no place on the table, in {TRIES} tries; ask for fewer")
    order = rng.random((batch, pucks)).argsort(1)       # so that the target is not always puck 0
    return Tables(np.take_along_axis(xy, order[..., None], 1),
                  np.take_along_axis(kind, order[..., None], 1),
                  rng.uniform(-1.1, 1.1, (batch, 2)).astype(np.float32), np.zeros(batch, bool),
                  order.argmin(1), goal, pads, goal_xy)


def _behind(puck, goal):
    """Where the finger lands to push puck [B, 2] to goal [B, 2]; the unit vector; the distance."""
    dist = np.linalg.norm(goal - puck, axis=-1, keepdims=True)
    u = (goal - puck) / np.maximum(dist, 1e-3)
    limit = np.float32(FINGER_LIMIT)
    return np.clip(puck - u * (TOUCH + .04), -limit, limit), u, dist[:, 0]


def step(tables, action, rate=1):
    """Advance all tables by one step, in place. action: float [B, 3] = (x, y, press > 0).

    Lowering the finger onto a puck does nothing (it stays raised); raising is immediate. rate: so many
    steps do the work of one at rate 1, each goes 1 / rate as far at most.
    """
    action = np.asarray(action, np.float32)
    if action.shape != (len(tables), 3) or not np.isfinite(action).all():
        raise ValueError(f"action has shape {action.shape}"
                         f"{'' if np.isfinite(action).all() else ' and is not finite'}; "
                         f"wanted finite ({len(tables)}, 3): x, y, press")
    # One contiguous row per puck: the arithmetic below is on vectors over the batch.
    px, py = (np.ascontiguousarray(tables.puck[:, :, i].T) for i in (0, 1))
    fx, fy = (np.ascontiguousarray(tables.finger[:, i]) for i in (0, 1))
    mx = np.clip(action[:, 0], -FINGER_LIMIT, FINGER_LIMIT) - fx
    my = np.clip(action[:, 1], -FINGER_LIMIT, FINGER_LIMIT) - fy
    substeps = max(1, SUBSTEPS // rate)
    scale = np.minimum(1, REACH / rate / np.maximum(np.sqrt(mx * mx + my * my), 1e-3)) / substeps
    mx, my = mx * scale, my * scale
    press = action[:, 2] > 0
    down = np.flatnonzero(tables.pressed & press)       # only these can touch anything
    up = np.flatnonzero(~(tables.pressed & press))
    fx[up] += substeps * mx[up]
    fy[up] += substeps * my[up]
    if len(down):
        px[:, down], py[:, down], fx[down], fy[down] = _push(
            px[:, down], py[:, down], fx[down], fy[down], mx[down], my[down], substeps)
    clear = ((px - fx) ** 2 + (py - fy) ** 2 >= TOUCH ** 2).all(0)
    tables.pressed = press & (tables.pressed | clear)
    tables.puck = np.stack((px.T, py.T), -1)
    tables.finger = np.stack((fx, fy), -1)


def _push(px, py, fx, fy, mx, my, substeps):
    """Contact for tables whose finger is down. p [P, b], f [b], m [b] motion a substep."""
    pairs = list(combinations(range(len(px)), 2))
    for _ in range(substeps):
        fx, fy = fx + mx, fy + my
        dx, dy = px - fx, py - fy
        dist = np.maximum(np.sqrt(dx * dx + dy * dy), 1e-3)
        deep = np.maximum(TOUCH - dist, 0)              # penetration = normal displacement
        nx, ny = dx / dist, dy / dist
        drag = np.clip(my * nx - mx * ny, -FRICTION * deep, FRICTION * deep) * (deep > 0)
        px = px + deep * nx - drag * ny                 # tangent = (-ny, nx)
        py = py + deep * ny + drag * nx
        for _ in range(PASSES):                         # pucks part evenly; walls clamp
            for a, b in pairs:
                dx, dy = px[b] - px[a], py[b] - py[a]
                dist = np.maximum(np.sqrt(dx * dx + dy * dy), 1e-3)
                part = np.maximum(2 * PUCK - dist, 0) / (2 * dist)
                dx, dy = dx * part, dy * part
                px[a] -= dx
                py[a] -= dy
                px[b] += dx
                py[b] += dy
            np.clip(px, -PUCK_LIMIT, PUCK_LIMIT, out=px)
            np.clip(py, -PUCK_LIMIT, PUCK_LIMIT, out=py)
        dx, dy = fx - px, fy - py                       # a puck that a wall holds stops the finger
        dist = np.maximum(np.sqrt(dx * dx + dy * dy), 1e-3)
        back = np.maximum(TOUCH - dist, 0) / dist
        fx = np.clip(fx + (dx * back).sum(0), -FINGER_LIMIT, FINGER_LIMIT)
        fy = np.clip(fy + (dy * back).sum(0), -FINGER_LIMIT, FINGER_LIMIT)
    return px, py, fx, fy


def success(tables):
    """[B] bool: the target is at its goal."""
    return np.linalg.norm(tables.target_xy() - tables.goal_xy, axis=-1) < NEAR


def stroke(tables, rate=1):
    """The expert: one smooth stroke from here. Returns float32 [B, rate * STEPS, 3] waypoints (x, y, +-1).

    Reach the point behind the target (as seen from the goal) raised, lower, push until the target
    would be at the goal. Each segment is minimum-jerk in time: its shape is the same whatever its
    length, so that few numbers describe it.
    """
    puck, goal, finger = tables.target_xy(), tables.goal_xy, tables.finger
    behind, u, dist = _behind(puck, goal)
    finish = goal - u * TOUCH
    along = ((puck - finger) * u).sum(-1)
    aside = np.abs((finger - puck)[:, 0] * u[:, 1] - (finger - puck)[:, 1] * u[:, 0])
    ready = np.linalg.norm(finger - behind, axis=-1) < .06
    done = dist < .6 * NEAR
    push_on = tables.pressed & (aside < .12) & (along > .15)
    # (steps to reach `behind`, steps to lower, steps to push); the rest of the chunk is raised
    plan = np.select([done, push_on, ready & ~tables.pressed], [0, 1, 2], 3)
    travel, lower, push = (rate * np.array(v)[plan] for v in ((0, 0, 0, 5), (0, 0, 1, 1), (0, 10, 10, 10)))
    start = np.where((plan == 1)[:, None], finger, behind)
    k = np.arange(1, rate * STEPS + 1)
    a = _min_jerk(np.minimum(k / np.maximum(travel, 1)[:, None], 1))[..., None]
    b = (k - (travel + lower)[:, None]) / np.maximum(push, 1)[:, None]
    s = _min_jerk(np.clip(b, 0, 1))[..., None]
    reach = finger[:, None] + a * (behind - finger)[:, None]
    xy = np.where((k <= travel[:, None])[..., None], reach,
                  start[:, None] + s * (finish - start)[:, None])
    press = np.where((k > travel[:, None]) & (b <= 1), 1., -1.)
    xy = np.where((plan == 0)[:, None, None], finger[:, None], xy)
    press = np.where((plan == 0)[:, None], -1., press)
    return np.concatenate((xy, press[..., None]), -1).astype(np.float32)


def _min_jerk(t):
    return t ** 3 * (10 - 15 * t + 6 * t * t)


def main():
    tables = sample(np.random.default_rng(0), 2000)
    done = np.zeros(2000, bool)
    for _ in range(HORIZON // 8):
        chunk = stroke(tables)
        for action in chunk[:, :8].swapaxes(0, 1):
            step(tables, action)
            done |= success(tables)
    print(f"puck {tables.puck.shape}  stroke {chunk.shape}  expert succeeds on {done.mean():.3f}")


if __name__ == "__main__":
    main()
