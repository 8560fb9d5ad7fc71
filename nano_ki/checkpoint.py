"""Nothing is lost: files that are whole or not there, checkpoints that are checked, metrics that only grow.

A file is written under a temporary name, flushed to the disk and renamed: whoever kills the program, at
whatever moment, finds the old file or the new one. The last two checkpoints are kept; if the newer one is
damaged, the older one is used. Batches and noise are seeded by the step number, so weights, optimisers
and that number are all that the next step depends on: going on gives the same bits as never stopping.

Read next: train.py
"""
import errno
import json
import os
import platform
import sys
import zipfile
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch

from nano_ki.config import Config, check
from nano_ki.fast import FAST

FORMAT = "nano_ki run 2"
LATEST, BEFORE = "checkpoint.pt", "checkpoint-before.pt"


def write_whole(path, write):
    """write(file) into path.part, flush, rename to path. OSError says what to do when that cannot be done."""
    part = Path(f"{path}.part")
    try:
        with open(part, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:          # (torch says RuntimeError where a write fails)
        part.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__ or error
        hint = ("free some space" if getattr(cause, "errno", None) in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
                else "choose a folder that can be written to")
        raise OSError(f"cannot write {path} ({first_line(cause)}); {hint}, then go on with --resume --out "
                      f"{Path(path).parent}. What was written before is intact") from None


def write_json(path, data):
    write_whole(path, lambda f: f.write(json.dumps(data, indent=1).encode()))


def first_line(error):
    return (str(error).splitlines() or ["no message"])[0]


# -- checkpoints --------------------------------------------------------------------------------------


def save(folder, config, fast, weights, optimisers, step, seconds, vqa_before):
    """Everything that the next step depends on; the last checkpoint becomes the one before."""
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


# -- metrics ------------------------------------------------------------------------------------------


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
            raise OSError(f"cannot write {self.path} ({error}); free some space, then go on with --resume --out "
                          f"{self.path.parent}") from None


def memory_mib():
    """MiB of memory that this process holds now; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2 ** 20, 1)


def peak_memory_mib():
    """The most that it ever held."""
    import resource
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10))
