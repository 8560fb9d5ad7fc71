"""Half an hour of training, watched from outside: does memory grow, does anything leak?

    python -m tests.soak [--minutes 30] [flags of nano_ki.train]

Short checks, checkpoints and a worker process keep every part of the loop busy. Linux only (/proc). Fails
if memory (of all processes together) grows by more than 2 % after a warm-up of a fifth of the time, or if
more files are open, more processes run or more lies in /dev/shm at the end than after the warm-up.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def family(pid):
    """The process and its children, and theirs."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += family(int(child))
    return found


def look(pid):
    """{"mib", "files", "processes", "shared"}: what the job holds now. mib counts what its processes share once (PSS), and
    no mapped files: how much of a library is ours depends on what else runs on the machine."""
    kb = files = 0
    pids = family(pid)
    for p in pids:
        kb += sum(int(line.split()[1]) for line in Path(f"/proc/{p}/smaps_rollup").read_text().splitlines()
                  if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
        files += len(os.listdir(f"/proc/{p}/fd"))
    return {"mib": kb / 1024, "files": files, "processes": len(pids), "shared": len(os.listdir("/dev/shm"))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    args, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            [sys.executable, "-m", "nano_ki.train", "--steps", "1000000", "--workers", "1", "--check-every", "100",
             "--save-every", "50", *flags, "--out", f"{folder}/run"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seen, start = [], time.time()
        while time.time() - start < 60 * args.minutes and child.poll() is None:
            time.sleep(5)
            try:
                seen.append({"second": round(time.time() - start), **look(child.pid)})
            except (FileNotFoundError, ProcessLookupError):        # (something ended while we looked)
                continue
        alive, pids = child.poll() is None, family(child.pid) if child.poll() is None else []
        child.send_signal(signal.SIGTERM)
        child.wait(60)
        time.sleep(6)
        left = [p for p in pids if Path(f"/proc/{p}").exists()]
    warm = [m for m in seen if m["second"] > 12 * args.minutes]
    third = len(warm) // 3
    first, last = warm[:third], warm[-third:]
    # A leak lifts the floor. (How often a look falls on a peak depends on what else the machine does.)
    mib = [float(np.quantile([m["mib"] for m in part], .1)) for part in (first, last)]
    middle = [round(float(np.median([m["mib"] for m in part])), 1) for part in (first, last)]
    result = {"minutes": args.minutes, "samples": len(seen), "mib_after_warm_up": round(mib[0], 1), "mib_at_end": round(mib[1], 1),
              "growth": round(mib[1] / mib[0] - 1, 4), "medians": middle, "left_behind": len(left)}
    for key in ("files", "processes", "shared"):
        result[key] = [int(np.median([m[key] for m in part])) for part in (first, last)]
    print(json.dumps(result))
    grown = [k for k in ("files", "processes", "shared") if result[k][1] > result[k][0]]
    if not alive or left or grown or result["growth"] > .02:
        sys.exit(f"failed: {'the job ended' if not alive else left or grown or 'memory grows'}")


if __name__ == "__main__":
    main()
