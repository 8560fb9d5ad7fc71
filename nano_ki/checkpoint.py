"""Nothing is lost: the file of a VLM, the folder of a run, checkpoints that are checked, metrics that only grow.

The step number seeds batches and noise, so a run that was stopped and goes on has the same bits as one that was not.
"""
import json
import os
import sys
import time
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch

from nano_ki import language, program
from nano_ki.config import Config, check, refuse
from nano_ki.decoder import VLM
from nano_ki.fast import FAST
from nano_ki.model import VLA

FORMAT, VLM_FORMAT = "nano_ki run 3", "nano_ki VLM 1"
LATEST, BEFORE = "checkpoint.pt", "checkpoint-before.pt"
TOKENIZED = ("rate", "gamma", "fast_vocab", "tokens")        # what a tokenizer is fitted to
CLAIM = "running.json"                        # in the folder of a run while a process works in it
FILES = (LATEST, BEFORE, "config.json", "metrics.jsonl", "rollouts.gif", "summary.json")

@contextmanager
def stored(path, form, advice=""):
    """The content of a file that torch.save wrote, for a block that uses it. ValueError if the block fails, if the
    file has another format than `form`, or if a byte of it is damaged (it has checksums)."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        refuse(damaged, f"the checksum of {damaged} is wrong")
        content = torch.load(path, weights_only=True, map_location="cpu")
        refuse(content["format"] != form, f"its format is {content['format']!r}")
        yield content
    except FileNotFoundError:
        raise
    except Exception as error:         # torch raises many kinds for a damaged or foreign file
        reason = f"{type(error).__name__}: {program.first_line(error)}"
        raise ValueError(f"{path} is not a whole {form!r} file ({reason}){advice}") from None

def check_memory(build):
    """MemoryError if the module that build() makes, with its gradients and optimisers, is too large for this machine."""
    with torch.device("meta"):                   # (its weights are counted, not made)
        needed, here = 16e-9 * sum(p.numel() for p in build().parameters()), program.machine_gb()
    if needed > here:
        raise MemoryError(f"weights, gradients and optimisers need {needed:.0f} GB, this machine has {here:.0f}")

def new_vlm(config, fast_vocab=0):
    """An untrained VLM of the sizes in config, with room for so many FAST tokens."""
    return VLM(config.vlm_width, config.vit_depth, config.depth, config.image, language.FIRST_FAST + fast_vocab, language.SLOTS, language.ANSWER)

def sizes(config, *more):                     # (that a stored VLM must share)
    return {name: getattr(config, name) for name in ("vlm_width", "vit_depth", "depth", "image", *more)}

def find(path):
    """A path as given, or inside the project if it is relative and not found from here."""
    path = Path(path)
    return path if path.exists() or path.is_absolute() else program.ROOT / path

def save_vlm(vlm, path, config, fast=None, **made):
    """Write a VLM, and beside it, in path.json, how it was made. fast: its tokenizer, which makes it a generalist."""
    content = {"format": VLM_FORMAT, "sizes": sizes(config, *TOKENIZED * bool(fast)), "words": list(language.WORDS),
               "weights": vlm.state_dict(), "fast": fast and fast.state()}
    return ship(content, path, **made)

def ship(content, path, **made):
    """Write a file, and beside it, in path.json, how it was made. Returns that."""
    program.write_whole(path, lambda f: torch.save(content, f))
    made |= {"commit": program.commit(), "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}
    program.write_json(f"{path}.json", made)
    return made

def begin(path, config):
    """What a run can start from: (weights of a VLM, its tokenizer or None). path: a file of `save_vlm`, the folder of a finished
    run, or the file of a policy that ships. ValueError if it does not fit config, FileNotFoundError if it is gone."""
    path, saved = find(path), None
    if path.exists():
        with suppress(*[ValueError] * path.is_file()):               # (a file may be a policy, or a VLM)
            saved = load(path)
    if saved:
        refuse(saved["step"] < saved["config"].steps, f"{path} is not finished; first: python -m nano_ki.train --resume --out {path}")
        weights = {name.removeprefix("vlm."): weight for name, weight in saved["model"].items() if name.startswith("vlm.")}
        found, fast = sizes(saved["config"], *TOKENIZED), saved["fast"]
    elif path.exists():
        with stored(path, VLM_FORMAT, f"; make it again ({path}.json says how)") as content:
            refuse(content["words"] != list(language.WORDS), "it knows other words than this code")
            weights, found, fast = content["weights"], content["sizes"], content.get("fast") and FAST.from_state(content["fast"])
    else:
        raise FileNotFoundError(f"no VLM at {path}; make it with: python -m nano_ki.pretrain --out {path} (a generalist: python -m nano_ki.train --recipe generalist --ship {path})")
    refuse(found != (own := sizes(config, *TOKENIZED * bool(fast))), f"{path} was made with {found}, this run has {own}; choose another --start")
    return weights, fast

def load_vlm(vlm, path, config):
    """Copy the VLM that `begin` finds into `vlm`, which may have more words and longer answers. Errors as there."""
    weights, own = begin(path, config)[0], vlm.state_dict()
    refuse(set(weights) != set(own) or any(len(weights[name]) > len(own[name]) for name in own), f"{path} holds other weights than this VLM; make it again")
    for name, weight in own.items():
        weight[:len(weights[name])] = weights[name]

def new_model(config, fast, pretrained=True, policy=VLA):
    """A fresh policy on config.device. Its VLM is the one that config.start names, if any."""
    model = policy(config, fast)
    if config.start and pretrained:
        load_vlm(model.vlm, config.start, config)
    return model.to(config.device)

def open_folder(config):
    """The run's folder, made if need be. It never holds another run, except with --overwrite or --resume."""
    try:
        if not config.out:
            for number in count(1):
                with suppress(FileExistsError):
                    out = Path("runs") / f"{config.recipe}-{number:03d}"
                    out.mkdir(parents=True)
                    return out
        out = Path(config.out)
        if config.resume and not there(out):
            raise FileNotFoundError(f"{out} holds no {LATEST} to resume from; start it without --resume")
        out.mkdir(parents=True, exist_ok=True)
        if set(os.listdir(out)) - {CLAIM} and not config.overwrite and not config.resume:
            raise FileExistsError(f"{out} is not empty; choose another --out, --overwrite its run, or --resume it")
        return out
    except OSError as error:
        if error.errno is None:              # (raised above, and says what to do)
            raise
        raise OSError(f"cannot use that folder for the run ({error}); choose another --out") from None

def there(folder):
    """Whether a folder holds a checkpoint (whole or not)."""
    return any((Path(folder) / name).exists() for name in (LATEST, BEFORE))

def clear(folder):
    """Delete the files of the run that a folder holds, and nothing else."""
    for name in FILES:
        (Path(folder) / name).unlink(missing_ok=True)

def save(folder, config, fast, weights, optimisers, step, seconds, vqa_before):
    """Write everything that the next step depends on. The last checkpoint becomes the one before."""
    versions = {"python": sys.version.split()[0], "torch": str(torch.__version__), "numpy": np.__version__}
    content = {"format": FORMAT, "config": asdict(config), "fast": fast.state(), "step": step, "seconds": seconds,
               "vqa_before": vqa_before, "model": weights, "optimisers": optimisers, "versions": versions}
    latest, new = Path(folder) / LATEST, Path(folder) / f"{LATEST}.new"
    program.write_whole(new, lambda f: torch.save(content, f))
    if latest.exists():
        os.replace(latest, Path(folder) / BEFORE)     # (killed between the two: load finds the one before)
    os.replace(new, latest)

def load(folder, say=print):
    """The last checkpoint in a run's folder (see `read`). If it is damaged or gone: the one before, and a warning.
    FileNotFoundError if there is none, ValueError if none is whole. folder: or the file of a policy that ships."""
    if Path(folder).is_file():
        return read(folder)
    errors = []
    for path in (Path(folder) / LATEST, Path(folder) / BEFORE):
        try:
            saved = read(path)
        except (FileNotFoundError, ValueError) as error:
            errors.append(error)
            continue
        if errors:
            say(f"warning: {errors[0]}\nwarning: using the checkpoint before, {path}, of step {saved['step']}")
        return saved
    error = next((error for error in errors if isinstance(error, ValueError)), errors[0])
    raise type(error)(f"{error}; train a run first: python -m nano_ki.train (--overwrite for the same folder)")

def read(path):
    """The content of one checkpoint, checked. Its "config" is a Config again, its "fast" a FAST."""
    with stored(path, FORMAT) as saved:
        refuse(set(saved["config"]) != set(vars(Config())), "its settings are not those of this version")
        saved["config"] = check(Config(**saved["config"]))
        saved["fast"] = FAST.from_state(saved["fast"])
        saved["seconds"] = float(saved["seconds"])
        step, dicts = saved["step"], [*saved["optimisers"], saved["vqa_before"]]
        refuse(type(step) is not int or not 0 <= step <= saved["config"].steps, f"its step is {step!r}")
        refuse(not all(isinstance(v, torch.Tensor) for v in saved["model"].values()), "a weight is not a tensor")
        refuse(not all(isinstance(d, dict) for d in dicts), "its optimisers or scores are not dicts")
        return saved

def load_model(folder, device=None):
    """The finished policy of a run's folder, on `device` (default: cpu), ready to act."""
    saved = load(folder, lambda text: print(text, file=sys.stderr))
    model = VLA(replace(saved["config"], device=device or "cpu"), saved["fast"])
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError as error:
        raise ValueError(f"{folder}/{LATEST} does not fit its settings ({program.first_line(error)}); retrain") from None
    return model.to(model.config.device).eval()

def read_metrics(path):
    """The lines of a metrics.jsonl as dicts, but no torn ones, nor those that a run replaced when it "resumed"."""
    lines = []
    for text in Path(path).read_bytes().decode(errors="replace").splitlines():
        with suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and "resumed" in line:
                lines = [m for m in lines if m.get("step", 0) <= line["resumed"]]
            elif isinstance(line, dict):
                lines.append(line)
    return lines

def add_metrics(path, line):
    """Append a line to a metrics.jsonl. A line before it that a crash has torn is ended first."""
    try:
        with open(path, "a+b", buffering=0) as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 1))
            torn = f.read(1) not in (b"", b"\n")
            f.write(b"\n" * torn + json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise OSError(f"cannot write {path} ({error}); free some space") from None
