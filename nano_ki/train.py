"""Train the policy: one VLM, one action expert, two losses, no interference.

    python -m nano_ki.train                          # knowledge insulation, with the shipped VLM
    python -m nano_ki.train --no-insulate            # the same without the stop-gradient
    python -m nano_ki.train --recipe pi0             # flow loss only, through the VLM

    torchrun --nproc-per-node 8 -m nano_ki.train     # on eight GPUs (tutorials/11_scaling.md)

A run leaves in its folder: config.json, metrics.jsonl (one line each), the last two checkpoints,
curves.png, rollouts.gif, summary.json. Ctrl-C finishes the step and saves; --resume --out FOLDER goes on.

Read next: evaluate.py
"""
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from nano_ki import bench, checkpoint, draw, evaluate, probe, ranks, world
from nano_ki import config as configuration
from nano_ki.checkpoint import write_json
from nano_ki.episodes import Data, drawn_ahead
from nano_ki.language import PAD
from nano_ki.model import VLA, Batch
from nano_ki.pretrain import compile_blocks, load_vlm, make_vlm, optimisers, schedule, set_rate

FILES = ("checkpoint.pt", "checkpoint-before.pt", "config.json", "curves.png", "metrics.jsonl", "rollouts.gif",
         "summary.json")
LOG_EVERY = 20           # steps between lines of metrics.jsonl


def train(config, stop=lambda step: False):
    """Run the whole job. Returns the summary (also in summary.json), or None if it was stopped.

    stop(step) is asked after each step; True (on any rank) saves and ends. ValueError / OSError say what to do
    about bad settings, folders and files; FloatingPointError about a loss that is not finite. Under torchrun
    every rank calls it; rank 0 alone writes files, and returns the summary.
    """
    with ranks.started(config.device) as (rank, size):
        return _train(config, stop, rank, size)


def _train(config, stop, rank, size):
    began = time.perf_counter()
    say = tqdm.write if rank == 0 else lambda text: None
    out = ranks.agree(open_folder(config) if rank == 0 else None)
    saved = checkpoint.load(out, say) if config.resume else None
    if saved:
        config = saved["config"]
    if config.shards < size:                     # at least one part of the batch for each rank
        config = replace(config, shards=size)
        configuration.check(config)
    mine = ranks.shares(config.shards)
    make_vlm(config, say)
    torch.manual_seed(config.seed)
    if config.device == "cuda":
        torch.set_float32_matmul_precision("high")
    data = Data(config, saved and saved["fast"])
    model = new_model(config, data.fast, not saved)
    if config.freeze:
        model.vlm.requires_grad_(False)
    vqa_before = saved["vqa_before"] if saved else evaluate.vqa_both(model) if rank == 0 else None
    if rank == 0:
        explain(config, data, model, out, vqa_before, size, say)
        if not saved:
            write_json(out / "config.json", asdict(config))

    # Two parts, two optimisers each (Muon, AdamW), clipped each on its own.
    if config.compile:
        compile_blocks(model.vlm.vit, model.vlm, model.expert)
    spread = ranks.spread(model, config.fsdp, unused=config.expert_from > 0 or
                          not (config.cross_entropy and config.flow_loss) and not config.freeze)
    parts = {"vlm": model.vlm, "expert": model.expert}
    trained = [name for name in parts if not (name == "vlm" and config.freeze)
               and not (name == "expert" and not config.flow_loss)]
    rates = {"vlm": (config.vlm_rate, config.vlm_adam), "expert": (config.expert_rate, config.expert_adam)}
    begins = {"vlm": 0, "expert": round(config.expert_from * config.steps)}
    groups, joins = zip(*((o, begins[name]) for name in trained for o in optimisers(parts[name], *rates[name])), strict=True)
    first, seconds = 0, 0.
    if saved:
        try:
            ranks.scatter(model, groups, saved["model"], saved["optimisers"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the checkpoint in {out} does not fit its own configuration ({type(error).__name__}: "
                             f"{checkpoint.first_line(error)}); train again, with --overwrite for the same folder") from None
        first, seconds = saved["step"], saved["seconds"]
    noise, watched = torch.Generator(device=config.device), to_device(data.batch(config.steps), config.device)
    stream = drawn_ahead(data, ((step, shard) for step in range(first, config.steps) for shard in mine),
                         config.workers, pin=config.device == "cuda")
    if rank == 0:
        metrics = checkpoint.Metrics(out / "metrics.jsonl", first if saved else None)

    bar = tqdm(total=config.steps, initial=first, desc=config.recipe, dynamic_ncols=True, disable=rank > 0,
               mininterval=.2 if sys.stderr.isatty() else 20)      # (a log file needs fewer lines)
    shown, waited = {}, 0.
    start = time.perf_counter() - seconds
    for step in range(first, config.steps):
        asked = time.perf_counter()
        batches = [next(stream) for _ in mine]
        waited += time.perf_counter() - asked
        # ---- the training step ------------------------------------------------------------------
        # The batch comes in shards: one, unless several processes share the work. The cross-entropy is
        # averaged over the real tokens of all of them.
        tokens = [int((batch.answer != PAD).sum()) for batch in batches]
        all_tokens = max(1, ranks.total(sum(tokens), config.device))
        model.expert_trains = step >= begins["expert"]
        values = {}
        model.zero_grad(set_to_none=True)
        for i, (batch, shard) in enumerate(zip(batches, mine, strict=True)):
            noise.manual_seed(noise_seed(config.seed, step, shard))
            with ranks.exchange(spread, now=i + 1 == len(batches)):
                losses = spread(to_device(batch, config.device), noise)
                share, even = tokens[i] / all_tokens, 1 / config.shards
                loss = share * losses["ce"] + config.alpha * even * losses["flow"]     # (arXiv 2505.23705, eq. 2)
                if not torch.isfinite(loss):
                    raise FloatingPointError(not_finite(losses, loss, step, out))
                (size * loss).backward()                       # (ranks are averaged; we want their sum)
            for name, value in losses.items():
                values[name] = values.get(name, 0) + value.detach() * (share if name == "ce" else even)
        # Clip each part on its own: in one norm, the expert's gradient would shrink the VLM's step.
        norms = {name: ranks.plain(torch.nn.utils.clip_grad_norm_(parts[name].parameters(), config.clip)).item()
                 for name in trained}
        for optimiser, join in zip(groups, joins, strict=True):
            set_rate(optimiser, schedule(max(0, step - join), config.steps - join, config.warmup))
            optimiser.step()
        # ------------------------------------------------------------------------------------------
        done = step + 1
        seconds = time.perf_counter() - start
        if done % LOG_EVERY == 0 or done == config.steps:
            values = {k: round(ranks.total(v.item(), config.device), 5) for k, v in values.items()}
            if rank == 0:
                metrics.add({"step": done, **values, "gradient": norms, "seconds": round(seconds, 2),
                             "waited": round(waited, 2), "memory_mib": checkpoint.memory_mib()})
            shown.update({k: f"{v:.3f}" for k, v in values.items() if k != "ce"})
        if config.check_every and done % config.check_every == 0 and done < config.steps:
            acting = whole(model, config, data.fast)
            if rank == 0:
                with torch.compiler.set_stance("force_eager"):     # (batches of all sizes: not worth compiling)
                    won, _ = evaluate.success(evaluate.policy_of(acting), config, 100, ("seen", "new_both"),
                                              evaluate.CHECK_SEED)
                    metrics.add({"step": done, "seconds": round(seconds, 2), "success": won,
                                 "vqa": evaluate.vqa_both(acting, 100), "pull": probe.pull(acting, watched)})
                shown["success"] = f"{won['seen']['rate']:.2f}"
            start = time.perf_counter() - seconds                   # checks are not training time
        bar.set_postfix(shown, refresh=False)
        bar.update()
        stopping = ranks.total(float(stop(done)), config.device) > 0
        if stopping or done % config.save_every == 0 or done == config.steps:
            weights, states = ranks.gather(model, groups)
            if rank == 0:
                checkpoint.save(out, config, data.fast, weights, states, done, seconds, vqa_before)
            ranks.total(0, config.device)                           # nobody goes on before it is written
        if stopping:
            bar.close()
            say(f"stopped after step {done}; go on with: python -m nano_ki.train --resume --out {out}")
            return None
    bar.close()
    acting = whole(model, config, data.fast)
    if rank:
        return None
    with torch.compiler.set_stance("force_eager"):
        return finish(config, data, acting, out, vqa_before, seconds, waited, size, began, say)


def finish(config, data, model, out, vqa_before, seconds, waited, size, began, say):
    """Evaluate, draw and write what came out; returns the summary."""
    say("evaluating ...")
    result = evaluate.measure(model)
    draw_curves(out)
    scenes = world.join([evaluate.test_scenes(name, 2, config.goals, evaluate.CHECK_SEED, config.pucks)
                         for name in world.TEST_SETS])
    evaluate.film(model, scenes, out / "rollouts.gif")
    work, peak = bench.step_flops(config, data), bench.matrix_peak(config)
    summary = {"recipe": config.recipe, "preset": config.preset, "device": config.device, "ranks": size,
               "seed": config.seed, "steps": config.steps, "train_seconds": round(seconds, 1),
               "total_seconds": round(time.perf_counter() - began, 1),
               "data_wait_share": round(waited / seconds, 4), "peak_rss_mib": checkpoint.peak_memory_mib(),
               "parameters": {"vlm": count(model.vlm), "expert": count(model.expert)},
               "tokens_per_chunk": round(data.tokens_per_chunk, 2),
               "insulate": config.insulate, "vqa_before": vqa_before["book"],
               "vqa_before_robot": vqa_before["robot"], **result, "gflop_per_step": round(work / 1e9, 2),
               "matrix_peak_gflops": round(peak / 1e9),
               "share_of_peak": round(work * config.steps / seconds / size / peak, 3)}
    if config.device == "cuda":
        summary["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated() / 2 ** 20)
    write_json(out / "summary.json", summary)
    say(evaluate.table(summary))
    say(f"{out}/ holds {', '.join(sorted(p.name for p in out.iterdir()))}")
    return summary


def noise_seed(seed, step, shard):
    """One number for the noises and flow times of a step's shard: different for all, the same for ever."""
    return int(np.random.SeedSequence((seed, 3, step, shard)).generate_state(1, np.uint64)[0] >> 1)


def to_device(batch, device):
    return Batch(*(x.to(device, non_blocking=True) for x in batch))


def new_model(config, fast, pretrained=True):
    """A fresh policy on config.device, its VLM pre-trained if config.vlm names one."""
    model = VLA(config, fast)
    if config.vlm and pretrained:
        load_vlm(model.vlm, config.vlm, config)
    return model.to(config.device)


def whole(model, config, fast):
    """The policy in one piece, for rank 0 to act with: `model` itself, unless FSDP cut it up (every rank must call)."""
    if not config.fsdp:
        return model
    weights, _ = ranks.gather(model, [])
    if not weights:                      # (only rank 0 is given them)
        return None
    plain = VLA(config, fast)
    plain.load_state_dict(weights)
    return plain.to(config.device)


def count(module):
    return sum(p.numel() for p in module.parameters())


def not_finite(losses, loss, step, out):
    named = {k: round(v.item(), 5) for k, v in losses.items()}
    return (f"the loss is {loss.item()} at step {step}: {named}. Stopped before the update; {out}/checkpoint.pt (if "
            "there) is from an earlier step. Try a lower --vlm-rate or --expert-rate, or another --seed")


def explain(config, data, model, out, vqa_before, size, say):
    """Print what was derived, and why."""
    seen = config.steps * config.batch / len(data.tables)
    stop = ("stopped at the memory" if config.insulate else "flows into the VLM") if not config.freeze else (
        "cannot train the frozen VLM")
    say(f"recipe {config.recipe}, preset {config.preset}, device {config.device}, seed {config.seed} -> {out}")
    if config.shards > 1:
        say(f"  {size} processes, {config.shards} shards of the batch: {config.shards // size} for each process")
    say(f"  losses: {'FAST + ' * config.fast_loss}{'text + ' * (config.vlm_samples > 0)}"
        f"{f'{config.alpha:g} x flow' * config.flow_loss}".rstrip(" +")
        + (f"; the flow gradient {stop}" if config.flow_loss else ""))
    say(f"  data: {config.episodes} demonstrations of {len(world.KINDS[config.kinds])} kinds of object -> "
        f"{len(data.tables)} samples (planning moments of those that succeeded)")
    say(f"  {config.steps} steps of {config.batch} robot + {config.vlm_samples} question samples: "
        f"{seen:.1f} passes over the demonstrations")
    say(f"  a chunk of {data.chunks[0].size} numbers is {data.tokens_per_chunk:.1f} FAST tokens "
        f"(at most {data.answers.shape[1] - 1}), gamma {config.gamma:g}, {data.fast.vocab} tokens in all")
    say(f"  parameters: VLM {count(model.vlm):,}, expert {count(model.expert):,}")
    say(f"  the VLM before training answers on picture-book pages {vqa_before['book']}, "
        f"on robot pictures {vqa_before['robot']}")


# -- files --------------------------------------------------------------------------------------------


def open_folder(config):
    """The run's folder, made if need be. Never one that holds another run, without --overwrite."""
    try:
        return _folder(config)
    except OSError as error:
        if error.errno is None:              # (raised below, and says what to do)
            raise
        raise OSError(f"cannot use that folder for the run ({error}); choose another --out") from None


def _folder(config):
    if not config.out:
        for number in range(1, 10 ** 6):
            out = Path("runs") / f"{config.recipe}-{number:03d}"
            try:
                out.mkdir(parents=True)
                return out
            except FileExistsError:
                continue
    out = Path(config.out)
    if config.resume:
        if not any((out / name).exists() for name in (checkpoint.LATEST, checkpoint.BEFORE)):
            raise FileNotFoundError(f"{out} holds no {checkpoint.LATEST} to resume from; start it without --resume")
        return out
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; --out names a folder")
    if out.is_dir() and any(out.iterdir()):
        if not config.overwrite:
            raise FileExistsError(f"{out} is not empty; --overwrite replaces the run in it, --resume goes on "
                                  "with it, or choose another --out")
        for name in FILES:
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    return out


def load_model(folder, device=None):
    """The finished policy of a run's folder, on `device` (default: cpu), ready to act."""
    saved = checkpoint.load(folder, lambda text: print(text, file=sys.stderr))
    device = device or "cpu"
    model = VLA(replace(saved["config"], device=device), saved["fast"])
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError as error:
        raise ValueError(f"{folder}/checkpoint.pt does not fit its own configuration: "
                         f"{str(error).splitlines()[-1].strip()}; train it again") from None
    return model.to(device).eval()


def draw_curves(out):
    """curves.png from metrics.jsonl."""
    lines = checkpoint.read_metrics(out / "metrics.jsonl")
    steps = [m for m in lines if "flow" in m]
    checks = [m for m in lines if "success" in m]

    def curve(name):
        return [m["step"] for m in steps], [m[name] for m in steps]
    draw.curves({
        "loss": {k: curve(k) for k in ("fast", "text", "flow") if any(m[k] for m in steps)},
        "gradient norm (before clipping)": {
            part: ([m["step"] for m in steps], [m["gradient"][part] for m in steps])
            for part in (steps[0]["gradient"] if steps else ())},
        "success (100 scenes)": {k: ([m["step"] for m in checks], [m["success"][k]["rate"] for m in checks])
                                 for k in ("seen", "new_both")},
    }, out / "curves.png")


def main():
    config = configuration.parse(description=__doc__.split("\n")[0])
    pressed = []
    for sign in (signal.SIGINT, signal.SIGTERM):        # (a cluster sends SIGTERM before it takes the machine)
        signal.signal(sign, lambda *_: (pressed.append(1), len(pressed) > 1 and sys.exit(130)))
    try:
        train(config, stop=lambda step: bool(pressed))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except (MemoryError, torch.OutOfMemoryError) as error:
        sys.exit(f"error: not enough memory ({checkpoint.first_line(error)}); lower --batch, --episodes or the widths")


if __name__ == "__main__":
    main()
