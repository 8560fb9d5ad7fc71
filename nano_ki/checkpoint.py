"""Nothing is lost: the file of a VLM, the folder of a run, checkpoints that are checked, metrics that only grow.

The last two checkpoints of a run are kept; if the newer one is damaged, the older one is used. Batches and
noise are seeded by the step number, so weights, optimisers and that number are all that the next step depends
on: a run that was stopped and goes on has the same bits as one that was never stopped.

Read next: evaluate.py
"""
import json
import os
import platform
import sys
import zipfile
from contextlib import suppress
from dataclasses import asdict, fields, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch

from nano_ki import language
from nano_ki.config import Config, check
from nano_ki.decoder import VLM
from nano_ki.fast import FAST
from nano_ki.model import VLA
from nano_ki.program import ROOT, first_line, write_whole

FORMAT, VLM_FORMAT = "nano_ki run 2", "nano_ki VLM 1"
LATEST, BEFORE = "checkpoint.pt", "checkpoint-before.pt"
CLAIM = "running.json"                        # in the folder of a run while a process works in it
FILES = (LATEST, BEFORE, "config.json", "curves.png", "metrics.jsonl", "rollouts.gif", "summary.json")


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


def save_vlm(vlm, path, config):
    content = {"format": VLM_FORMAT, "sizes": sizes(config), "words": list(language.WORDS), "weights": vlm.state_dict()}
    write_whole(path, lambda f: torch.save(content, f))


def load_vlm(vlm, path, config):
    """Copy a stored VLM into `vlm` (rows for words only: FAST tokens are new). ValueError if it does not
    fit; FileNotFoundError with what to do if it is not there."""
    path = find(path)
    make = f"make it with: python -m nano_ki.pretrain --out {path}"
    if not path.exists():
        raise FileNotFoundError(f"no VLM at {path}; {make}")
    try:
        stored = torch.load(path, weights_only=True, map_location="cpu")
        if stored["format"] != VLM_FORMAT:
            raise ValueError(f"its format is {stored['format']!r}")
        weights = stored["weights"]
    except Exception as error:          # torch raises many kinds for a damaged or foreign file
        raise ValueError(f"{path} is not a whole {VLM_FORMAT!r} file ({type(error).__name__}: {first_line(error)}); "
                         f"{make.replace('it', 'it again', 1)}") from None
    if stored.get("sizes") != sizes(config):
        raise ValueError(f"{path} was made with {stored.get('sizes')}, this run has {sizes(config)}; choose another --vlm")
    if stored.get("words") != list(language.WORDS) or set(weights) != set(vlm.state_dict()):
        raise ValueError(f"{path} holds other words or weights than this code knows; {make}")
    with torch.no_grad():
        for name, p in vlm.state_dict().items():        # (there may be fewer words and answer positions)
            p[:len(weights[name])] = weights[name]


def new_model(config, fast, pretrained=True, policy=VLA):
    """A fresh policy on config.device, its VLM pre-trained if config.vlm names one."""
    model = policy(config, fast)
    if config.vlm and pretrained:
        load_vlm(model.vlm, config.vlm, config)
    return model.to(config.device)


def open_folder(config):
    """The run's folder, made if need be. Never one that holds another run, without --overwrite."""
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
        if out.exists() and not out.is_dir():
            raise FileExistsError(f"{out} is a file; --out names a folder")
        if out.is_dir() and set(os.listdir(out)) - {CLAIM} and not config.overwrite and not config.resume:
            raise FileExistsError(f"{out} is not empty; --overwrite replaces the run in it, --resume goes on with it, or "
                                  "choose another --out")
        out.mkdir(parents=True, exist_ok=True)
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
    """Write everything that the next step depends on; the last checkpoint becomes the one before."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    content = {"format": FORMAT, "config": asdict(config), "fast": fast.state(), "step": step, "seconds": seconds,
               "vqa_before": vqa_before, "model": weights, "optimisers": optimisers, "versions": versions}
    latest, new = Path(folder) / LATEST, Path(folder) / f"{LATEST}.new"
    write_whole(new, lambda f: torch.save(content, f))
    if latest.exists():
        os.replace(latest, Path(folder) / BEFORE)     # (killed between the two: load finds the one before)
    os.replace(new, latest)


def load(folder, say=print):
    """The last checkpoint in a run's folder, or, if that is damaged or missing, the one before (and say so).

    Its "config" is a Config again, its "fast" a FAST. FileNotFoundError if there is none, ValueError if none
    is whole.
    """
    trouble = []
    for name in (LATEST, BEFORE):
        path = Path(folder) / name
        try:
            saved = read(path)
        except FileNotFoundError:
            continue
        except ValueError as error:
            trouble.append(str(error))
            continue
        if trouble or name == BEFORE:
            say(f"warning: {trouble[0] if trouble else f'no {LATEST} in {folder}'}\n"
                f"warning: using the checkpoint before, {path}, of step {saved['step']}")
        return saved
    if trouble:
        raise ValueError(f"{trouble[-1]}; train again, with --overwrite for the same folder")
    raise FileNotFoundError(f"no checkpoint at {Path(folder) / LATEST}; train a run first: python -m nano_ki.train")


def read(path):
    """One checkpoint file, checked: every byte (the checksums of the zip archive), the format, the types."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"checksum of {damaged}")
        saved = torch.load(path, weights_only=True, map_location="cpu")
        if saved["format"] != FORMAT:
            raise ValueError(f"its format is {saved['format']!r}")
        if set(saved["config"]) != {field.name for field in fields(Config)}:
            raise ValueError("its settings are not those of this version")
        saved["config"] = Config(**saved["config"])
        check(saved["config"])
        saved["fast"] = FAST.from_state(saved["fast"])
        if not (type(saved["step"]) is int and 0 <= saved["step"] <= saved["config"].steps):
            raise ValueError(f"step {saved['step']!r}")
        if not all(isinstance(v, torch.Tensor) for v in saved["model"].values()):
            raise ValueError("its weights are not tensors")
        if not all(isinstance(o, dict) for o in [*saved["optimisers"], saved["vqa_before"]]):
            raise ValueError("its optimisers or scores are not dicts")
        saved["seconds"] = float(saved["seconds"])
        return saved
    except FileNotFoundError:
        raise
    except Exception as error:         # torch raises many kinds for a damaged or foreign file
        raise ValueError(f"{path} is not a whole {FORMAT!r} checkpoint ({type(error).__name__}: "
                         f"{first_line(error)})") from None


def load_model(folder, device=None):
    """The finished policy of a run's folder, on `device` (default: cpu), ready to act."""
    saved = load(folder, lambda text: print(text, file=sys.stderr))
    model = VLA(replace(saved["config"], device=device or "cpu"), saved["fast"])
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError as error:
        raise ValueError(f"{folder}/{LATEST} does not fit its own configuration ({first_line(error)}); train it again") from None
    return model.to(model.config.device).eval()


def read_metrics(path):
    """The lines of a metrics.jsonl as dicts. Torn lines are left out; so is what a run that went on from an
    earlier checkpoint ({"resumed": step}) has replaced."""
    lines = []
    for text in Path(path).read_bytes().decode(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if not isinstance(line, dict):
            continue
        if "resumed" in line:
            lines = [m for m in lines if m.get("step", 0) <= line["resumed"]]
        else:
            lines.append(line)
    return lines


class Metrics:
    """metrics.jsonl, append-only: one flushed line each. resumed: the step that this run goes on from."""

    def __init__(self, path, resumed=None):
        torn = path.exists() and path.stat().st_size and path.read_bytes()[-1:] != b"\n"
        self.path, self.file = path, open(path, "ab", buffering=0)
        if torn:
            self.file.write(b"\n")
        if resumed is not None:
            self.add({"resumed": resumed})

    def add(self, line):
        try:
            self.file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise OSError(f"cannot write {self.path} ({error}); free some space") from None
