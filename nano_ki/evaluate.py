"""Does it push the right puck, does it still know what it knew, and how fast is it?

Closed loop: look, plan a chunk, execute the first `execute` waypoints, look again, until the target is at
its goal or the time is up. The scenes of a test set are the same for every run, so that runs can be
compared scene by scene. VQA asks the VLM questions about picture-book pages and about robot pictures.

Try it: python -m nano_ki.evaluate runs/NAME [--instruction "push the cyan ring to the left"]
Read next: probe.py
"""
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nano_ki import config as configuration
from nano_ki import draw, language, program, render, world
from nano_ki.checkpoint import load_model
from nano_ki.episodes import look, say

# Seeds of the test scenes, of the short checks during training, and of the scenes to choose settings in.
TEST_SEED, CHECK_SEED, VALIDATION_SEED = 1000, 2000, 3000


def wilson(hits, n):
    """{"rate", "low", "high", "n"}: a rate with its 95 % Wilson interval."""
    z, p = 1.96, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** .5
    return {"rate": round(p, 4), "low": round(max(0, middle - half), 4),
            "high": round(min(1, middle + half), 4), "n": n}


def outcome(won):
    """bool [n] -> wilson's dict, and the scenes one by one, eight to a byte, in hex: runs can be compared in pairs."""
    return {**wilson(int(won.sum()), len(won)), "scenes": np.packbits(won).tobytes().hex()}


def flow_policy(model, seed=0, hide=()):
    """A policy: tables [b] -> chunks [b, H, 3] in table units, by Euler steps from fresh noise. hide: slots of the
    command that are left blank."""
    generator = torch.Generator(device=device_of(model)).manual_seed(seed)
    return lambda tables: model.fast.restore(model.act(*inputs(model, tables, hide), generator).cpu().numpy())


def token_policy(model, hide=()):
    """The same by FAST tokens, one by one."""
    return lambda tables: model.fast.restore(model.act_tokens(*inputs(model, tables, hide)).cpu().numpy())


def policy_of(model, seed=0, hide=()):
    """How this model acts: by flow where it has a trained expert, else by tokens."""
    return flow_policy(model, seed, hide) if model.config.flow_loss else token_policy(model, hide)


def inputs(model, tables, hide=()):
    """(image, prompt) tensors on the model's device."""
    prompt = say(tables, model.config)
    prompt[:, list(hide)] = language.BLANK
    return tuple(torch.from_numpy(a).to(device_of(model)) for a in (look(tables, model.config), prompt))


def device_of(model):
    return next(model.parameters()).device


def rollout(policy, tables, execute=8, watch=None, rate=1):
    """Closed loop from `tables` (not changed). Returns success bool [B], right puck bool [B].

    "Right puck": the target is what moved most (and at least .05). A scene ends when it succeeds. watch is called as
    watch(tables, ids still running, chunk, waypoint number) before each step. rate: control rate (world.step).
    """
    start, tables, ids = tables, tables.take(slice(None)), np.arange(len(tables))
    final, won = start.puck.copy(), np.zeros(len(start), bool)
    for _ in range(0, rate * world.HORIZON, execute):
        chunk = policy(tables)
        for i in range(execute):
            if watch is not None:
                watch(tables, ids, chunk, i)
            world.step(tables, chunk[:, i], rate)
            final[ids] = tables.puck
            done = world.success(tables)
            if done.any():
                won[ids[done]] = True
                tables, ids, chunk = tables.take(~done), ids[~done], chunk[~done]
            if not len(ids):
                break
        if not len(ids):
            break
    moved = np.linalg.norm(final - start.puck, axis=-1)
    return won, (moved.argmax(1) == start.target) & (moved.max(1) > .05)


def test_scenes(name, n, goals, seed=TEST_SEED, pucks=3):
    """The n scenes of one test set (a name in world.KINDS): the same for every run."""
    rng = np.random.default_rng((seed, list(world.KINDS).index(name)))
    return world.sample(rng, n, world.KINDS[name], goals, pucks)


def success(policy, config, n, names=world.TEST_SETS, seed=TEST_SEED):
    """({name: success}, {name: right puck}) with intervals."""
    won, right = {}, {}
    for name in names:
        scenes = test_scenes(name, n, config.goals, seed, config.pucks)
        a, b = rollout(policy, scenes, config.execute, rate=config.rate)
        won[name], right[name] = outcome(a), outcome(b)
    return won, right


def vqa(vlm, pictures, n=400, size=48, seed=TEST_SEED, pucks=3, free=True, grain=0.):
    """Accuracy {"where", "colour", "shape"} on new scenes of all kinds. pictures: "book" | "robot".

    "where" counts if x and y are both within one bin of 1/32 of the table. free: the answer may be any word or action
    token; else only words of the right category (a VLM may have lost the habit of answering, and not its sight).
    """
    rng = np.random.default_rng((seed, 9))
    tables = world.sample(rng, n, goals="mixed" if pictures == "robot" else "sides", pucks=pucks)
    image = torch.from_numpy(render.robot_camera(tables, size, grain) if pictures == "robot"
                             else render.picture_book(tables, rng, size))
    device, out = next(vlm.parameters()).device, {}
    for kind, count, slack, first, words in (("where", 2, 1, language.NUMBER0, language.BINS),
                                             ("colour", 1, 0, language.COLOUR0, len(world.COLOURS)),
                                             ("shape", 1, 0, language.SHAPE0, len(world.SHAPES))):
        prompt, answer = language.lesson(tables, rng, kind)
        fits = torch.zeros(vlm.head.out_features, dtype=torch.bool, device=device)
        fits[first:first + words] = True
        with torch.no_grad():
            said = vlm.generate(image.to(device), torch.from_numpy(prompt).to(device), count,
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
    """Milliseconds for one chunk of one robot, median: {"flow", "autoregressive"}; None: not trained by this recipe."""
    c = model.config
    one = inputs(model, test_scenes("seen", 1, c.goals, pucks=c.pucks))

    def ms(act):
        times = []
        for _ in range(repeats + 2):
            start = time.perf_counter()
            act(*one).cpu()
            times.append(1000 * (time.perf_counter() - start))
        return round(float(np.median(times[2:])), 2)
    with torch.autocast(one[0].device.type, torch.bfloat16, enabled=c.bfloat16, cache_enabled=False):
        return {"flow": ms(model.act) if c.flow_loss else None,
                "autoregressive": ms(model.act_tokens) if c.fast_loss else None}


def measure(model):
    """Everything that summary.json says of a finished model."""
    c = model.config
    won, right = success(policy_of(model), c, c.scenes, seed=VALIDATION_SEED if c.validate else TEST_SEED)
    knows = vqa_both(model)
    return {"success": won, "right_puck": right, "vqa_after": knows["book"],
            "vqa_after_robot": knows["robot"], "ms_per_chunk": latency(model)}


def film(model, tables, path, frame=192):
    """Write a GIF of these scenes side by side, with the instruction on each. Returns success bool [B]."""
    texts, last, frames = language.instruction(tables), tables.take(slice(None)), []

    def watch(now, ids, chunk, i):
        done = ~np.isin(np.arange(len(tables)), ids)
        last.puck[ids], last.finger[ids], last.pressed[ids] = now.puck, now.finger, now.pressed
        waypoints = {k: chunk[j, i:, :2] for j, k in enumerate(ids)}
        frames.append(draw.panels(render.robot_camera(last, frame), texts, done, waypoints))
    won, _ = rollout(policy_of(model), tables, model.config.execute, watch, model.config.rate)
    draw.save_gif(frames + [frames[-1]] * 5, path)
    return won


def command(text, goals):
    """A command in words -> (kind [2], goal index). ValueError for unknown words (with the nearest known ones), for a
    question, and for a goal that this world does not have."""
    prompt = language.parse(text)
    if prompt[language.VERB] != language.ID["push"]:
        raise ValueError(f"{text!r} is no command; one reads 'push the COLOUR SHAPE to the GOAL'")
    goal = prompt[language.GOAL] - language.GOAL0
    known = {"sides": world.SIDES, "pads": world.PADS, "mixed": world.GOALS}[goals]
    if world.GOALS[goal] not in known:
        raise ValueError(f"this policy's world has no {world.GOALS[goal]}; its goals: {', '.join(known)}")
    return prompt[[language.COLOUR, language.SHAPE]] - (language.COLOUR0, language.SHAPE0), goal


def scene_for(text, goals, seed=0, pucks=3):
    """A scene in which a command makes sense, e.g. "push the cyan ring to the left"."""
    kind, goal = command(text, goals)
    rng = np.random.default_rng((seed, 3))
    for _ in range(100):                   # (one scene in about 200 fits)
        tables = world.sample(rng, 4096, goals=goals, pucks=pucks)
        asked = (tables.kind[np.arange(len(tables)), tables.target] == kind).all(1) & (tables.goal == goal)
        if asked.any():
            return tables.take(np.flatnonzero(asked)[:1])
    raise ValueError(f"no scene found for {text!r}; say another object or goal")


def aim(tables, text, goals):
    """Give one table another command, in place. ValueError if the object is not on it (it says what is)."""
    kind, goal = command(text, goals)
    there = (tables.kind[0] == kind).all(1)
    if not there.any():
        asked, *names = (f"{world.COLOURS[c]} {world.SHAPES[s]}" for c, s in (kind, *tables.kind[0]))
        raise ValueError(f"no {asked} on this table; there are: {', '.join(names)}")
    tables.target[:], tables.goal[:] = there.argmax(), goal
    tables.goal_xy[:] = world.PLACES[goal if goal < 4 else tables.pads[0, goal - 4]]


def table(summary):
    """The outcome for people."""
    def rates(rows):
        return "  ".join(f"{r['rate']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in rows.values())

    def answers(key):
        before = {k: f"{v:.2f} -> " for k, v in summary.get(f"vqa_before{key}", {}).items()}
        return "  ".join(f"{k} {before.get(k, '')}{v:.2f}" for k, v in summary[f"vqa_after{key}"].items())
    s, n = summary, next(iter(summary["success"].values()))["n"]
    rows = {"": "  ".join(f"{name:17s}" for name in s["success"]),
            "success": f"{rates(s['success'])}   (95 % intervals, n = {n} each)",
            "right puck moved most": rates(s["right_puck"]),
            "VQA, picture book": answers(""), "VQA, robot pictures": answers("_robot"),
            "ms per chunk": "  ".join(f"{k} {'-' if v is None else v}" for k, v in s["ms_per_chunk"].items())}
    if "train_seconds" in s:
        memory = "unknown" if s["peak_rss_mib"] is None else f"{s['peak_rss_mib']} MiB"
        rows["seconds"] = f"training {s['train_seconds']}, all {s['total_seconds']}; peak memory {memory}"
        rows["speed"] = (f"{1000 * s['train_seconds'] / s['steps']:.0f} ms a step, {100 * s['data_wait_share']:.0f} % of the "
                         "time spent waiting for data")
    return "\n".join(f"{name:24s}{text}" for name, text in rows.items())


def main():
    parser = program.parser(__doc__)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--instruction", help="draw one scene that has this object, write its GIF")
    parser.add_argument("--scene", type=int, help="give that instruction in this scene instead (0 to 1000000)")
    parser.add_argument("--scenes", type=int, help="scenes in each test set (1 to 1000000; default: the run's)")
    parser.add_argument("--seed", type=int, default=0, help="of the scene for --instruction (0 to 2147483647; default 0)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    configuration.in_bounds({"seed": args.seed, "scenes": 1 if args.scenes is None else args.scenes}, ("seed", "scenes"))
    if not 0 <= (args.scene or 0) <= 10 ** 6:
        raise ValueError(f"--scene is {args.scene}; it must be 0 or more: 0 to 1e+06")
    torch.set_num_threads(1)               # (as fast on idle cores for one robot, and much faster on busy ones)
    model = load_model(args.run)
    c = model.config = replace(model.config, scenes=args.scenes or model.config.scenes)
    if args.instruction is None:
        result = measure(model)
        program.write_json(Path(args.run) / "evaluation.json", result)
        print(json.dumps(result, indent=1) if args.json else table(result))
        return
    if args.scene is None:
        tables = scene_for(args.instruction, c.goals, args.seed, c.pucks)
    else:
        tables = test_scenes("all", args.scene + 1, c.goals, pucks=c.pucks).take([args.scene])
        aim(tables, args.instruction, c.goals)
    said = language.instruction(tables)[0]
    path = Path(args.run) / f"{'-'.join(said.split())}.gif"
    print(f"{said}: {'done' if film(model, tables, path)[0] else 'not done'} -> {path}")


if __name__ == "__main__":
    program.run(main)
