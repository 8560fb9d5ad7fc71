"""The tabletop: pucks, a finger and a scripted expert, for thousands of tables at once.

A table is the square [-1.2, 1.2]^2, with x to the right and y down, as in a picture. A raised finger passes over pucks,
and a pressed one pushes them. An action is a waypoint (x, y, press): where the finger should be one step from now, and
whether it is pressed (press > 0). Contact is quasi-static: pucks do not slide on. A task is data (`Tables.goal`), a
test (`success`) and an expert (`stroke`). A new kind of task adds to these and to language.py alone.

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
PASSES = 3           # pucks are parted this often in one substep; each pass halves what a wall makes overlap
FRICTION = 1.        # Coulomb: tangential drag <= FRICTION * normal displacement
NEAR = .15           # success: the target's centre is this close to its goal
HORIZON = 80         # steps allowed for one task, at control rate 1
STEPS = 16           # waypoints in one stroke of the expert (a chunk), at control rate 1
TRIES = 2000         # a scene is given up after so many draws
TOUCH, PUCK_LIMIT, FINGER_LIMIT = PUCK + FINGER, HALF - PUCK, HALF - FINGER
COLOURS = ("red", "green", "blue", "yellow", "cyan", "purple", "orange", "pink")
SHAPES = ("disc", "square", "triangle", "star", "cross", "ring")
GOALS = ("left", "right", "top", "bottom")
PLACES = np.array([(-.9, 0), (.9, 0), (0, -.9), (0, .9)], np.float32)  # of GOALS, in order
HOLE = np.array(((.05, .05), (.65, .65)), np.float32)                  # no demonstration shows a puck in this square

def kinds(colours, shapes):
    """All (colour, shape) index pairs of these names, as an int array [n, 2]."""
    return np.array([(COLOURS.index(c), SHAPES.index(s)) for c in colours for s in shapes])

OLD_SHAPES, NEW_SHAPES = ("star", "square", "disc", "triangle"), ("cross", "ring")
SIXTEEN = kinds(COLOURS[:4], OLD_SHAPES)
FOUR, TWELVE = SIXTEEN[::5], np.delete(SIXTEEN, np.s_[::5], 0)      # FOUR: each colour and each shape once
KINDS = {"seen": TWELVE, "recombined": FOUR,   # which kinds of object exist in which set of scenes
         "new_colour": kinds(COLOURS[4:], OLD_SHAPES), "new_shape": kinds(COLOURS[:4], NEW_SHAPES),
         "new_both": kinds(COLOURS[4:], NEW_SHAPES), "all": kinds(COLOURS, SHAPES),
         "3": FOUR[:3], "4": FOUR, "8": np.concatenate((FOUR, TWELVE[[0, 4, 8, 9]])), "16": SIXTEEN}
TEST_SETS = ("seen", "recombined", "new_colour", "new_shape", "new_both", "spatial", "goal", "long")
OBJECTS = TEST_SETS[:5]              # these differ in the objects; the other three show the objects of "seen"

@dataclass
class Tables:
    """B tables at one moment, with P pucks each. Places are float32, in table units."""
    puck: np.ndarray      # [B, P, 2] centres
    kind: np.ndarray      # [B, P, 2] (colour, shape) indices
    finger: np.ndarray    # [B, 2]
    pressed: np.ndarray   # [B] bool
    target: np.ndarray    # [B] which puck the command means
    goal: np.ndarray      # [B] index into GOALS: where to push it

    def __len__(self):
        return len(self.puck)

    def take(self, index):
        """The tables at `index` (ints, slice or bool mask), copied."""
        return Tables(*(np.array(getattr(self, f.name)[index]) for f in fields(self)))

    def target_xy(self):
        """[B, 2] centre of the target puck."""
        return self.puck[np.arange(len(self)), self.target]

    def goal_xy(self):
        """[B, 2] where the target shall be."""
        return PLACES[self.goal]

def join(parts):
    """One `Tables` from several, in order."""
    return Tables(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Tables)))

def never(kind):
    """The goal to which no demonstration pushes an object of this kind [..., 2]: three of the four are shown."""
    return kind.sum(-1) % len(GOALS)

def in_hole(xy):
    """Which places [..., 2] lie in HOLE."""
    return ((xy > HOLE[0]) & (xy < HOLE[1])).all(-1)

def sample(rng, batch, kind_set=None, pucks=3, holes=None):
    """Draw `batch` new scenes as Tables, each with pucks of different kinds. In 60 % of them a second puck shares the
    target's colour or shape (where kind_set has such), so that both words matter. rng: numpy Generator; kind_set: int
    [n, 2], n >= pucks (default: all 48 kinds). holes: None (anything may come), "left out" (no puck in HOLE, and no
    object with the goal that `never` gives it), "spatial" (the target is in HOLE) or "goal" (it has that goal).
    ValueError for another word, and for more pucks than kinds or places."""
    kind_set = KINDS["all"] if kind_set is None else np.asarray(kind_set)
    if holes not in (None, "left out", "spatial", "goal"):
        raise ValueError(f"holes is {holes!r}; it must be None, 'left out', 'spatial' or 'goal'")
    if len(kind_set) < pucks:
        raise ValueError(f"{len(kind_set)} kinds cannot fill {pucks} places without repeats; ask for fewer")
    rows = np.arange(batch)
    key = rng.random((batch, len(kind_set)))            # the target's kind has the largest key
    related = (kind_set[key.argmax(1)][:, None] == kind_set).any(-1) & (rng.random((batch, 1)) < .6)
    first_two = (key + related).argsort(1)[:, -2:]      # a related kind comes second
    key[rows[:, None], first_two] += 1                  # the target keeps the largest key
    kind = kind_set[key.argsort(1)[:, ::-1][:, :pucks]]
    goal, unseen = rng.integers(4, size=batch), never(kind[:, 0])
    if holes:
        goal = unseen if holes == "goal" else (unseen + rng.integers(1, 4, size=batch)) % 4
    goal_xy = PLACES[goal]
    xy, todo = np.empty((batch, pucks, 2), np.float32), rows
    for _ in range(TRIES):      # pucks stand apart; the goal and the place behind the target are free
        xy[todo] = rng.uniform(-.8, .8, (len(todo), pucks, 2))
        if holes == "spatial":
            xy[todo, 0] = rng.uniform(*HOLE, (len(todo), 2))
        landing = landing_point(xy[todo, 0], goal_xy[todo])[0]
        gap = (np.linalg.norm(xy[todo, :, None] - xy[todo, None], axis=-1) + 9 * np.eye(pucks)).min((1, 2))
        to_goal = np.linalg.norm(xy[todo] - goal_xy[todo, None], axis=-1).min(1)
        to_landing = np.linalg.norm(xy[todo] - landing[:, None], axis=-1).min(1)
        hidden = in_hole(xy[todo, holes == "spatial":]).any(1) & (holes is not None)
        todo = todo[(gap < 2 * PUCK + .08) | (to_goal < 2 * PUCK) | (to_landing < TOUCH + .02) | hidden]
        if not len(todo):
            break
    else:
        raise ValueError(f"{pucks} pucks find no place on the table, in {TRIES} tries; ask for fewer")
    order = rng.random((batch, pucks)).argsort(1)       # so that the target is not always puck 0
    xy, kind = (np.take_along_axis(a, order[..., None], 1) for a in (xy, kind))
    finger = rng.uniform(-1.1, 1.1, (batch, 2)).astype(np.float32)
    return Tables(xy, kind, finger, np.zeros(batch, bool), order.argmin(1), goal)

def landing_point(puck, goal):
    """Where the finger lands to push puck [B, 2] to goal [B, 2]; the unit vector and distance to the goal."""
    dist = np.linalg.norm(goal - puck, axis=-1, keepdims=True)
    u = (goal - puck) / np.maximum(dist, 1e-3)
    return np.clip(puck - u * (TOUCH + .04), -FINGER_LIMIT, FINGER_LIMIT), u, dist

def step(tables, action, rate=1):
    """Advance all tables by one step, in place. action: finite [B, 3] (else ValueError), x, y, press > 0. A finger
    lowered onto a puck stays up. rate: so many steps do the work of one at rate 1, each at most REACH / rate far."""
    action = np.asarray(action, np.float32)
    shape, finite = (len(tables), 3), np.isfinite(action).all()
    if action.shape != shape or not finite:
        raise ValueError(f"action is {action.shape}, finite: {finite}; wanted finite {shape}: x, y, press")
    # Coordinates first, batch last: the arithmetic below is on contiguous vectors over the batch.
    puck, finger = tables.puck.transpose(2, 1, 0).copy(), tables.finger.T.copy()
    motion = np.clip(action[:, :2].T, -FINGER_LIMIT, FINGER_LIMIT) - finger
    substeps = max(1, SUBSTEPS // rate)
    motion *= np.minimum(1, REACH / rate / np.maximum(np.linalg.norm(motion, axis=0), 1e-3)) / substeps
    press = action[:, 2] > 0
    down = tables.pressed & press                       # only these fingers touch anything (raising is immediate)
    finger[:, ~down] += substeps * motion[:, ~down]
    if down.any():
        puck[:, :, down], finger[:, down] = _push(puck[:, :, down], finger[:, down], motion[:, down], substeps)
    clear = (((puck - finger[:, None]) ** 2).sum(0) >= TOUCH ** 2).all(0)
    tables.pressed = press & (tables.pressed | clear)
    tables.puck, tables.finger = puck.transpose(2, 1, 0).copy(), finger.T.copy()

def _push(puck, finger, motion, substeps):
    """Contact where the finger is down: pucks [2, P, b], fingers [2, b], their motion [2, b] in each substep."""
    for _ in range(substeps):
        finger = finger + motion
        way, dist, deep = _overlap(finger[:, None], puck, TOUCH)    # deep: the displacement along the normal
        normal = way / dist
        tangent = np.stack((-normal[1], normal[0]))
        drag = np.clip((motion[:, None] * tangent).sum(0), -FRICTION * deep, FRICTION * deep)   # Coulomb
        puck = puck + deep * normal + drag * tangent
        for _ in range(PASSES):                                     # pucks part evenly, walls clamp
            for a, b in combinations(range(puck.shape[1]), 2):
                way, dist, deep = _overlap(puck[:, a], puck[:, b], 2 * PUCK)
                part = way * (deep / (2 * dist))
                puck[:, a] -= part
                puck[:, b] += part
            np.clip(puck, -PUCK_LIMIT, PUCK_LIMIT, out=puck)
        way, dist, deep = _overlap(puck, finger[:, None], TOUCH)    # a puck at a wall stops the finger
        finger = np.clip(finger + (way * (deep / dist)).sum(1), -FINGER_LIMIT, FINGER_LIMIT)
    return puck, finger

def _overlap(a, b, apart):
    """The way from a to b [2, ...], its length, and the depth by which a and b are closer than `apart`."""
    way = b - a
    dist = np.maximum(np.sqrt((way * way).sum(0)), 1e-3)
    return way, dist, np.maximum(apart - dist, 0)

def success(tables):
    """[B] bool: the target is at its goal."""
    return np.linalg.norm(tables.target_xy() - tables.goal_xy(), axis=-1) < NEAR

def stroke(tables, rate=1):
    """The expert: one smooth stroke from here. Returns waypoints (x, y, +-1), float32 [B, rate * STEPS, 3]. The raised
    finger goes to the point behind the target, as seen from the goal. There it is lowered, and pushes the target to the
    goal. Each segment is minimum-jerk in time: of one shape whatever its length, so that few numbers describe it."""
    puck, goal, finger = tables.target_xy(), tables.goal_xy(), tables.finger
    behind, u, dist = landing_point(puck, goal)
    away, pressed = finger - puck, tables.pressed[:, None]
    aside = np.abs(away[:, :1] * u[:, 1:] - away[:, 1:] * u[:, :1])
    done = dist < .6 * NEAR
    push_on = pressed & (aside < .12) & ((away * u).sum(-1, keepdims=True) < -.15)
    ready = ~pressed & (np.linalg.norm(finger - behind, axis=-1, keepdims=True) < .06)
    # Steps to reach `behind`, to lower the finger and to push. It is raised for the rest of the chunk.
    steps = rate * np.select([done, push_on, ready], [(0, 0, 0), (0, 0, 10), (0, 1, 10)], (5, 1, 10))
    travel, lower, push = steps.T[..., None]
    start, finish = np.where(done | push_on, finger, behind), np.where(done, finger, goal - u * TOUCH)
    k = np.arange(1, rate * STEPS + 1)
    pushed = (k - travel - lower) / np.maximum(push, 1)                 # share of the push, [B, rate * STEPS]
    a, b = (_min_jerk(np.clip(t, 0, 1))[..., None] for t in (k / np.maximum(travel, 1), pushed))
    xy = np.where((k <= travel)[..., None], finger[:, None] + a * (behind - finger)[:, None], start[:, None] + b * (finish - start)[:, None])
    press = np.where((k > travel) & (pushed <= 1) & ~done, 1, -1)
    return np.concatenate((xy, press[..., None]), -1).astype(np.float32)

def _min_jerk(t):
    return t ** 3 * (10 - 15 * t + 6 * t * t)

if __name__ == "__main__":
    tables = sample(np.random.default_rng(0), 2000)
    for action in (chunk := stroke(tables)).swapaxes(0, 1):
        step(tables, action)
    print(f"puck {tables.puck.shape}, stroke {chunk.shape}; a stroke succeeds: {success(tables).mean():.3f}")
