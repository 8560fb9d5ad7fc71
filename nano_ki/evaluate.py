"""Does the policy push the right puck, does its VLM still know what it knew, and how fast is one plan?

Success is measured in closed loop. The policy looks, plans a chunk of waypoints, executes the first `execute` of them
and looks again, until the target is at its goal or time is up. VQA (visual question answering) asks about pictures.

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
from nano_ki.config import in_bounds

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
    """Act in closed loop from `tables` (not changed) and return the tables in the end. rate: see world.step.
    watch(tables, ids of the running scenes, chunk, waypoint number): called before a step."""
    end, tables, ids = tables.take(slice(None)), tables.take(slice(None)), np.arange(len(tables))
    for _, i in product(range(0, rate * world.HORIZON, execute), range(execute)):
        if i == 0:
            chunk = policy(tables)
        if watch:
            watch(tables, ids, chunk, i)
        world.step(tables, chunk[:, i], rate)
        done = world.success(tables)
        end.puck[ids], end.finger[ids], end.pressed[ids] = tables.puck, tables.finger, tables.pressed
        if done.all():
            break
        tables, ids, chunk = tables.take(~done), ids[~done], chunk[~done]
    return end

def right_puck(start, end):
    """[B] bool: the target moved most, and at least .05."""
    moved = np.linalg.norm(end.puck - start.puck, axis=-1)
    return (moved.argmax(1) == start.target) & (moved.max(1) > .05)

def two_commands(policy, tables, second, execute=8, rate=1):
    """The second command, (target [B], goal [B]), is given when the first is done, or its time is up. Returns success bool
    [B], which means that both pucks lie at their goals in the end, and the right puck for both, bool [B]."""
    middle = rollout(policy, tables, execute, rate=rate)
    middle.target, middle.goal = second
    end = rollout(policy, middle, execute, rate=rate)
    first = replace(end, target=tables.target, goal=tables.goal)
    return world.success(end) & world.success(first), right_puck(tables, middle) & right_puck(middle, end)

def test_scenes(name, n, seed=TEST_SEED, pucks=3):
    """The n scenes of one test set (in world.TEST_SETS or world.KINDS): the same for every run."""
    rng = np.random.default_rng((seed, [*world.KINDS, *world.TEST_SETS[5:]].index(name)))
    holes = name if name in ("spatial", "goal") else "left out" if name in world.TEST_SETS else None
    return world.sample(rng, n, world.KINDS.get(name, world.KINDS["seen"]), pucks, holes)

def long_scenes(n, seed=TEST_SEED, pucks=3):
    """n scenes and a second command for each, (target, goal), of those that the expert can carry out."""
    tables, rng = test_scenes("long", 2 * n + 20, seed, pucks), np.random.default_rng((seed, 8))
    rows = np.arange(len(tables))
    target = (tables.target + rng.integers(1, pucks, size=len(rows))) % pucks
    wish = rng.random((len(rows), len(world.GOALS)))                 # another goal, and none that is left out
    wish[rows, tables.goal] = wish[rows, world.never(tables.kind[rows, target])] = -1
    goal = wish.argmax(1)
    chosen = np.flatnonzero(two_commands(world.stroke, tables, (target, goal))[0])[:n]
    return tables.take(chosen), (target[chosen], goal[chosen])

def success(policy, config, n, names=world.TEST_SETS, seed=TEST_SEED):
    """The outcome in n scenes of each test set: ({name: of success}, {name: of the right puck})."""
    c, won, right = config, {}, {}
    for name in names:
        if name == "long":
            results = two_commands(policy, *long_scenes(n, seed, c.pucks), c.execute, c.rate)
        else:
            scenes = test_scenes(name, n, seed, c.pucks)
            end = rollout(policy, scenes, c.execute, rate=c.rate)
            results = world.success(end), right_puck(scenes, end)
        won[name], right[name] = map(outcome, results)
    return won, right

@torch.no_grad()
def vqa(vlm, pictures, n=400, size=48, seed=TEST_SEED, pucks=3, free=True, cloth=0.):
    """Shares of right answers, {"where", "colour", "shape", "went"}, in n new scenes; "went" asks about two pictures
    (language.two_pages). pictures: "book" or "robot". A place is right if x and y are each at most one bin off. free:
    any token may be answered; else only words of the right category (a VLM may lose just the habit of answering)."""
    rng, device, out = np.random.default_rng((seed, 9)), next(vlm.parameters()).device, {}
    tables = world.sample(rng, n, pucks=pucks)

    def picture(tables):
        return render.robot_camera(tables, size, cloth) if pictures == "robot" else render.picture_book(tables, rng, size)
    image = picture(tables)
    for kind, words in (("where", language.NUMBERS), ("colour", world.COLOURS), ("shape", world.SHAPES), ("went", world.GOALS)):
        if kind == "went":
            after, words_of, answer = language.two_pages(tables, rng)
            segments = image, words_of[:, 0], picture(after), words_of[:, 1]
        else:
            *segments, answer = image, *language.lesson(tables, rng, kind)
        count, slack = (2, 1) if kind == "where" else (1, 0)
        fits = torch.zeros(vlm.head.out_features, dtype=torch.bool, device=device)
        fits[[language.ID[word] for word in words]] = True
        allow, parts = None if free else lambda tokens, fits=fits: fits, range(0, n, 200)                # (parts save memory)
        said = torch.cat([vlm.generate([torch.from_numpy(x[k:k + 200]).to(device) for x in segments], count, allow) for k in parts])
        out[kind] = round(float((np.abs(said.cpu().numpy() - answer[:, :count]) <= slack).all(1).mean()), 4)
    return out

def vqa_both(model, n=None, free=True):
    """VQA on both kinds of picture: {"book": ..., "robot": ...}. n: scenes (default: the run's)."""
    c = model.config
    return {pictures: vqa(model.vlm, pictures, n or c.scenes, c.image, pucks=c.pucks, free=free, cloth=c.cloth)
            for pictures in ("book", "robot")}

def latency(model, repeats=10):
    """Median milliseconds for one chunk of one robot: {"flow", "autoregressive"}, None if it was not trained."""
    c = model.config
    one = inputs(model, test_scenes("seen", 1, pucks=c.pucks))

    def ms(act):
        seconds = timeit.repeat(lambda: act(*one).cpu(), number=1, repeat=repeats + 2)[2:]    # (two to warm up)
        return round(1000 * float(np.median(seconds)), 2)
    with torch.autocast(one[0].device.type, torch.bfloat16, enabled=c.bfloat16, cache_enabled=False):
        return {"flow": ms(model.act) if c.flow_loss else None, "autoregressive": ms(model.act_tokens) if c.fast_loss else None}

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
        done, coming = [k not in ids for k in range(len(tables))], dict(zip(ids, chunk[:, i:, :2], strict=True))
        frames.append(draw.panels(render.robot_camera(last, frame, model.config.cloth), texts, done, coming))
    end = rollout(policy_of(model), tables, model.config.execute, watch, model.config.rate)
    draw.save_gif(frames + [frames[-1]] * 5, path)
    return world.success(end)

def table(summary):
    """What `measure` returns, or a whole summary.json, in lines of text."""
    def answers(key):
        before = {k: f"{v:.2f} -> " for k, v in summary.get(f"vqa_before{key}", {}).items()}
        return "  ".join(f"{k} {before.get(k, '')}{v:.2f}" for k, v in summary[f"vqa_after{key}"].items())
    s, n = summary, next(iter(summary["success"].values()))["n"]
    won, right = ({name: f"{r['rate']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for name, r in s[key].items()} for key in ("success", "right_puck"))
    rows = {"": f"success             right puck moved most   (95 % intervals, n = {n} each)", **{name: f"{won[name]:20s}{right[name]}" for name in won},
            "VQA, picture book": answers(""), "VQA, robot pictures": answers("_robot"),
            "ms per chunk": "  ".join(f"{k} {'-' if v is None else v}" for k, v in s["ms_per_chunk"].items())}
    if "train_seconds" in s:
        rows["seconds"] = f"training {s['train_seconds']}, all {s['total_seconds']}; peak memory {s['peak_rss_mib'] or 'unknown'} MiB"
        step, waits = 1000 * s["train_seconds"] / s["steps"], 100 * s["data_wait_share"]
        rows["speed"] = f"{step:.0f} ms a step, {s['samples_a_second']:.0f} samples a second; {waits:.0f} % of the time spent waiting for data"
    return "\n".join(f"{name:24s}{text}" for name, text in rows.items())

def main():
    parser = program.parser(__doc__)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--scenes", type=int, help="scenes in each test set (1 to 1000000; default: the run's)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    in_bounds({"scenes": 1 if args.scenes is None else args.scenes}, ["scenes"])
    torch.set_num_threads(1)               # (as fast on idle cores for one robot, and much faster on busy ones)
    model = checkpoint.load_model(args.run)
    model.config = replace(model.config, scenes=args.scenes or model.config.scenes)
    result = measure(model)
    program.write_json(Path(args.run, "evaluation.json"), result)
    print(json.dumps(result, indent=1) if args.json else table(result))

if __name__ == "__main__":
    program.run(main)
