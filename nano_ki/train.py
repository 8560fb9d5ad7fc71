"""Train the policy: one VLM, one action expert, two losses, no interference.

    python -m nano_ki.train                          # knowledge insulation, with the shipped VLM
    python -m nano_ki.train --no-insulate            # the same without the stop-gradient
    python -m nano_ki.train --recipe pi0             # flow loss only, through the VLM

A run leaves in its folder: config.json, metrics.jsonl (one line each), checkpoint.pt, curves.png,
rollouts.gif, summary.json. Ctrl-C finishes the step and saves; --resume --out FOLDER goes on.

Read next: evaluate.py
"""
import json
import os
import resource
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from nano_ki import config as configuration
from nano_ki import draw, evaluate, world
from nano_ki.config import Config
from nano_ki.episodes import Data
from nano_ki.fast import FAST
from nano_ki.model import VLA, Batch
from nano_ki.pretrain import first_line, load_vlm, optimisers, schedule, set_rate, write_json

FORMAT = "nano_ki run 1"
FILES = ("config.json", "metrics.jsonl", "checkpoint.pt", "curves.png", "rollouts.gif", "summary.json")
LOG_EVERY = 20           # steps between lines of metrics.jsonl
SAVE_EVERY = 200         # steps between checkpoints


def train(config, stop=lambda step: False):
    """Run the whole job. Returns the summary (also in summary.json), or None if it was stopped.

    stop(step) is asked after each step; True saves and ends. ValueError / OSError say what to do about
    bad settings, folders and files; FloatingPointError about a loss that is not finite.
    """
    began = time.perf_counter()
    out = open_folder(config)
    saved = load_checkpoint(out / "checkpoint.pt") if config.resume else None
    if saved:
        config = saved["config"]
    say = tqdm.write
    torch.manual_seed(config.seed)
    data = Data(config)
    model = new_model(config, data.fast)
    noise = torch.Generator(device=config.device).manual_seed(config.seed)
    parts = {"vlm": model.vlm, "expert": model.expert}
    if config.freeze:
        model.vlm.requires_grad_(False)
    trained = [name for name in parts if not (name == "vlm" and config.freeze)
               and not (name == "expert" and not config.flow_loss)]
    rates = {"vlm": (config.vlm_rate, config.vlm_adam), "expert": (config.expert_rate, config.expert_adam)}
    groups = [o for name in trained for o in optimisers(parts[name], *rates[name])]
    first, seconds = 0, 0.
    if saved:
        first, seconds = restore(saved, model, groups, noise, data)
        vqa_before = saved["vqa_before"]
    else:
        write_json(out / "config.json", asdict(config))
        vqa_before = evaluate.vqa_both(model)
    metrics = open_metrics(out / "metrics.jsonl", first)
    explain(config, data, model, out, vqa_before, say)

    bar = tqdm(total=config.steps, initial=first, desc=config.recipe, dynamic_ncols=True,
               mininterval=.2 if sys.stderr.isatty() else 20)      # (a log file needs fewer lines)
    shown = {}
    start = time.perf_counter() - seconds
    for step in range(first, config.steps):
        # ---- the training step ------------------------------------------------------------------
        batch = Batch(*(x.to(config.device) for x in data.batch()))
        losses = model.losses(batch, noise)
        loss = losses["ce"] + config.alpha * losses["flow"]          # (arXiv 2505.23705, eq. 2)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {step}: {named(losses)}. Stopped before the update; "
                f"{out}/checkpoint.pt (if there) is from an earlier step. Try a lower --vlm-rate or "
                "--expert-rate, or another --seed")
        model.zero_grad(set_to_none=True)
        loss.backward()
        # Clip each part on its own: in one norm, the expert's gradient would shrink the VLM's step.
        norms = {name: torch.nn.utils.clip_grad_norm_(parts[name].parameters(), config.clip).item()
                 for name in trained}
        for optimiser in groups:
            set_rate(optimiser, schedule(step, config.steps, config.warmup))
            optimiser.step()
        # ------------------------------------------------------------------------------------------
        done = step + 1
        seconds = time.perf_counter() - start
        if done % LOG_EVERY == 0 or done == config.steps:
            values = named(losses)
            line = {"step": done, **values, "gradient": norms, "seconds": round(seconds, 2)}
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()
            shown.update({k: f"{v:.3f}" for k, v in values.items() if k != "ce"})
        if config.check_every and done % config.check_every == 0 and done < config.steps:
            won, _ = evaluate.success(evaluate.policy_of(model), config, 100, ("seen", "new_both"),
                                      evaluate.CHECK_SEED)
            metrics.write(json.dumps({"step": done, "success": won}) + "\n")
            metrics.flush()
            shown["success"] = f"{won['seen']['rate']:.2f}"
            start = time.perf_counter() - seconds                   # checks are not training time
        bar.set_postfix(shown, refresh=False)
        bar.update()
        stopping = stop(done)
        if stopping or done % SAVE_EVERY == 0 or done == config.steps:
            save_checkpoint(out / "checkpoint.pt", config, data, model, groups, noise, done, seconds,
                            vqa_before)
        if stopping:
            bar.close()
            say(f"stopped after step {done}; go on with: python -m nano_ki.train --resume --out {out}")
            return None
    bar.close()
    metrics.close()
    return finish(config, data, model, out, vqa_before, seconds, began, say)


def finish(config, data, model, out, vqa_before, seconds, began, say):
    """Evaluate, draw and write what came out; returns the summary."""
    say("evaluating ...")
    batch = Batch(*(x.to(config.device) for x in data.batch()))
    speed = utilisation(model, batch, seconds / config.steps)
    parameters = {k: sum(p.numel() for p in m.parameters()) for k, m in
                  (("vlm", model.vlm), ("expert", model.expert))}
    result = evaluate.measure(model)
    draw_curves(out)
    scenes = world.join([evaluate.test_scenes(name, 2, config.goals, evaluate.CHECK_SEED)
                         for name in world.TEST_SETS])
    evaluate.film(model, scenes, out / "rollouts.gif")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin"
                                                                 else 2 ** 10)
    summary = {"recipe": config.recipe, "preset": config.preset, "device": config.device,
               "seed": config.seed, "steps": config.steps, "train_seconds": round(seconds, 1),
               "total_seconds": round(time.perf_counter() - began, 1), "peak_rss_mib": round(peak),
               "parameters": parameters, "tokens_per_chunk": round(data.tokens_per_chunk, 2),
               "insulate": config.insulate, "vqa_before": vqa_before["book"],
               "vqa_before_robot": vqa_before["robot"], **result, **speed}
    write_json(out / "summary.json", summary)
    say(evaluate.table(summary))
    say(f"{out}/ holds {', '.join(FILES)}")
    return summary


def new_model(config, fast):
    """A fresh policy on config.device, its VLM pre-trained if config.vlm names one."""
    model = VLA(config, fast)
    if config.vlm:
        load_vlm(model.vlm, config.vlm, config)
    return model.to(config.device)


def utilisation(model, batch, seconds):
    """Of one training step that took `seconds`: its counted matrix work, and the share of the peak that a
    large float32 matrix product reaches on this machine now."""
    with FlopCounterMode(display=False) as counter:
        out = model.losses(batch)
        (out["ce"] + out["flow"]).backward()
    model.zero_grad(set_to_none=True)
    a, best = torch.randn(2048, 2048, device=batch.image.device), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    peak, work = 2 * 2048 ** 3 / best, counter.get_total_flops()
    return {"gflop_per_step": round(work / 1e9, 2), "matrix_peak_gflops": round(peak / 1e9),
            "share_of_peak": round(work / seconds / peak, 3)}


def explain(config, data, model, out, vqa_before, say):
    """Print what was derived, and why."""
    count = {k: sum(p.numel() for p in m.parameters()) for k, m in
             (("VLM", model.vlm), ("expert", model.expert))}
    seen = config.steps * config.batch / len(data.tables)
    stop = ("stopped at the memory" if config.insulate else "flows into the VLM") if not config.freeze else (
        "cannot train the frozen VLM")
    say(f"recipe {config.recipe}, preset {config.preset}, device {config.device}, seed {config.seed} -> {out}")
    say(f"  losses: {'FAST + ' * config.fast_loss}{'text + ' * (config.vlm_samples > 0)}"
        f"{f'{config.alpha:g} x flow' * config.flow_loss}".rstrip(" +")
        + (f"; the flow gradient {stop}" if config.flow_loss else ""))
    say(f"  data: {config.episodes} demonstrations of {len(world.KINDS[config.kinds])} kinds of object -> "
        f"{len(data.tables)} samples (planning moments of those that succeeded)")
    say(f"  {config.steps} steps of {config.batch} robot + {config.vlm_samples} question samples: "
        f"{seen:.1f} passes over the demonstrations")
    say(f"  a chunk of {data.chunks[0].size} numbers is {data.tokens_per_chunk:.1f} FAST tokens "
        f"(at most {data.answers.shape[1] - 1}), gamma {config.gamma:g}, {data.fast.vocab} tokens in all")
    say(f"  parameters: VLM {count['VLM']:,}, expert {count['expert']:,}")
    say(f"  the VLM before training answers on picture-book pages {vqa_before['book']}, "
        f"on robot pictures {vqa_before['robot']}")


# -- files --------------------------------------------------------------------------------------------


def open_folder(config):
    """The run's folder, made if need be. Never one that holds another run, without --overwrite."""
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
        if not (out / "checkpoint.pt").exists():
            raise FileNotFoundError(f"{out} holds no checkpoint.pt to resume from; start it without --resume")
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


def read_metrics(path):
    """All whole lines of a metrics.jsonl; a torn last line is left out."""
    lines = []
    for line in Path(path).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def open_metrics(path, step):
    """Append to metrics.jsonl; lines after `step` (of a run that went on past its checkpoint) go."""
    kept = [m for m in read_metrics(path) if m["step"] <= step] if step and path.exists() else []
    with open(f"{path}.part", "w") as f:
        f.writelines(json.dumps(m) + "\n" for m in kept)
    os.replace(f"{path}.part", path)
    return open(path, "a")


def save_checkpoint(path, config, data, model, groups, noise, step, seconds, vqa_before):
    """Everything that the next step depends on, to a temporary name, then renamed."""
    torch.save({"format": FORMAT, "config": asdict(config), "fast": data.fast.state(), "step": step,
                "seconds": seconds, "vqa_before": vqa_before, "model": model.state_dict(),
                "optimisers": [o.state_dict() for o in groups], "noise": noise.get_state(),
                "data": json.dumps(data.rng.bit_generator.state)}, f"{path}.part")
    os.replace(f"{path}.part", path)


def load_checkpoint(path):
    """A stored run, checked; its "config" is a Config again. ValueError says what is wrong with it."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}; train a run first: python -m nano_ki.train")
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
        if saved["format"] != FORMAT:
            raise ValueError(f"its format is {saved['format']!r}")
        saved["config"] = Config(**saved["config"])
        saved["fast"] = FAST.from_state(saved["fast"])
    except Exception as error:         # torch raises many kinds for a damaged or foreign file
        raise ValueError(f"{path} is not a whole {FORMAT!r} checkpoint ({type(error).__name__}: "
                         f"{first_line(error)}); train again, with --overwrite for the same folder"
                         ) from None
    return saved


def restore(saved, model, groups, noise, data):
    """Put everything back where save_checkpoint found it. Returns (step, seconds)."""
    model.load_state_dict(saved["model"])
    for optimiser, state in zip(groups, saved["optimisers"], strict=True):
        optimiser.load_state_dict(state)
    noise.set_state(saved["noise"])
    data.rng.bit_generator.state = json.loads(saved["data"])
    return saved["step"], saved["seconds"]


def load_model(folder, device=None):
    """The finished policy of a run's folder, on `device` (default: cpu), ready to act."""
    saved = load_checkpoint(Path(folder) / "checkpoint.pt")
    model = VLA(saved["config"], saved["fast"])
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError as error:
        raise ValueError(f"{folder}/checkpoint.pt does not fit its own configuration: "
                         f"{str(error).splitlines()[-1].strip()}; train it again") from None
    return model.to(device or "cpu").eval()


def draw_curves(out):
    """curves.png from metrics.jsonl."""
    lines = read_metrics(out / "metrics.jsonl")
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


def named(losses):
    return {k: round(v.item(), 5) for k, v in losses.items()}


def main():
    config = configuration.parse(description=__doc__.split("\n")[0])
    pressed = []
    signal.signal(signal.SIGINT, lambda *_: (pressed.append(1), len(pressed) > 1 and sys.exit(130)))
    try:
        train(config, stop=lambda step: bool(pressed))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
