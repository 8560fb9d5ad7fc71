"""Does the policy push the right puck, does its VLM still know what it knew, and how fast is one plan?

Success is measured in closed loop. The policy looks, plans a chunk of waypoints, executes the first `execute` of
them and looks again, until the target is at its goal or the time is up. Every run meets the same test scenes, so
that runs can be compared scene by scene. Visual question answering (VQA) asks the VLM about single pictures.

Try it: python -m nano_ki.evaluate runs/ki-001          Read next: probe.py
"""
import json
import timeit
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from nano_ki import checkpoint, draw, episodes, language, program, render, world
from nano_ki.config import in_bounds, refuse

TEST_SEED, CHECK_SEED, VALIDATION_SEED = 1000, 2000, 3000   # seeds for the test, for checks, for choosing settings

def wilson(hits, n):
    """A rate with its 95 % Wilson interval: {"rate", "low", "high", "n"}."""
    z, p = 1.96, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** .5
    return dict(rate=round(p, 4), low=round(max(0, middle - half), 4), high=round(min(1, middle + half), 4), n=n)

def outcome(won):
    """bool [n] -> wilson's dict, and "scenes": the n bits in hex, so that two runs can be compared in pairs."""
    return {**wilson(int(won.sum()), len(won)), "scenes": np.packbits(won).tobytes().hex()}

def inputs(model, tables, hide=()):
    """(image, prompt) tensors on the model's device. hide: slots of the command that are left blank."""
    image, prompt = episodes.look(tables, model.config), episodes.say(tables, model.config)
    prompt[:, list(hide)] = language.BLANK
    return tuple(torch.from_numpy(a).to(next(model.parameters()).device) for a in (image, prompt))

def policy_of(model, seed=0, hide=()):
    """The policy of a model, tables [B] -> chunks [B, H, 3] in table units. It acts by flow if it has a trained expert,
    else by FAST tokens. seed: of the flow's noise; hide: slots of the command that are left blank."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    act = (lambda *seen: model.act(*seen, generator)) if model.config.flow_loss else model.act_tokens
    return lambda tables: model.fast.restore(act(*inputs(model, tables, hide)).cpu().numpy())

def rollout(policy, tables, execute=8, watch=None, rate=1):
    """Act in closed loop from `tables` (not changed); a scene ends when it succeeds. rate: see world.step.
    watch(tables, ids of the running scenes, chunk, waypoint number) is called before each step.
    Returns success bool [B] and right puck bool [B], which means that the target moved most, and at least .05."""
    start, tables, ids = tables, tables.take(slice(None)), np.arange(len(tables))
    final, won = start.puck.copy(), np.zeros(len(start), bool)
    for _, i in product(range(0, rate * world.HORIZON, execute), range(execute)):
        if i == 0:
            chunk = policy(tables)
        if watch:
            watch(tables, ids, chunk, i)
        world.step(tables, chunk[:, i], rate)
        done = world.success(tables)
        final[ids], won[ids] = tables.puck, done
        if won.all():
            break
        tables, ids, chunk = tables.take(~done), ids[~done], chunk[~done]
    moved = np.linalg.norm(final - start.puck, axis=-1)
    return won, (moved.argmax(1) == start.target) & (moved.max(1) > .05)

def test_scenes(name, n, goals, seed=TEST_SEED, pucks=3):
    """The n scenes of one test set (a name in world.KINDS): the same for every run."""
    rng = np.random.default_rng((seed, list(world.KINDS).index(name)))
    return world.sample(rng, n, world.KINDS[name], goals, pucks)

def success(policy, config, n, names=world.TEST_SETS, seed=TEST_SEED):
    """The outcome in n scenes of each test set: ({name: of success}, {name: of the right puck})."""
    won, right = {}, {}
    for name in names:
        scenes = test_scenes(name, n, config.goals, seed, config.pucks)
        won[name], right[name] = map(outcome, rollout(policy, scenes, config.execute, rate=config.rate))
    return won, right

@torch.no_grad()
def vqa(vlm, pictures, n=400, size=48, seed=TEST_SEED, pucks=3, free=True, grain=0.):
    """Shares of right answers, {"where", "colour", "shape"}, in n new scenes. pictures: "book" or "robot".
    A place is right if x and y are each at most one bin (1/32 of the table) off. free: any token may be answered;
    else only words of the right category, because a VLM can lose the habit of answering and keep its sight."""
    rng, device, out = np.random.default_rng((seed, 9)), next(vlm.parameters()).device, {}
    robot = pictures == "robot"
    tables = world.sample(rng, n, goals="mixed" if robot else "sides", pucks=pucks)
    image = render.robot_camera(tables, size, grain) if robot else render.picture_book(tables, rng, size)
    for kind, words in (("where", language.NUMBERS), ("colour", world.COLOURS), ("shape", world.SHAPES)):
        count, slack = (2, 1) if kind == "where" else (1, 0)
        prompt, answer = language.lesson(tables, rng, kind)
        fits = torch.zeros(vlm.head.out_features, dtype=torch.bool, device=device)
        fits[[language.ID[word] for word in words]] = True
        said = vlm.generate(torch.from_numpy(image).to(device), torch.from_numpy(prompt).to(device), count,
                            None if free else lambda tokens, fits=fits: fits)
        right = np.abs(said.cpu().numpy() - answer[:, :count]) <= slack
        out[kind] = round(float(right.all(1).mean()), 4)
    return out

def vqa_both(model, n=None, free=True):
    """VQA on both kinds of picture: {"book": ..., "robot": ...}. n: scenes (default: the run's)."""
    c = model.config
    return {pictures: vqa(model.vlm, pictures, n or c.scenes, c.image, pucks=c.pucks, free=free, grain=c.grain)
            for pictures in ("book", "robot")}

def latency(model, repeats=10):
    """Median milliseconds for one chunk of one robot: {"flow", "autoregressive"}, None if it was not trained."""
    c = model.config
    one = inputs(model, test_scenes("seen", 1, c.goals, pucks=c.pucks))

    def ms(act):
        seconds = timeit.repeat(lambda: act(*one).cpu(), number=1, repeat=repeats + 2)[2:]    # (two to warm up)
        return round(1000 * float(np.median(seconds)), 2)
    with torch.autocast(one[0].device.type, torch.bfloat16, enabled=c.bfloat16, cache_enabled=False):
        return {"flow": ms(model.act) if c.flow_loss else None,
                "autoregressive": ms(model.act_tokens) if c.fast_loss else None}

def measure(model):
    """Everything that summary.json says of a finished model."""
    c = model.config
    won, right = success(policy_of(model), c, c.scenes, seed=VALIDATION_SEED if c.validate else TEST_SEED)
    book, robot = vqa_both(model).values()
    return dict(success=won, right_puck=right, vqa_after=book, vqa_after_robot=robot, ms_per_chunk=latency(model))

def film(model, tables, path, frame=192):
    """Write a GIF of these scenes side by side, each under its instruction. Returns success bool [B]."""
    texts, last, frames = language.instruction(tables), tables.take(slice(None)), []

    def watch(now, ids, chunk, i):
        last.puck[ids], last.finger[ids], last.pressed[ids] = now.puck, now.finger, now.pressed
        done = [k not in ids for k in range(len(tables))]
        coming = dict(zip(ids, chunk[:, i:, :2], strict=True))
        frames.append(draw.panels(render.robot_camera(last, frame), texts, done, coming))
    won, _ = rollout(policy_of(model), tables, model.config.execute, watch, model.config.rate)
    draw.save_gif(frames + [frames[-1]] * 5, path)
    return won

def command(text, goals):
    """A command in words -> (kind [2], goal index). ValueError if it is none, or this world lacks its goal."""
    prompt = language.parse(text)
    refuse(prompt[language.VERB] != language.ID["push"], f"{text!r} is no command; say 'push the COLOUR SHAPE to the GOAL'")
    goal = prompt[language.GOAL] - language.GOAL0
    known, name = {"sides": world.SIDES, "pads": world.PADS, "mixed": world.GOALS}[goals], world.GOALS[goal]
    refuse(name not in known, f"this policy's world has no {name}; its goals: {', '.join(known)}")
    return prompt[[language.COLOUR, language.SHAPE]] - (language.COLOUR0, language.SHAPE0), goal

def scene_for(text, goals, seed=0, pucks=3):
    """A random scene that fits a command, which one in about 200 does. ValueError if none is found."""
    kind, goal = command(text, goals)
    rng = np.random.default_rng((seed, 3))
    for _ in range(100):
        tables = world.sample(rng, 4096, goals=goals, pucks=pucks)
        fits = (tables.kind[np.arange(len(tables)), tables.target] == kind).all(1) & (tables.goal == goal)
        if fits.any():
            return tables.take([fits.argmax()])
    raise ValueError(f"no scene found for {text!r}; say another object or goal")

def aim(tables, text, goals):
    """Give one table another command, in place. ValueError if the object is not on the table."""
    kind, goal = command(text, goals)
    there = (tables.kind[0] == kind).all(1)
    asked, *names = (f"{world.COLOURS[c]} {world.SHAPES[s]}" for c, s in (kind, *tables.kind[0]))
    refuse(not there.any(), f"no {asked} on this table; there are: {', '.join(names)}")
    tables.target[:], tables.goal[:] = there.argmax(), goal
    tables.goal_xy[:] = world.PLACES[goal if goal < 4 else tables.pads[0, goal - 4]]

def table(summary):
    """What `measure` returns, or a whole summary.json, in lines of text."""
    def answers(key):
        before = {k: f"{v:.2f} -> " for k, v in summary.get(f"vqa_before{key}", {}).items()}
        return "  ".join(f"{k} {before.get(k, '')}{v:.2f}" for k, v in summary[f"vqa_after{key}"].items())
    s, n = summary, next(iter(summary["success"].values()))["n"]
    won, right = ("  ".join(f"{r['rate']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in s[key].values())
                  for key in ("success", "right_puck"))
    rows = {"": "  ".join(f"{name:17s}" for name in s["success"]),
            "success": f"{won}   (95 % intervals, n = {n} each)", "right puck moved most": right,
            "VQA, picture book": answers(""), "VQA, robot pictures": answers("_robot"),
            "ms per chunk": "  ".join(f"{k} {'-' if v is None else v}" for k, v in s["ms_per_chunk"].items())}
    if "train_seconds" in s:
        memory = "unknown" if s["peak_rss_mib"] is None else f"{s['peak_rss_mib']} MiB"
        rows["seconds"] = f"training {s['train_seconds']}, all {s['total_seconds']}; peak memory {memory}"
        step, waits = 1000 * s["train_seconds"] / s["steps"], 100 * s["data_wait_share"]
        rows["speed"] = f"{step:.0f} ms a step, {waits:.0f} % of the time spent waiting for data"
    return "\n".join(f"{name:24s}{text}" for name, text in rows.items())

def main():
    parser = program.parser(__doc__)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--instruction", help="write a GIF of a scene that fits this command")
    parser.add_argument("--scene", type=int, help="give the command in this test scene instead (0 to 1000000)")
    parser.add_argument("--scenes", type=int, help="scenes in each test set (1 to 1000000; default: the run's)")
    parser.add_argument("--seed", type=int, default=0, help="of the scene that fits (0 to 2147483647; default 0)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    in_bounds({"seed": args.seed, "scenes": 1 if args.scenes is None else args.scenes}, ("seed", "scenes"))
    refuse(not 0 <= (args.scene or 0) <= 10 ** 6, f"--scene is {args.scene}; it must be 0 or more: 0 to 1000000")
    torch.set_num_threads(1)               # (as fast on idle cores for one robot, and much faster on busy ones)
    model = checkpoint.load_model(args.run)
    c = model.config = replace(model.config, scenes=args.scenes or model.config.scenes)
    if args.instruction is None:
        result = measure(model)
        program.write_json(Path(args.run, "evaluation.json"), result)
        print(json.dumps(result, indent=1) if args.json else table(result))
        return
    tables = (scene_for(args.instruction, c.goals, args.seed, c.pucks) if args.scene is None
              else test_scenes("all", args.scene + 1, c.goals, pucks=c.pucks).take([args.scene]))
    aim(tables, args.instruction, c.goals)
    said = language.instruction(tables)[0]
    path = Path(args.run, f"{'-'.join(said.split())}.gif")
    print(f"{said}: {'done' if film(model, tables, path)[0] else 'not done'} -> {path}")

if __name__ == "__main__":
    program.run(main)
