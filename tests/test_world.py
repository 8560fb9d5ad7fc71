"""The tabletop: contact, friction, walls, the expert, and one table equal to a row of many."""
import numpy as np
import pytest

from nano_ki import episodes, evaluate, world
from tutorials.studies.more import random_policy


def random_actions(rng, n):
    return np.column_stack((rng.uniform(-1.3, 1.3, (n, 2)), rng.choice((-1, 1), n, p=(.2, .8))))


def test_random_actions_keep_tables_sane():
    rng = np.random.default_rng(0)
    tables = world.sample(rng, 1000)
    for _ in range(100):
        world.step(tables, random_actions(rng, 1000))
        assert np.isfinite(tables.puck).all() and np.isfinite(tables.finger).all()
        assert np.abs(tables.puck).max() <= world.PUCK_LIMIT + 1e-6
        assert np.abs(tables.finger).max() <= world.FINGER_LIMIT + 1e-6
    d = np.linalg.norm(tables.puck[:, :, None] - tables.puck[:, None], axis=-1)[:, [0, 0, 1], [1, 2, 2]]
    assert (d > 2 * world.PUCK - .05).mean() > .98      # pucks overlap only where walls wedge them
    assert d.min() > world.PUCK


def place(pucks, finger, pressed=True):
    """One table with pucks where they are wanted."""
    t = world.sample(np.random.default_rng(0), 1)
    t.puck = np.array([pucks], np.float32)
    t.finger, t.pressed = np.array([finger], np.float32), np.array([pressed])
    return t


FAR = [(-.9, -.9), (.9, -.9)]


def test_contact_separates_finger_and_puck():
    t = place([(0, 0), *FAR], (-.35, 0))
    world.step(t, [[.05, 0, 1]])
    assert np.linalg.norm(t.puck[0, 0] - t.finger[0]) == pytest.approx(world.TOUCH, abs=1e-5)
    assert t.puck[0, 0, 0] == pytest.approx(.05 + world.TOUCH, abs=1e-5)      # pushed straight ahead
    assert t.puck[0, 0, 1] == 0


def test_coinciding_pucks_and_finger_stay_finite():
    t = place([(0, 0), (0, 0), (0, 0)], (0, 0))
    for _ in range(20):
        world.step(t, [[.01, .01, 1]])
    assert np.isfinite(t.puck).all()


def test_friction_is_at_most_mu_times_the_normal_displacement():
    rng = np.random.default_rng(1)
    p = np.zeros((1, 500), np.float32)
    angle, deep = rng.uniform(0, 2 * np.pi, 500), rng.uniform(0, .1, 500)
    f = (world.TOUCH - deep) * np.array((np.cos(angle), np.sin(angle)))      # the finger inside the rim
    m = rng.uniform(-.3, .3, (2, 500))
    (px, py), _ = world._push(np.stack((p, p)), f - m, m, 1)
    n = -f / np.linalg.norm(f, axis=0)
    normal, tangent = px[0] * n[0] + py[0] * n[1], np.abs(py[0] * n[0] - px[0] * n[1])
    np.testing.assert_allclose(normal, deep, atol=1e-6)
    assert (tangent <= world.FRICTION * deep + 1e-6).all()
    assert (tangent > .5 * deep).any()                                       # there is friction


def test_raised_finger_passes_and_lowering_onto_a_puck_does_nothing():
    t = place([(0, 0), *FAR], (-.4, 0), pressed=False)
    world.step(t, [[0, 0, -1]])
    assert not t.pressed[0] and (t.puck[0, 0] == 0).all()
    world.step(t, [[0, 0, 1]])
    assert not t.pressed[0] and (t.puck[0, 0] == 0).all()
    world.step(t, [[0, .4, 1]])
    assert t.pressed[0] and (t.puck[0, 0] == 0).all()


def test_pushed_pucks_push_pucks_and_walls_stop_them():
    t = place([(0, 0), (.45, 0), (.9, .9)], (-.3, 0))
    for _ in range(10):
        world.step(t, [[1.1, 0, 1]])
    x = t.puck[0, :, 0]
    assert x[1] == pytest.approx(world.PUCK_LIMIT, abs=1e-4)
    assert x[0] < x[1] - 2 * world.PUCK + .03 and t.finger[0, 0] < x[0]


def test_one_table_equals_a_row_of_many():
    rng = np.random.default_rng(2)
    many = world.sample(rng, 50)
    one = many.take([7])
    for _ in range(30):
        action = random_actions(rng, 50)
        world.step(many, action)
        world.step(one, action[7:8])
    np.testing.assert_array_equal(many.puck[7], one.puck[0])
    np.testing.assert_array_equal(world.stroke(many)[7], world.stroke(one)[0])


@pytest.mark.parametrize("holes", [None, "left out", "spatial", "goal"])
def test_expert_succeeds_and_random_does_not(holes):
    tables = world.sample(np.random.default_rng(3), 1000, holes=holes)
    end = evaluate.rollout(world.stroke, tables)
    assert world.success(end).mean() >= .97 and evaluate.right_puck(tables, end).mean() >= .97
    assert world.success(evaluate.rollout(random_policy(), tables)).mean() <= .1


def test_holes_hold_what_demonstrations_never_show():
    """Places: no puck of any moment is in the hole. Goals: of each kind of object three of four are shown."""
    tables, _ = episodes.demonstrate(np.random.default_rng(0), 3000, world.KINDS["seen"])
    kind = tables.kind[np.arange(len(tables)), tables.target]
    assert not world.in_hole(tables.puck).any()
    pairs = {(*k, g) for k, g in zip(kind.tolist(), tables.goal.tolist(), strict=True)}
    assert len(pairs) == 36 and not (tables.goal == world.never(kind)).any()
    for name in world.TEST_SETS[:5]:
        scenes = evaluate.test_scenes(name, 300)
        assert not world.in_hole(scenes.puck).any()
        assert not (scenes.goal == world.never(scenes.kind[np.arange(300), scenes.target])).any()
    spatial, goal = (evaluate.test_scenes(name, 300) for name in ("spatial", "goal"))
    assert world.in_hole(spatial.target_xy()).all() and world.in_hole(spatial.puck).sum() == 300
    assert not (spatial.goal == world.never(spatial.kind[np.arange(300), spatial.target])).any()
    assert (goal.goal == world.never(goal.kind[np.arange(300), goal.target])).all() and not world.in_hole(goal.puck).any()
    whole, _ = episodes.demonstrate(np.random.default_rng(0), 3000, world.KINDS["seen"], holes=False)
    assert .2 < world.in_hole(whole.puck).any(1).mean() < .6


def test_the_second_command_comes_when_the_first_is_done():
    tables, second = evaluate.long_scenes(60)
    assert len(tables) == 60 and (second[0] != tables.target).all() and (second[1] != tables.goal).all()
    told = []

    def policy(now):
        told.append(now.goal.copy())
        return world.stroke(now)
    won, right = evaluate.two_commands(policy, tables, second)
    assert won.all() and right.mean() > .9
    assert (told[0] == tables.goal).all() and not (told[-1] == tables.goal[:len(told[-1])]).all()

    turns = iter(range(1000))                         # (one that stops early does not succeed)
    early = evaluate.two_commands(lambda now: world.stroke(now) if next(turns) < 5 else np.zeros((len(now), 16, 3)), tables, second)
    assert early[0].mean() < .5


def test_scenes_follow_their_rules():
    tables = world.sample(np.random.default_rng(4), 4000, holes=None)
    kind = tables.kind[..., 0] * 6 + tables.kind[..., 1]
    assert (np.diff(np.sort(kind, 1)) > 0).all()                             # never two of one kind
    target = tables.kind[np.arange(4000), tables.target][:, None]
    shares = ((tables.kind == target).any(-1).sum(1) > 1).mean()
    assert .6 < shares < .85                                                 # 60 % by design, some by chance
    np.testing.assert_array_equal(tables.goal_xy(), world.PLACES[tables.goal])
    assert np.bincount(tables.goal).min() > 800
    assert np.bincount(tables.target, minlength=3).min() > 1100
    a, b = (world.sample(np.random.default_rng(s), 20).puck for s in (4, 4))
    assert (a == b).all() and (a != world.sample(np.random.default_rng(5), 20).puck).any()


def test_test_sets_hold_what_their_names_say():
    sets = {name: set(map(tuple, kinds)) for name, kinds in world.KINDS.items()}
    seen, other, colour, _, both = (sets[n] for n in world.OBJECTS)
    assert len(seen) == 12 and len(other) == 4 and len(colour) == 16 and len(both) == len(sets["new_shape"]) == 8
    assert sets["16"] == seen | other and not seen & other
    assert {c for c, _ in other} == {c for c, _ in seen} and {s for _, s in other} == {s for _, s in seen}
    assert not {c for c, _ in colour | both} & {c for c, _ in seen}
    assert not {s for _, s in both | sets["new_shape"]} & {s for _, s in seen}
    assert sets["3"] < sets["4"] < sets["8"] < sets["16"] < sets["all"] and len(sets["all"]) == 48
    for name, times in (("4", 1), ("8", 2), ("16", 4)):              # every colour and every shape equally often
        for part in (0, 1):
            assert set(np.unique(world.KINDS[name][:, part], return_counts=True)[1]) == {times}


@pytest.mark.parametrize("bad", [np.zeros((1, 2)), [[np.nan, 0, 0]], np.zeros((2, 3))])
def test_bad_actions_are_refused(bad):
    with pytest.raises(ValueError, match="wanted finite"):
        world.step(place([(0, 0), *FAR], (.5, .5)), bad)


def test_bad_scene_requests_are_refused():
    with pytest.raises(ValueError, match="left out"):
        world.sample(np.random.default_rng(0), 1, holes="corner")
    with pytest.raises(ValueError, match="without repeats"):
        world.sample(np.random.default_rng(0), 1, world.KINDS["3"], pucks=4)
