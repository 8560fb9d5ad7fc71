"""Train the policy: one VLM and one action expert, each with a loss of its own.

    python -m nano_ki.train                          # knowledge insulation, with the shipped VLM
    python -m nano_ki.train --no-insulate            # the same without the stop-gradient
    python -m nano_ki.train --recipe pi0             # flow loss only, through the VLM

`train_step` is the method: two losses are added up, and each part is clipped and updated on its own. The rest
of this file prepares it, watches it and saves what it made, in the run's folder (checkpoint.FILES).

Read next: play.py
"""
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nano_ki import checkpoint, evaluate, program, ranks, world
from nano_ki import config as configuration
from nano_ki.checkpoint import load_model, new_model
from nano_ki.config import Config
from nano_ki.episodes import Data, drawn_ahead
from nano_ki.language import PAD
from nano_ki.model import VLA, Batch
from nano_ki.optim import clip, optimisers, set_rates
from nano_ki.pretrain import can_compile, compile_blocks, make_vlm
from nano_ki.program import say, write_json


def train_step(model, parts, batches, generators, config, step):
    """One update of the policy. Returns its losses and {part: gradient norm before clipping}.
    model: the policy, maybe wrapped by DDP or FSDP. parts: {"vlm" and "expert", if trained: (module, optimisers)}. batches:
    this process's shards of the step's batch (one, unless --shards or several processes cut it); generators: a seeded one
    for each. FloatingPointError if a loss is not finite."""
    values, norms, memories = {}, {}, None
    for number in range(config.updates):       # first both parts, then the expert alone, on the same memory
        model.zero_grad(set_to_none=True)
        read = []
        for losses, memory in ranks.forward_each(model, batches, generators, PAD, config.shards, memories):
            loss = losses["ce"] + config.alpha * losses["flow"]              # (arXiv 2505.23705, eq. 4)
            if not loss.isfinite():
                raise FloatingPointError(f"the loss is not finite at step {step}: {({k: round(v.item(), 5) for k, v in losses.items()})}; lower --vlm-rate or --expert-rate")
            ranks.backward(loss)
            if number == 0:
                values = {name: values.get(name, 0) + value.item() for name, value in losses.items()}
            read.append(memory)
        for name, (part, its_optimisers) in parts.items() if number == 0 else [("expert", parts["expert"])]:
            norms[name] = clip(part, config.clip)
            set_rates(its_optimisers, step, config.steps, config.warmup)
            for optimiser in its_optimisers:
                optimiser.step()
        if not all(memories := read):            # (no expert is trained)
            break
    return values, norms

@dataclass
class Job:
    """A run while it is trained: what it is made of, and how far it is."""
    config: Config
    out: Path                   # its folder
    data: Data
    model: VLA                  # the policy
    spread: torch.nn.Module     # the policy as it is called in training (ranks.spread)
    parts: dict                 # see train_step
    vqa_before: dict            # what the VLM knew (on rank 0)
    step: int = 0               # steps done
    seconds: float = 0.         # of training
    waited: float = 0.          # of these, for data

    def optimisers(self):
        return [optimiser for _, both in self.parts.values() for optimiser in both]

def train(config, stop=lambda step: False, policy=VLA, watch=lambda model, data: {}):
    """Run the whole job. Returns the summary (also in summary.json), or None if it was stopped.
    stop(step) is asked after each step; True (on any rank) saves and ends, as Ctrl-C does. policy: VLA, or a subclass
    with the same weights. watch(model, data): what each check measures besides. ValueError and OSError say what to do
    about settings, folders and files. Under torchrun every rank calls it; rank 0 alone writes and returns."""
    began, first = time.perf_counter(), "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"
    tell = say if first else lambda text: None
    out, saved, job = checkpoint.open_folder(config) if first else None, None, None
    claim = program.claimed(out / checkpoint.CLAIM, f"the folder {out}") if first else nullcontext()
    with claim, ranks.threads_kept():
        try:
            saved = checkpoint.load(config.out, tell) if config.resume else None
            if saved:
                config = going_on(config, saved["config"], tell)
            with ranks.started(config.device) as (rank, size):
                job = prepare(config, ranks.agree(out), saved, policy, rank, size, tell)
                finished, job.spread = loop(job, stop, watch, rank), None        # (DDP must be gone before its processes part)
                if finished:
                    return finish(job, size, began) if rank == 0 else None
                tell(f"stopped after step {job.step}; go on with: python -m nano_ki.train --resume --out {out}")
        except KeyboardInterrupt:
            if not (saved or job) or not first or not checkpoint.there(out):       # (what is there is another run's)
                raise
            say(f"stopped; go on with: python -m nano_ki.train --resume --out {out}")
        except OSError as error:
            if not (saved or job) or not first or not checkpoint.there(out):
                raise
            raise OSError(f"{error}, then go on with --resume --out {out}. What was written before is intact") from None

def going_on(config, saved, tell):
    """The settings of a run that goes on: its own (`saved`), but for what this machine decides."""
    given = {name: value for name in configuration.ELSEWHERE if (value := getattr(config, name)) != getattr(Config, name)}
    saved = replace(saved, out=config.out, compile=saved.compile and can_compile(), **given)
    if saved.device in configuration.devices():
        return saved
    tell(f"this run was on {saved.device}, which is not here: it goes on on {(best := configuration.devices()[0])}")
    return replace(saved, device=best)

def prepare(config, out, saved, policy, rank, size, tell):
    """Everything that the first step needs, as a Job."""
    if config.shards < size:                     # at least one part of the batch for each rank
        config = replace(config, shards=size)
        configuration.check(config)
    make_vlm(config, tell)
    torch.manual_seed(config.seed)
    if config.device == "cuda":
        torch.set_float32_matmul_precision("high")
    data = Data(config, saved["fast"] if saved else checkpoint.begin(config.start, config)[1] if config.start else None)
    checkpoint.check_memory(lambda: policy(config, data.fast))
    model = new_model(config, data.fast, not saved, policy)
    if not config.vlm_learns:                    # (then no backward pass through it is prepared)
        model.vlm.requires_grad_(False)
    if config.device == "cpu":
        batch = data.batch(config.steps)

        def work():                              # (to time it; the gradients are thrown away)
            losses = model(batch, torch.Generator().manual_seed(0))       # (one of the expert's updates)
            (losses["ce"] + losses["flow"]).backward()
        config = replace(config, threads=config.threads or ranks.fastest_threads(work))
        torch.set_num_threads(config.threads)
        model.zero_grad(set_to_none=True)
        model.config = config
    vqa_before = saved["vqa_before"] if saved else evaluate.vqa_both(model) if rank == 0 else None
    if config.compile:
        compile_blocks(model.vlm.vit, model.vlm, model.expert)
    unused = config.updates > 1 or not (config.cross_entropy and config.flow_loss) and config.vlm_learns
    spread = ranks.spread(model, config.fsdp, unused)
    parts = {}          # two parts, two optimisers each (Muon, AdamW), clipped each on its own
    if config.vlm_learns:
        parts["vlm"] = model.vlm, optimisers(model.vlm, config.vlm_rate, config.vlm_adam)
    if config.flow_loss:
        parts["expert"] = model.expert, optimisers(model.expert, config.expert_rate, .15 * config.expert_rate)
    job = Job(config, out, data, model, spread, parts, vqa_before)
    if saved:
        try:
            ranks.scatter(model, job.optimisers(), saved["model"], saved["optimisers"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the checkpoint in {out} does not fit its own configuration ({type(error).__name__}: "
                             f"{program.first_line(error)}); train again, with --overwrite for the same folder") from None
        job.step, job.seconds = saved["step"], saved["seconds"]
    if rank == 0:
        explain(job, size)
        if not saved:                            # (nothing of an old run is deleted before the new one can begin)
            checkpoint.clear(out)
            write_json(out / "config.json", asdict(config))
    return job

def loop(job, stop, watch, rank):
    """Train, with checks and checkpoints on the way. Returns True at the end, and False if it was stopped."""
    c, mine, shown = job.config, ranks.shares(job.config.shards), {}
    generators = [torch.Generator(device=c.device) for _ in mine]
    places = ((step, shard) for step in range(job.step, c.steps) for shard in mine)
    stream = drawn_ahead(job.data, places, c.workers, pin=c.device == "cuda")
    metrics, checked = job.out / "metrics.jsonl", set()                  # steps whose check a stopped run has made
    if rank == 0:
        metrics.touch()
    if rank == 0 and job.step:
        checkpoint.add_metrics(metrics, {"resumed": job.step})
        checked = {m["step"] for m in checkpoint.read_metrics(metrics) if "success" in m}
    start = time.perf_counter() - job.seconds
    with program.AfterThisStep() as asked, program.progress(c.steps, job.step, c.recipe, hide=rank > 0) as bar:
        for step in range(job.step, c.steps):
            if c.check_every and step and step % c.check_every == 0:     # (saved before: a Ctrl-C here loses nothing)
                if rank == 0 and step not in checked:
                    with asked.at_once():
                        found = check(load_model(job.out, c.device), job.data, watch)
                    checkpoint.add_metrics(metrics, {"step": step, "seconds": round(job.seconds, 2), **found})
                    shown["success"] = f"{found['success']['seen']['rate']:.2f}"
                ranks.together(c.device)
                start = time.perf_counter() - job.seconds                # checks are not training time
            ready = time.perf_counter()
            batches = [to_device(next(stream), c.device) for _ in mine]
            job.waited += time.perf_counter() - ready
            for generator, shard in zip(generators, mine, strict=True):
                generator.manual_seed(noise_seed(c.seed, step, shard))
            values, norms = train_step(job.spread, job.parts, batches, generators, c, step)
            job.step, job.seconds = step + 1, time.perf_counter() - start
            if job.step % 20 == 0 or job.step == c.steps:
                values = {k: round(ranks.total(v, c.device), 5) for k, v in values.items()}
                if rank == 0:
                    checkpoint.add_metrics(metrics, {
                        "step": job.step, **values, "gradient": norms, "seconds": round(job.seconds, 2), "waited": round(job.waited, 2)})
                shown.update({k: f"{v:.3f}" for k, v in values.items() if k != "ce"})
            bar.set_postfix(shown, refresh=False)
            bar.update()
            stopping = ranks.total(float(stop(job.step) or asked()), c.device) > 0          # (on any rank)
            due = any(n and job.step % n == 0 for n in (c.save_every, c.check_every))
            if stopping or due or job.step == c.steps:
                weights, states = ranks.gather(job.model, job.optimisers())
                if rank == 0:
                    checkpoint.save(job.out, c, job.data.fast, weights, states, job.step, job.seconds, job.vqa_before)
                ranks.together(c.device)                                 # nobody goes on before it is written
            if stopping:
                return False
    return True

def check(model, data, watch):
    """A short evaluation during training, for a line of metrics.jsonl."""
    won, right = evaluate.success(evaluate.policy_of(model), model.config, 100, ("seen", "new_both"), evaluate.CHECK_SEED)
    return {"success": won, "right_puck": right, "vqa": evaluate.vqa_both(model, 100), **watch(model, data)}

def finish(job, size, began):
    """Evaluate what was saved, write what came out, draw; returns the summary."""
    c, out = job.config, job.out
    say("evaluating ...")
    result = evaluate.measure(model := load_model(out, c.device))
    settings = {name: getattr(c, name) for name in ("recipe", "preset", "device", "threads", "seed", "steps", "insulate")}
    summary = {**settings, "ranks": size, "train_seconds": round(job.seconds, 1), "total_seconds": round(time.perf_counter() - began, 1),
               "samples_a_second": round(c.steps * (c.batch + c.vlm_samples) / job.seconds, 1), "data_wait_share": round(job.waited / job.seconds, 4), "peak_rss_mib": program.peak_memory_mib(),
               "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()},
               "tokens_per_chunk": round(job.data.tokens_per_chunk, 2),
               "vqa_before": job.vqa_before["book"], "vqa_before_robot": job.vqa_before["robot"], **result}
    summary |= {"peak_gpu_mib": round(torch.cuda.max_memory_allocated() / 2 ** 20)} if c.device == "cuda" else {}
    write_json(out / "summary.json", summary)
    say(evaluate.table(summary))
    scenes = world.join([evaluate.test_scenes(name, 2, evaluate.CHECK_SEED, c.pucks) for name in world.OBJECTS[:3] + world.OBJECTS[4:]])
    evaluate.film(model, scenes, out / "rollouts.gif")
    if c.ship:
        made = dict(command=" ".join(["python -m nano_ki.train", *sys.argv[1:]]), **summary)
        if c.flow_loss:
            with checkpoint.stored(out / checkpoint.LATEST, checkpoint.FORMAT) as content:
                checkpoint.ship({**content, "optimisers": []}, c.ship, **made)
        else:
            checkpoint.save_vlm(model.vlm, c.ship, c, model.fast, **made)
    say(f"{out}/ holds {', '.join(name for name in checkpoint.FILES if (out / name).exists())}\nwatch it: python -m nano_ki.play {out}\nwhere the stop-gradient decides: python -m tutorials.lab_forgetting")
    return summary

def noise_seed(seed, step, shard):
    """The seed of the noises and flow times of a step's shard: unique to it, and the same in every run."""
    return int(np.random.SeedSequence((seed, 3, step, shard)).generate_state(1, np.uint64)[0]) >> 1

def to_device(batch, device):
    return Batch(*(x.to(device, non_blocking=True) for x in batch))

def explain(job, size):
    """Print what was derived, and why."""
    c, data = job.config, job.data
    stop = "flows into the VLM" if not c.insulate else "stops at the memory" + ", so nothing trains the VLM" * (not c.vlm_learns)
    names = ["subtask"] * (c.subtask and c.cross_entropy) + ["FAST"] * c.fast_loss + ["text"] * (c.vlm_samples > 0) + [f"{c.alpha:g} x flow"] * c.flow_loss
    for line in (f"recipe {c.recipe}, preset {c.preset}, device {c.device}, CPU threads {c.threads or 'any'}, seed {c.seed} -> {job.out}",
            f"losses: {' + '.join(names)}{f'; the flow gradient {stop}' * c.flow_loss}",
            f"data: {c.episodes} demonstrations of {len(world.KINDS[c.kinds])} kinds of object -> {len(data.tables)} samples",
            f"{c.steps} steps of {c.batch} robot + {c.vlm_samples} question samples: {c.steps * c.batch / len(data.tables):.1f} passes over the data; {c.shards} shard(s) of each step on {size} process(es)",
            f"a chunk of {data.chunks[0].size} numbers is {data.tokens_per_chunk:.1f} FAST tokens, gamma {c.gamma:g}, {data.fast.vocab} tokens in all",
            f"before training the VLM answers {job.vqa_before['book']} on book pages, {job.vqa_before['robot']} on robot pictures"):
        say(line)

if __name__ == "__main__":
    program.run(lambda: train(configuration.parse(description=__doc__)), files=True)
