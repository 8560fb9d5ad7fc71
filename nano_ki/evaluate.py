"""Does it push the right puck, does it still know what it knew, and how fast is it?

Closed loop: look, plan a chunk, execute the first `execute` waypoints, look again, until the target is at
its goal or the time is up. The scenes of a test set are the same for every run, so that runs can be
compared scene by scene. VQA asks the VLM questions about picture-book pages and about robot pictures.

Try it: python -m nano_ki.evaluate runs/NAME [--instruction "push the cyan ring to the left"]
Read next: probe.py
"""
import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nano_ki import draw, language, probe, render, world
from nano_ki.episodes import look, say
from nano_ki.language import COLOUR, SHAPE

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


# -- policies: tables [b] -> chunks [b, H, 3] in table units ------------------------------------------


def flow_policy(model, seed=0, hide=()):
    """Euler steps from fresh noise on the cached memory. hide: slots of the command that are left blank."""
    generator = torch.Generator(device=_device(model)).manual_seed(seed)
    return lambda tables: model.fast.restore(
        model.act(*inputs(model, tables, hide), generator).cpu().numpy())


def token_policy(model, hide=()):
    """FAST tokens one by one."""
    return lambda tables: model.fast.restore(model.act_tokens(*inputs(model, tables, hide)).cpu().numpy())


def policy_of(model, seed=0, hide=()):
    """How this model acts: by flow where it has a trained expert, else by tokens."""
    return flow_policy(model, seed, hide) if model.config.flow_loss else token_policy(model, hide)


def random_policy(seed=0):      # (at control rate 1)
    """Smooth strokes to random places, pressed."""
    rng = np.random.default_rng(seed)

    def plan(tables):
        ends = rng.uniform(-1.1, 1.1, (len(tables), 1, 2))
        s = np.linspace(0, 1, world.STEPS + 1)[1:, None]
        xy = tables.finger[:, None] * (1 - s) + ends * s
        return np.concatenate((xy, np.ones((len(tables), world.STEPS, 1))), -1)
    return plan


def inputs(model, tables, hide=()):
    """(image, prompt) tensors on the model's device."""
    prompt = say(tables, model.config)
    prompt[:, list(hide)] = language.BLANK
    return tuple(torch.from_numpy(a).to(_device(model)) for a in (look(tables, model.config), prompt))


def _device(model):
    return next(model.parameters()).device


# -- measuring ----------------------------------------------------------------------------------------


def rollout(policy, tables, execute=8, watch=None, rate=1):
    """Closed loop from `tables` (not changed). Returns success bool [B], right puck bool [B].

    "Right puck": the target is what moved most (and at least .05). A scene ends when it succeeds. watch:
    called as watch(tables, ids still running, chunk, waypoint number) before each step. rate: control rate
    (world.step).
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


def half_said(n, goals, part, seed=TEST_SEED, pucks=3):
    """n scenes of demonstrated kinds in which no other puck has the target's colour (part 0) or shape (part 1)."""
    tables = test_scenes("seen", 8 * n + 50, goals, seed, pucks)
    word = tables.kind[..., part]
    alone = (word == word[np.arange(len(word)), tables.target][:, None]).sum(1) == 1
    return tables.take(np.flatnonzero(alone)[:n])


def harder(model, n, seed=TEST_SEED):
    """`success` in what no demonstration was like: new shapes, five pucks, commands that say only the colour, or only
    the shape (which only the target has)."""
    c, won, right = model.config, {}, {}
    for name, scenes, hide in (("new_shape", test_scenes("new_shape", n, c.goals, seed, c.pucks), ()),
                               ("five_pucks", test_scenes("16", n, c.goals, seed, 5), ()),
                               ("only_colour_said", half_said(n, c.goals, 0, seed, c.pucks), (SHAPE,)),
                               ("only_shape_said", half_said(n, c.goals, 1, seed, c.pucks), (COLOUR,))):
        a, b = rollout(policy_of(model, hide=hide), scenes, c.execute, rate=c.rate)
        won[name], right[name] = outcome(a), outcome(b)
    return won, right


def vqa(vlm, pictures, n=400, size=48, seed=TEST_SEED, pucks=3, free=True, grain=0.):
    """Accuracy {"where", "colour", "shape"} on new scenes of all kinds. pictures: "book" | "robot".

    "where" counts if x and y are both within one bin of 1/32 of the table. free: any word, or action token,
    may come; else only words of the right category (this tells a lost habit of answering from lost sight).
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
    """Milliseconds for one chunk of one robot (batch 1), median: {"flow", "autoregressive"}.

    None for a way of acting that this recipe does not train. On a GPU the flow is one CUDA graph.
    """
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
        act = graphed(model.act, *one) if one[0].is_cuda and c.flow_loss else model.act
        return {"flow": ms(act) if c.flow_loss else None,
                "autoregressive": ms(model.act_tokens) if c.fast_loss else None}


def graphed(act, *inputs):
    """act(*inputs), recorded as one CUDA graph -> a function that copies new inputs in and replays it. (Acting is
    some thousand small kernels: to launch them one by one takes longer than to run them.)"""
    held, side = [x.clone() for x in inputs], torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):                                 # a recording may not set anything up
            act(*held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = act(*held)

    def replay(*inputs):
        for old, new in zip(held, inputs, strict=True):
            old.copy_(new)
        graph.replay()
        return out
    return replay


def measure(model):
    """Everything that summary.json says of a finished model."""
    c = model.config
    won, right = success(policy_of(model), c, c.scenes, seed=VALIDATION_SEED if c.validate else TEST_SEED)
    knows = vqa_both(model)
    return {"success": won, "right_puck": right, "vqa_after": knows["book"],
            "vqa_after_robot": knows["robot"], "ms_per_chunk": latency(model)}


def measure_more(model):
    """What a comparison asks besides, of a model that a run has saved: more test sets, answers restricted to their
    category, what can be read off the memory, how far the VLM's weights went."""
    c = model.config
    seed = VALIDATION_SEED if c.validate else TEST_SEED
    won, right = harder(model, c.scenes, seed)
    return {"success": won, "right_puck": right, "vqa_restricted": vqa_both(model, free=False),
            "readable": probe.readable(model), "moved": probe.moved(model)}


# -- watching -----------------------------------------------------------------------------------------


def film(model, tables, path, frame=192):
    """Write a GIF of these scenes side by side, with the instruction on each."""
    texts, last = language.instruction(tables), tables.take(slice(None))
    frames, won = [], np.zeros(len(tables), bool)

    def panels(waypoints=None):
        pictures = render.robot_camera(last, frame)
        return draw.panels(pictures, texts, won, waypoints)

    def watch(now, ids, chunk, i):
        won[:] = True
        won[ids] = False
        last.puck[ids], last.finger[ids], last.pressed[ids] = now.puck, now.finger, now.pressed
        frames.append(panels({k: chunk[j, i:, :2] for j, k in enumerate(ids)}))

    policy = policy_of(model)
    success_, _ = rollout(policy, tables, model.config.execute, watch, model.config.rate)
    frames += [frames[-1]] * 5
    draw.save_gif(frames, path)
    return success_


def command(text, goals):
    """A command in words -> (kind [2], goal index). ValueError for unknown words (with the nearest known
    ones), for a question, and for a pad in a world without pads."""
    prompt = language.parse(text)
    if prompt[language.VERB] != language.ID["push"]:
        raise ValueError(f"{text!r} is no command; one reads 'push the COLOUR SHAPE to the GOAL'")
    goal = prompt[language.GOAL] - language.GOAL0
    if goal >= len(world.SIDES) and goals == "sides":
        raise ValueError(f"this policy's world has no {world.GOALS[goal]}; its goals: {', '.join(world.SIDES)}")
    return prompt[[language.COLOUR, language.SHAPE]] - (language.COLOUR0, language.SHAPE0), goal


def scene_for(text, goals, seed=0, pucks=3):
    """A scene in which a command makes sense, e.g. "push the cyan ring to the left"."""
    kind, goal = command(text, goals)
    rng = np.random.default_rng((seed, 3))
    while True:
        tables = world.sample(rng, 4096, goals=goals, pucks=pucks)
        asked = (tables.kind[np.arange(len(tables)), tables.target] == kind).all(1) & (tables.goal == goal)
        if asked.any():
            return tables.take(np.flatnonzero(asked)[:1])


def aim(tables, text, goals):
    """Give one table another command, in place. ValueError if the object is not on it (it says what is)."""
    kind, goal = command(text, goals)
    there = (tables.kind[0] == kind).all(1)
    if not there.any():
        names = [f"{world.COLOURS[c]} {world.SHAPES[s]}" for c, s in tables.kind[0]]
        raise ValueError(f"no {world.COLOURS[kind[0]]} {world.SHAPES[kind[1]]} on this table; there are: "
                         f"{', '.join(names)}")
    tables.target[:], tables.goal[:] = there.argmax(), goal
    tables.goal_xy[:] = world.PLACES[goal if goal < 4 else tables.pads[0, goal - 4]]


def table(summary):
    """The outcome for people."""
    def rates(rows):
        return "  ".join(f"{r['rate']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in rows.values())
    n = next(iter(summary["success"].values()))["n"]
    lines = [f"{'':24s}" + "  ".join(f"{name:17s}" for name in summary["success"]),
             f"{'success':24s}{rates(summary['success'])}   (95 % intervals, n = {n} each)",
             f"{'right puck moved most':24s}{rates(summary['right_puck'])}"]
    for name, key in (("VQA, picture book", ""), ("VQA, robot pictures", "_robot")):
        now = summary[f"vqa_after{key}"]
        before = summary.get(f"vqa_before{key}", {})
        lines.append(f"{name:24s}" + "  ".join(
            f"{k} {f'{before[k]:.2f} -> ' if before else ''}{v:.2f}" for k, v in now.items()))
    lines.append(f"{'ms per chunk':24s}" + "  ".join(
        f"{k} {'-' if v is None else v}" for k, v in summary["ms_per_chunk"].items()))
    if "train_seconds" in summary:
        lines.append(f"{'seconds':24s}training {summary['train_seconds']}, all {summary['total_seconds']}; "
                     f"peak memory {summary['peak_rss_mib']} MiB")
        lines.append(f"{'speed':24s}{1000 * summary['train_seconds'] / summary['steps']:.0f} ms a step of "
                     f"{summary['gflop_per_step']} GFLOP, {100 * summary['share_of_peak']:.0f} % of "
                     f"this machine's matrix peak ({summary['matrix_peak_gflops']} GFLOP/s); "
                     f"{100 * summary['data_wait_share']:.0f} % of the time spent waiting for data")
    return "\n".join(lines)


def main():
    from nano_ki.checkpoint import write_json
    from nano_ki.train import load_model
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--instruction", help="draw one scene that has this object, write its GIF")
    parser.add_argument("--scene", type=int, help="give that instruction in this scene (0, 1, ...) instead")
    parser.add_argument("--scenes", type=int, help="scenes in each test set (default: the run's)")
    parser.add_argument("--seed", type=int, default=0, help="of the scene for --instruction")
    parser.add_argument("--more", action="store_true", help="what nano_ki.compare asks besides, as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    try:
        model = load_model(args.run)
        if args.instruction:
            goals, pucks = model.config.goals, model.config.pucks
            if args.scene is None:
                tables = scene_for(args.instruction, goals, args.seed, pucks)
            else:
                if args.scene < 0:
                    raise ValueError(f"--scene is {args.scene}; it must be 0 or more")
                tables = test_scenes("all", args.scene + 1, goals, pucks=pucks).take([args.scene])
                aim(tables, args.instruction, goals)
            path = Path(args.run) / ("-".join(args.instruction.split()) + ".gif")
            won = film(model, tables, path)
            print(f"{language.instruction(tables)[0]}: {'done' if won[0] else 'not done'} -> {path}")
            return
        if args.scenes is not None:
            if args.scenes < 1:
                raise ValueError(f"--scenes is {args.scenes}; it must be above 0")
            model.config = replace(model.config, scenes=args.scenes)
        result = (measure_more if args.more else measure)(model)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    write_json(Path(args.run) / ("more.json" if args.more else "evaluation.json"), result)
    print(json.dumps(result, indent=1) if args.json or args.more else table(result))


if __name__ == "__main__":
    main()
