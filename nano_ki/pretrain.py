"""Makes the VLM: an empty network learns to see and to read from picture-book pages.

Each step brings new pages with one, two or three pucks (one is the easiest to learn from) and a caption or a question
about each (language.LESSONS). The result ships as data/vlm.pt, its provenance beside it. Every policy starts from it, or from a generalist that did.

Try it: python -m nano_ki.pretrain --steps 500 --out my_vlm.pt          Read next: train.py
"""
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from nano_ki import checkpoint, decoder, episodes, evaluate, language, optim, program, ranks, render, world
from nano_ki import config as configuration

RATE, PART_FORMAT = .01, "nano_ki unfinished VLM 1"      # RATE is Muon's; AdamW's is .15 times that
TWO_PAGES = .125     # share of the lessons that have two pages
SAVE_EVERY = 500     # steps between files from which a stopped pre-training goes on

class Lessons:
    """lessons[step]: two pairs (segments, answer) of tensors: about one page each, and a share TWO_PAGES about two."""

    def __init__(self, config, batch, seed):
        self.config, self.size, self.seed = config, batch, seed

    def __getitem__(self, step):
        c, rng = self.config, np.random.default_rng((self.seed, 2, step))
        pucks = c.pucks if rng.random() < .5 else int(rng.integers(1, max(c.pucks, 2)))     # half: as the robot meets
        double = round(TWO_PAGES * self.size)
        pages, words, reply = map(torch.from_numpy, episodes.two_pages(world.sample(rng, double, pucks=pucks), rng, c.image))
        tables = world.sample(rng, self.size - double, pucks=pucks)
        prompt, answer = language.lesson(tables, rng)
        if not c.compile:                    # (see Data.batch)
            answer = answer[:, :(answer != language.PAD).any(0).sum()]
        image, prompt, answer = map(torch.from_numpy, (render.picture_book(tables, rng, c.image), prompt, answer))
        return ([image, prompt], answer), (decoder.alternate(pages, words), reply)

def can_compile():
    return any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "gcc", "cc", "clang", "cl")))

def compile_blocks(*stacks):
    """Compile the blocks of these modules in place, each stack into one program. ValueError if there is no compiler."""
    if not can_compile():
        raise ValueError("--compile needs a C++ compiler, and none is on the PATH; install one (g++) or use --no-compile")
    for block in [block for stack in stacks for block in stack.blocks]:
        block.compile()

def make_vlm(config, tell):
    """Pre-train the VLM that config names, if it is not there and --vlm-steps says for how long."""
    if not (config.start and config.vlm_steps) or checkpoint.find(config.start).exists():
        return
    if ranks.who()[1] > 1:
        raise ValueError(f"no VLM at {config.start}; make it first, by one process: python -m nano_ki.pretrain --preset "
                         f"{config.preset} --steps {config.vlm_steps} --batch {config.batch} --out {config.start}")
    tell(f"no VLM at {config.start}: pre-training one, {config.vlm_steps} steps of {config.batch} pages")
    made = pretrain(config, config.start, config.vlm_steps, config.batch)
    if made is None:                         # (it was stopped, and saved)
        raise KeyboardInterrupt
    tell(f"it took {made['minutes']} minutes and answers {made['scores']}")

def pretrain(config, path, steps, batch, seed=0, rate=RATE, stop=lambda step: False):
    """Train a VLM from nothing and write it to `path`, its provenance beside it. Returns that, or None if Ctrl-C or
    stop(step) ended it. Then, or if killed, the same call goes on from path.unfinished."""
    configuration.refuse(Path(path).exists() and not Path(path).is_file(), f"--out is {path}, which is no file; name another one")
    with program.claimed(f"{path}.running", f"the VLM {path}"), ranks.threads_kept():
        job = {"steps": steps, "batch": batch, "seed": seed, "rate": rate}
        return _pretrain(config, Path(path), {**job, "pucks": config.pucks, **checkpoint.sizes(config)}, stop, **job)

def _pretrain(config, path, job, stop, steps, batch, seed, rate):
    began, unfinished, pages = time.perf_counter(), Path(f"{path}.unfinished"), Lessons(config, batch, seed)
    torch.manual_seed(seed)
    if config.device == "cuda":
        torch.set_float32_matmul_precision("high")
    checkpoint.check_memory(lambda: checkpoint.new_vlm(config))
    vlm, smooth = checkpoint.new_vlm(config).to(config.device), None
    groups = optim.optimisers(vlm, rate, .15 * rate)
    saved = {"step": 0, "minutes": 0., "threads": 0}
    if unfinished.exists():
        with checkpoint.stored(unfinished, PART_FORMAT, "; delete it to start from nothing") as saved:
            other = [name for name, value in job.items() if saved[name] != value]
        configuration.refuse(other, f"{unfinished} has another {', '.join(other)}; give the same flags, or delete it to start from nothing")
        ranks.scatter(vlm, groups, saved["weights"], saved["optimisers"])
        program.say(f"going on from step {saved['step']} ({unfinished})")
    minutes = saved["minutes"]
    if config.device == "cpu":
        torch.set_num_threads(config.threads or saved["threads"] or ranks.fastest_threads(lambda: loss_of(vlm, pages[0], config, config.depth).backward()))
    if config.compile:
        compile_blocks(vlm.vit, vlm)
    lessons = episodes.drawn_ahead(pages, range(saved["step"], steps), config.workers, pin=config.device == "cuda")
    with program.AfterThisStep() as asked, program.progress(steps, saved["step"], "pretrain") as bar:
        for step, lesson in enumerate(lessons, saved["step"]):
            # Half of the batches skip the last layer. What only that layer finds out is in nobody's memory: the
            # expert reads each layer's (K, V), that is, what was known *before* the layer.
            skip = config.depth > 1 and np.random.default_rng((seed, 3, step)).random() < .5
            loss = loss_of(vlm, lesson, config, config.depth - skip)
            if not loss.isfinite():
                raise FloatingPointError(f"the loss is {loss.item()} at step {step}; try a lower --rate")
            vlm.zero_grad(set_to_none=True)
            loss.backward()
            optim.set_rates(groups, step, steps, 100, flat=.5)
            for optimiser in groups:
                optimiser.step()
            done, smooth = step + 1, loss.item() if smooth is None else .98 * smooth + .02 * loss.item()
            bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
            bar.update()
            minutes, stopping = saved["minutes"] + (time.perf_counter() - began) / 60, asked() or stop(done)
            if stopping or done % SAVE_EVERY == 0 or done == steps:
                state = {**job, "format": PART_FORMAT, "step": done, "minutes": minutes, "threads": torch.get_num_threads(),
                         "weights": vlm.state_dict(), "optimisers": [optimiser.state_dict() for optimiser in groups]}
                program.write_whole(unfinished, lambda f, state=state: torch.save(state, f))
            if stopping:
                program.say(f"stopped after step {done}; the same command goes on")
                return None
            if done % 1000 == 0 and done < steps:
                with asked.at_once():
                    program.say(f"step {done}: loss {smooth:.3f} {scores_of(vlm, config)}")
    made = checkpoint.save_vlm(vlm, path, config, command=" ".join(["python -m nano_ki.pretrain", *sys.argv[1:]]), seed=seed, steps=steps,
                               batch=batch, minutes=round(minutes, 1), device=config.device, threads=torch.get_num_threads(),
                               parameters=sum(p.numel() for p in vlm.parameters()), scores=scores_of(vlm, config))
    unfinished.unlink()
    return made

def loss_of(vlm, lesson, config, layers):
    """Cross-entropy of the answers to one batch of pages, read by so many layers of the decoder."""
    total, tokens = 0, 0
    for segments, answer in lesson:
        if len(answer):
            *segments, answer = (x.to(config.device, non_blocking=True) for x in (*segments, answer))
            with torch.autocast(config.device, torch.bfloat16, enabled=config.bfloat16):
                logits, _ = vlm(vlm.prefix(*segments), answer[:, :-1], layers)
            total += F.cross_entropy(logits.transpose(1, 2).float(), answer, ignore_index=language.PAD, reduction="sum")
            tokens += (answer != language.PAD).sum()
    return total / tokens

def scores_of(vlm, config):
    """Its answers, as in evaluate.vqa, about clean pictures of both kinds."""
    with torch.compiler.set_stance("force_eager"):
        return {kind: evaluate.vqa(vlm, kind, size=config.image, pucks=config.pucks) for kind in ("book", "robot")}

def main():
    parser = program.parser(__doc__)
    parser.add_argument("--out", default=str(program.ROOT / "data" / "vlm.pt"), help="file to write")
    parser.add_argument("--steps", type=int, default=10000, help="training steps (1 to 1e+08; default 10000)")
    parser.add_argument("--rate", type=float, default=RATE, help="Muon learning rate; AdamW: x .15 (1e-09 to 10; default .01)")
    configuration.add_flags(parser, ("vlm_width", "vit_depth", "depth", "image", "pucks", "batch", "seed", "device", "threads",
                                     "preset", "bfloat16", "compile", "workers"))
    args = vars(parser.parse_args())
    out, steps, rate = (args.pop(name) for name in ("out", "steps", "rate"))
    configuration.in_bounds({"steps": steps}, ["steps"])
    configuration.refuse(not 1e-9 <= rate <= 10, f"--rate is {rate}; it must be above 0: 1e-09 to 10")
    config = configuration.make(**args)
    if made := pretrain(config, out, steps, config.batch, config.seed, rate):
        program.say(json.dumps(made, indent=1))

if __name__ == "__main__":
    program.run(main, files=True)
