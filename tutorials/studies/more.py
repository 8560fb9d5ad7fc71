"""What a comparison asks of a finished run besides its summary: more test sets, answers restricted to their category,
what a linear map reads off the memory, where the finger is to land, how far training moved the weights.

    python -m tutorials.studies.more runs/ki-001          # prints JSON, and writes it to more.json in that folder
"""
import json
from pathlib import Path

import numpy as np
import torch

from nano_ki import checkpoint, evaluate, probe, program, world
from nano_ki.language import BINS, COLOUR, NUMBER0, SHAPE, SLOTS


def random_policy(seed=0):
    """A policy that pushes smoothly to random places, at control rate 1."""
    rng = np.random.default_rng(seed)

    def plan(tables):
        ends = rng.uniform(-1.1, 1.1, (len(tables), 1, 2))
        s = np.linspace(0, 1, world.STEPS + 1)[1:, None]
        xy = tables.finger[:, None] * (1 - s) + ends * s
        return np.concatenate((xy, np.ones((len(tables), world.STEPS, 1))), -1)
    return plan


def half_said(n, part, seed=evaluate.TEST_SEED, pucks=3):
    """n scenes of demonstrated kinds in which no other puck has the target's colour (part 0) or shape (part 1)."""
    tables = evaluate.test_scenes("seen", 8 * n + 50, seed, pucks)
    word = tables.kind[..., part]
    alone = (word == word[np.arange(len(word)), tables.target][:, None]).sum(1) == 1
    if alone.sum() < n:
        raise ValueError(f"only {alone.sum()} of {n} scenes found in which the target's word is said of no other puck")
    return tables.take(np.flatnonzero(alone)[:n])


def shown(c, n, seed=evaluate.TEST_SEED):
    """n scenes like the demonstrations of a run with these settings."""
    return world.sample(np.random.default_rng((seed, 20)), n, world.KINDS[c.kinds], c.pucks, "left out" if c.holes else None)


def harder(model, n, seed=evaluate.TEST_SEED):
    """`success` in what no demonstration was like: five pucks, commands that say only the colour, or only the shape (which
    only the target has). And where other kinds were demonstrated than "seen": in scenes that are "shown" like these."""
    c, won, right = model.config, {}, {}
    sets = [("five_pucks", evaluate.test_scenes("16", n, seed, 5), ()), ("only_colour_said", half_said(n, 0, seed, c.pucks), (SHAPE,)),
            ("only_shape_said", half_said(n, 1, seed, c.pucks), (COLOUR,))]
    if c.kinds != "seen":
        sets.append(("shown", shown(c, n, seed), ()))
    for name, scenes, hide in sets:
        end = evaluate.rollout(evaluate.policy_of(model, hide=hide), scenes, c.execute, rate=c.rate)
        won[name], right[name] = map(evaluate.outcome, (world.success(end), evaluate.right_puck(scenes, end)))
    return won, right


def moved(model):
    """How far training took each part of the VLM: |now - start| / |start|, for the parts of `probe.parts`."""
    torch.manual_seed(model.config.seed)
    then, now = probe.parts(checkpoint.new_model(model.config, model.fast)), probe.parts(model)
    out = {}
    for name in then:
        if name != "expert":
            a, b = (torch.cat([p.detach().flatten().cpu() for p in group[name]]) for group in (then, now))
            out[name] = round(((b - a).norm() / a.norm().clamp(min=1e-9)).item(), 4)
    return out


def memories(model, tables):
    """All layers' K and V of what the policy sees and hears, side by side: [n, T, layers * 2 * D]."""
    parts = []
    for k in range(0, len(tables), 500):
        layers = model.vlm(model.vlm.prefix(*evaluate.inputs(model, tables.take(slice(k, k + 500)))))[1]
        parts.append(torch.cat([x.transpose(1, 2).flatten(2) for kv in layers for x in kv], -1).cpu())
    return torch.cat(parts)


def predict(features, wanted, train):
    """Ridge regression fitted on the first `train` rows: what it says of the others."""
    x = features.double()
    x = torch.cat(((x - x[:train].mean(0)) / (x[:train].std(0) + 1e-6), torch.ones(len(x), 1)), 1)
    a = x[:train].T @ x[:train] + .1 * train * torch.eye(x.shape[1])
    return x[train:] @ torch.linalg.solve(a, x[:train].T @ wanted[:train])


@torch.no_grad()
def bend(model, train=2000, test=500):
    """Do new words bend the goal? A linear map from the command's words in the memory to the goal's place is fitted on
    commands with demonstrated objects: its mean error (table units) on new ones of these, and on commands with objects whose
    shape, or colour and shape, no demonstration named. {test set: error}."""
    names = ("seen", "new_colour", "new_shape", "new_both")
    shown = evaluate.test_scenes("seen", train, 4000, model.config.pucks)
    asked = [evaluate.test_scenes(name, test, 5000, model.config.pucks) for name in names]
    tables = world.join([shown, *asked])
    goal = torch.from_numpy(tables.goal_xy()).double()
    off = (predict(memories(model, tables)[:, -SLOTS:].flatten(1), goal, train) - goal[train:]).norm(dim=1)
    return {name: round(part.mean().item(), 4) for name, part in zip(names, off.split(test), strict=True)}


@torch.no_grad()
def readable(model, train=2000, test=1000):
    """What a linear map (ridge regression) can read off the memory, on robot pictures of all kinds of object:
    {"place", "colour", "shape"}: accuracy in new scenes.

    place of the named puck (within .15, the radius of success) from the last two words of the command; colour and
    shape of a puck from the picture token at its centre; all layers' K and V side by side.
    """
    c, n = model.config, train + test
    tables = evaluate.test_scenes("all", n, 4000, c.pucks)
    memory = memories(model, tables)
    side = c.image // 8
    cell = ((tables.puck[:, 0] / (2 * world.HALF) + .5) * side).astype(int).clip(0, side - 1)
    at_puck = memory[torch.arange(n), torch.from_numpy(cell[:, 1] * side + cell[:, 0])]
    kind = torch.from_numpy(tables.kind[:, 0])
    place = torch.from_numpy(tables.target_xy()).double()

    off = (predict(memory[:, -2:].flatten(1), place, train) - place[train:]).norm(dim=1)
    out = {"place": (off < world.NEAR).double().mean()}
    for i, (name, count) in enumerate((("colour", len(world.COLOURS)), ("shape", len(world.SHAPES)))):
        said = predict(at_puck, torch.eye(count, dtype=torch.double)[kind[:, i]], train).argmax(1)
        out[name] = (said == kind[train:, i]).double().mean()
    return {name: round(value.item(), 4) for name, value in out.items()}


@torch.no_grad()
def landing(model, n=500):
    """How far from where the finger should land, in table units: {test set: {"said", "planned"}}, medians. Said: the words of
    the subtask (None if the policy says none). Planned: the expert's fifth waypoint, where the scripted expert has arrived."""
    out, rate = {}, model.config.rate
    for name in world.OBJECTS:
        tables = evaluate.test_scenes(name, n, 5000, model.config.pucks)
        places = {"said": None, "planned": evaluate.policy_of(model)(tables)[:, 5 * rate - 1, :2]}
        if model.said:
            bins = model.vlm.generate(evaluate.inputs(model, tables), model.said, model.allowed).cpu().numpy() - NUMBER0
            places["said"] = (bins + .5) * (2 * world.HALF / BINS) - world.HALF
        right = world.landing_point(tables.target_xy(), tables.goal_xy())[0]
        out[name] = {how: None if place is None else round(float(np.median(np.linalg.norm(place - right, axis=1))), 4)
                     for how, place in places.items()}
    return out


def measure_more(model):
    """What a comparison asks besides, of a model that a run has saved: more test sets, answers restricted to their
    category, what can be read off the memory, how far the VLM's weights went."""
    c = model.config
    seed = evaluate.VALIDATION_SEED if c.validate else evaluate.TEST_SEED
    won, right = harder(model, c.scenes, seed)
    return {"success": won, "right_puck": right, "vqa_restricted": evaluate.vqa_both(model, free=False),
            "readable": readable(model), "bend": bend(model), "landing": landing(model), "moved": moved(model)}


def main():
    parser = program.parser(__doc__)
    parser.add_argument("run", help="folder of a finished run")
    args = parser.parse_args()
    result = measure_more(checkpoint.load_model(args.run))
    program.write_json(Path(args.run) / "more.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    program.run(main)
