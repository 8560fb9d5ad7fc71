"""Makes the VLM: an empty network learns to see and to read from picture-book pages.

New pages at every step: one, two or three pucks (a page with one puck is the easiest to learn from),
captions and questions (language.LESSONS). What comes out ships as data/vlm.pt, with its provenance beside
it: the robot policy starts from it, and must not lose what it knows.

Try it: python -m nano_ki.pretrain --steps 500 --out my_vlm.pt          Read next: model.py
"""
import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from nano_ki import language, ranks, render, world
from nano_ki.checkpoint import first_line, write_json, write_whole
from nano_ki.decoder import VLM
from nano_ki.episodes import drawn_ahead

ROOT = Path(__file__).resolve().parent.parent
FORMAT = "nano_ki VLM 1"
RATE = .01           # Muon learning rate of pre-training (AdamW: x .15)
HIDDEN = ("blocks.", "small.", "large.")      # names of modules whose matrices Muon trains


class Muon(torch.optim.Muon):
    """PyTorch's Muon, but it makes the updates of all matrices of one shape orthogonal together, on a CPU in float32.

    PyTorch does it one by one, in bfloat16. Few CPUs multiply bfloat16: on one that does not (AMD Zen 3) that took
    250 of the 940 ms of a training step, and this takes 25. Matrices that FSDP2 cut up are put together first, once.
    """

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            same = {}                                         # shape -> [(matrix, its update)]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                mean = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(mean, group["momentum"])                              # (Nesterov)
                same.setdefault(p.shape, []).append((p, ranks.plain(update)))
            for (rows, columns), pairs in same.items():
                updates = torch.stack([u for _, u in pairs])
                updates = updates.bfloat16() if updates.is_cuda else updates
                updates = orthogonal(updates, group["ns_coefficients"], group["ns_steps"])
                rate = group["lr"] * max(1, rows / columns) ** .5
                for (p, _), update in zip(pairs, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(ranks.cut_like(update, p), alpha=rate)


def orthogonal(x, coefficients, steps):
    """Matrices [n, rows, columns] -> about U V^T of each (its singular values come out between .7 and 1.2), by Newton
    and Schulz's iteration."""
    a, b, c = coefficients
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT, coefficients, steps).mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def optimisers(module, muon_rate, adam_rate):
    """Muon (arXiv 2502.16982) on hidden matrices, AdamW on the rest: what touches words, actions, times
    and biases directly. AdamW alone stays on the plateau before grounding sets in.

    Each group keeps its rate in "peak", for `set_rate`.
    """
    hidden, rest = [], []
    for name, p in module.named_parameters():
        if p.requires_grad:
            (hidden if p.ndim == 2 and name.removeprefix("vit.").startswith(HIDDEN) else rest).append(p)
    both = [Muon(hidden, lr=muon_rate, momentum=.95, weight_decay=0.),
            torch.optim.AdamW(rest, lr=adam_rate, betas=(.9, .95), weight_decay=0.)]
    for optimiser in both:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return both


def schedule(step, steps, warmup):
    """Factor on the learning rate: linear warm-up, flat, linear to 0 over the second half."""
    return min(1, (step + 1) / warmup, 2 * (1 - step / steps))


def set_rate(optimiser, factor):
    for group in optimiser.param_groups:
        group["lr"] = factor * group["peak"]


def new_vlm(config, fast_vocab=0):
    """An untrained VLM of the sizes in config, with room for so many FAST tokens."""
    return VLM(config.vlm_width, config.vit_depth, config.depth, config.image,
               language.FIRST_FAST + fast_vocab, language.SLOTS, language.ANSWER)


def sizes(config):
    """The settings that a stored VLM must share."""
    return {k: getattr(config, k) for k in ("vlm_width", "vit_depth", "depth", "image")}


def find(path):
    """A path as given, or inside the project if it is relative and not found from here."""
    path = Path(path)
    return path if path.exists() or path.is_absolute() else ROOT / path


def load_vlm(vlm, path, config):
    """Copy a stored VLM into `vlm` (rows for words only: FAST tokens are new). ValueError if it does not
    fit; FileNotFoundError with what to do if it is not there."""
    path = find(path)
    if not path.exists():
        raise FileNotFoundError(f"no VLM at {path}; make it with: python -m nano_ki.pretrain --out {path}")
    try:
        stored = torch.load(path, weights_only=True)
        if stored["format"] != FORMAT:
            raise ValueError(f"its format is {stored['format']!r}")
        weights = stored["weights"]
    except Exception as error:          # torch raises many kinds for a damaged or foreign file
        raise ValueError(f"{path} is not a whole {FORMAT!r} file ({type(error).__name__}: "
                         f"{first_line(error)}); make it again with: python -m nano_ki.pretrain "
                         f"--out {path}") from None
    if stored.get("sizes") != sizes(config):
        raise ValueError(f"{path} was made with {stored.get('sizes')}, this run has {sizes(config)}; choose "
                         "another --vlm, or make one with python -m nano_ki.pretrain and the same flags")
    if stored.get("words") != list(language.WORDS) or set(weights) != set(vlm.state_dict()):
        raise ValueError(f"{path} holds other words or weights than this code knows; make it again with "
                         f"python -m nano_ki.pretrain --out {path}")
    with torch.no_grad():
        for name, p in vlm.state_dict().items():        # (there may be fewer words and answer positions)
            p[:len(weights[name])] = weights[name]


def save_vlm(vlm, path, config):
    content = {"format": FORMAT, "sizes": sizes(config), "words": list(language.WORDS), "weights": vlm.state_dict()}
    write_whole(path, lambda f: torch.save(content, f))


class Lessons:
    """lessons[step]: (image, prompt, answer) tensors of one step: a page and one question or caption each."""

    def __init__(self, config, batch, seed):
        self.config, self.size, self.seed = config, batch, seed

    def __getitem__(self, step):
        c, rng = self.config, np.random.default_rng((self.seed, 2, step))
        # Half of the batches show as many pucks as the robot meets, the rest fewer.
        tables = world.sample(rng, self.size, pucks=c.pucks if rng.random() < .5 else int(rng.integers(1, max(c.pucks, 2))))
        prompt, answer = language.lesson(tables, rng)
        if not c.compile:                    # (see Data.batch)
            answer = answer[:, :(answer != language.PAD).any(0).sum()]
        return tuple(map(torch.from_numpy, (render.picture_book(tables, rng, c.image), prompt, answer)))


def compile_blocks(*stacks):
    """Compile the transformer blocks of these modules, in place: all of a stack share one compiled program.
    ValueError where there is no compiler."""
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "gcc", "cc", "clang", "cl"))):
        raise ValueError("--compile needs a C++ compiler, and none is on the PATH; install one (g++) or use --no-compile")
    for stack in stacks:
        for block in stack.blocks:
            block.compile()


def make_vlm(config, say):
    """If config names a VLM that is not there and says for how many steps to pre-train one: do that."""
    if not (config.vlm and config.vlm_steps) or find(config.vlm).exists():
        return
    if ranks.who()[1] > 1:
        raise ValueError(f"no VLM at {config.vlm}; make it first, by one process: python -m nano_ki.pretrain --preset "
                         f"{config.preset} --steps {config.vlm_steps} --batch {config.batch} --out {config.vlm}")
    say(f"no VLM at {config.vlm}: pre-training one, {config.vlm_steps} steps of {config.batch} pages")
    Path(config.vlm).parent.mkdir(parents=True, exist_ok=True)
    made = pretrain(config, f"{config.vlm}.unfinished", config.vlm_steps, config.batch, 0, RATE)
    for suffix in (".json", ""):                      # (a VLM that is there is a finished one)
        os.replace(f"{config.vlm}.unfinished{suffix}", f"{config.vlm}{suffix}")
    say(f"it took {made['minutes']} minutes and answers {made['scores']}")


def pretrain(config, path, steps, batch, seed, rate, start=""):
    """Train a VLM, from nothing or from the file `start`, and write it to `path`, its provenance (with that
    of `start`) beside it. Returns the provenance."""
    from nano_ki.evaluate import vqa
    began, rng = time.perf_counter(), np.random.default_rng((seed, 3))
    torch.manual_seed(seed)
    if config.device == "cuda":
        torch.set_float32_matmul_precision("high")
    vlm, earlier = new_vlm(config), None
    if start:
        load_vlm(vlm, start, config)
        note = find(f"{start}.json")
        earlier = json.loads(note.read_text()) if note.exists() else {"file": str(start)}
    vlm.to(config.device)
    if config.compile:
        compile_blocks(vlm.vit, vlm)
    groups = optimisers(vlm, rate, .15 * rate)
    bar = tqdm(range(steps), desc="pretrain", dynamic_ncols=True,
               mininterval=.2 if sys.stderr.isatty() else 20)
    smooth, cuda = None, config.device == "cuda"
    lessons = drawn_ahead(Lessons(config, batch, seed), range(steps), config.workers, pin=cuda)
    for step, lesson in zip(bar, lessons, strict=True):
        image, prompt, answer = (x.to(config.device, non_blocking=True) for x in lesson)
        # Half of the batches skip the last layer. What only that layer finds out is in nobody's memory: the
        # expert reads each layer's (K, V), that is, what was known *before* the layer.
        layers = config.depth - (config.depth > 1 and rng.random() < .5)
        with torch.autocast(config.device, torch.bfloat16, enabled=config.bfloat16):
            logits, _ = vlm(vlm.prefix(image, prompt), answer[:, :-1], layers)
        loss = F.cross_entropy(logits.transpose(1, 2).float(), answer, ignore_index=language.PAD)
        vlm.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in groups:
            set_rate(optimiser, schedule(step, steps, 100))
            optimiser.step()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}; try a lower --rate")
        smooth = loss.item() if smooth is None else .98 * smooth + .02 * loss.item()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            with torch.compiler.set_stance("force_eager"):
                scores = {pictures: vqa(vlm, pictures, size=config.image, pucks=config.pucks)
                          for pictures in ("book", "robot")}
            tqdm.write(f"step {step + 1}: loss {smooth:.3f} {scores}")
            save_vlm(vlm, path, config)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    made = {"command": " ".join(["python -m nano_ki.pretrain", *sys.argv[1:]]), "seed": seed,
            "commit": commit.stdout.strip() or "unknown", "date": date.today().isoformat(),
            "steps": steps, "batch": batch, "minutes": round((time.perf_counter() - began) / 60, 1),
            "device": config.device, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "parameters": sum(p.numel() for p in vlm.parameters()), "scores": scores, "started_from": earlier}
    write_json(f"{path}.json", made)
    return made


def main():
    from nano_ki import config as configuration
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", default=str(ROOT / "data" / "vlm.pt"), help="file to write")
    parser.add_argument("--steps", type=int, default=9000, help="training steps")
    parser.add_argument("--batch", type=int, default=64, help="pages in each batch")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--start", default="", help="go on from this VLM (default: from nothing)")
    parser.add_argument("--rate", type=float, default=RATE, help="Muon learning rate (AdamW: x .15)")
    configuration.add_flags(parser, ("vlm_width", "vit_depth", "depth", "image", "pucks", "device", "preset", "bfloat16",
                                     "compile", "workers"))
    args = vars(parser.parse_args())
    own = {k: args.pop(k) for k in ("out", "steps", "batch", "seed", "rate", "start")}
    try:
        for name in ("steps", "batch", "rate"):
            if not 0 < own[name] < math.inf:
                raise ValueError(f"--{name} is {own[name]}; it must be above 0 and finite")
        if own["seed"] < 0:
            raise ValueError(f"--seed is {own['seed']}; it must be 0 or more")
        config = configuration.make(**args)
        print(json.dumps(pretrain(config, own.pop("out"), **own), indent=1))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
