"""How fast does the action expert learn where nothing else changes? A new expert on the finished VLM of a run.

In every arm all sets rise together, since they wait for the expert. Here it alone is trained, on the memory that a
finished VLM leaves, and its success is asked as seconds go by. The VLM's pass is part of these seconds: several
updates of the expert can share it, because with the stop-gradient none of them changes it.

    python -m tutorials.studies.expert RUN --seconds 60                        # each setting of SETTINGS, into tutorials/results/expert.jsonl
    python -m tutorials.studies.expert RUN --only "4 draws, 1 update" --expert-rate .02 # one of them, and a flag of nano_ki.train changed

Read next: bench.py
"""
import time
from dataclasses import replace
from pathlib import Path

import torch

from nano_ki import checkpoint, config, episodes, evaluate, expert, program
from nano_ki.model import VLA
from nano_ki.optim import clip, optimisers
from nano_ki.vit import norm, queries_keys_values
from tutorials.studies.compare import RESULTS

SETTINGS = {        # name: (flags, waypoints in one action token)
    "the default: width 64, 8 draws, 4 updates": ([], 2),
    "8 draws, 2 updates": (["--expert-updates", "2"], 2),
    "4 draws, 1 update": (["--flow-draws", "4", "--expert-updates", "1"], 2),
    "4 draws, 2 updates": (["--flow-draws", "4", "--expert-updates", "2"], 2),
    "4 draws, 4 updates": (["--flow-draws", "4"], 2),
    "16 draws, 4 updates": (["--flow-draws", "16"], 2),
    "one waypoint a token": ([], 1),
    "four waypoints a token": ([], 4),
    "warm-up of 100 steps": (["--warmup", "100"], 2),
    "width 96": (["--expert-width", "96"], 2),
    "width 192": (["--expert-width", "192"], 2),
    "rate .015": (["--expert-rate", ".015"], 2),
    "rate .06": (["--expert-rate", ".06"], 2),
    "a fifth layer, which reads the VLM's output": ([], 2),
}
OUTPUT = list(SETTINGS)[-1]
CHECKS = 4          # evaluations on the way, evenly spaced in seconds


class Deeper(VLA):
    """A policy whose expert has a layer more: it reads the VLM's output, through the keys and values of its last layer."""

    def __init__(self, config, fast):
        super().__init__(config, fast)
        self.expert = expert.Expert(config.expert_width, config.vlm_width, config.depth + 1, fast.horizon, fast.dims)

    def remember(self, image, prompt):
        words = self.vlm.generate((image, prompt), self.said, self.allowed) if self.said else None
        return self.read((image, prompt), words, self.said)[1]

    def read(self, segments, answer, keep=0):
        last, kept = self.vlm.blocks[-1], []
        hook = last.register_forward_hook(lambda block, given, result: kept.append(result[0]))
        memory = self.vlm(self.vlm.prefix(*segments), answer[:, :keep] if keep else None, keep=keep)[1]
        hook.remove()
        return None, [*memory, queries_keys_values(norm(kept[0]), last.q, last.k, last.v)[1:]]


def learn(model, data, seconds, scenes):
    """Train model.expert alone for so many seconds of training. Returns [(seconds, steps, success on seen)]."""
    c, both, step, spent, curve = (
        model.config, optimisers(model.expert, model.config.expert_rate, .15 * model.config.expert_rate), 0, 0., [])
    while len(curve) < CHECKS:
        start, batch = time.perf_counter(), data.batch(step)
        with torch.no_grad():
            memory = model.read((batch.image, batch.prompt), batch.answer, model.said)[1]
        for number in range(c.updates):
            model.expert.zero_grad(set_to_none=True)
            model.flow_loss(batch, memory, torch.Generator().manual_seed(step * c.updates + number)).backward()
            clip(model.expert, c.clip)
            for optimiser in both:
                for group in optimiser.param_groups:        # (as `set_rates`, by seconds)
                    group["lr"] = group["peak"] * min(1, (step + 1) / c.warmup, max(0., 1 - spent / seconds))
                optimiser.step()
        step, spent = step + 1, spent + time.perf_counter() - start
        if spent >= seconds * (len(curve) + 1) / CHECKS:
            won, _ = evaluate.success(evaluate.policy_of(model), c, scenes, ("seen",), evaluate.VALIDATION_SEED)
            curve.append((round(spent), step, won["seen"]["rate"]))
    return curve


def main():
    parser = program.parser(__doc__)
    parser.add_argument("run", help="folder of a finished run: its VLM is used as it is")
    parser.add_argument("--seconds", type=float, default=60, help="of training, one thread")
    parser.add_argument("--only", choices=list(SETTINGS), help="one setting in place of all")
    parser.add_argument("--results", default=str(RESULTS / "expert.jsonl"), help="jsonl to append to")
    args, flags = parser.parse_known_args()
    torch.set_num_threads(1)
    run = checkpoint.load_model(args.run)
    for name in [args.only] if args.only else SETTINGS:
        changed, patch = SETTINGS[name]
        given = config.parse([*changed, *flags, "--recipe", "frozen", "--vlm-samples", "0", "--device", "cpu"])
        c = replace(run.config, **{key: getattr(given, key)
                                   for key in ("flow_draws", "expert_updates", "expert_width", "expert_rate", "warmup")},
                    insulate=True, fast_loss=False, vlm_samples=0, validate=True)
        expert.PATCH = patch
        torch.manual_seed(c.seed)
        model = (Deeper if name == OUTPUT else VLA)(c, run.fast)
        model.vlm = run.vlm
        curve = learn(model, episodes.Data(c, run.fast), args.seconds, 200)
        line = {"setting": name, "flags": [*changed, *flags], "patch": patch, "run": Path(args.run).name,
                "ms_a_step": round(1000 * curve[-1][0] / curve[-1][1]), "curve": curve}
        checkpoint.add_metrics(args.results, line)
        print(f"{name:44s} " + "   ".join(f"{s} s ({steps} steps): {rate:.2f}" for s, steps, rate in curve), flush=True)


if __name__ == "__main__":
    program.run(main)
