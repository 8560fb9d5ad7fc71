"""Arms x seeds -> runs that can be compared. Each arm is a training run with a few flags changed; all else is equal.

Every arm gets the same demonstrations (of its seed), steps and test scenes, so that differences are paired. A
finished run is one line of a jsonl; a comparison that was killed goes on where it was, inside a run too. What the
numbers say: tutorials/results/README.md.

    python -m tutorials.studies.compare --quick                                  # 3 arms x 1 seed, a quarter of an hour
    python -m tutorials.studies.compare --arms ki joint --sweep alpha=.1,1,10    # a dial, turned for two arms
    python -m tutorials.studies.compare --search                                 # the same grid of VLM rates for each arm

Flags that it does not know go to nano_ki.train.          Read next: claims.py
"""
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np

from nano_ki import checkpoint, play, program
from nano_ki import config as configuration
from nano_ki.config import Config
from nano_ki.program import ROOT

RESULTS = ROOT / "tutorials" / "results"
STAGE_ONE = ["--start", "GENERALIST"]          # the comparison's own generalist of the same seed, which is trained first
ARMS = {
    # name: (flags of nano_ki.train, what it is)
    "ki": ([], "knowledge insulation"),
    "joint": (["--recipe", "joint"], "the same without the stop-gradient"),
    "ki_no_vlm": (["--vlm-samples", "0"], "ki without VLM data"),
    "joint_no_vlm": (["--recipe", "joint", "--vlm-samples", "0"], "joint without VLM data"),
    "pi0": (["--recipe", "pi0"], "flow loss only, through the VLM"),
    "pi0_vlm": (["--recipe", "joint", "--no-fast-loss", "--no-subtask"], "flow through the VLM and VLM data, no FAST"),
    "ki_no_fast": (["--no-fast-loss", "--no-subtask"], "flow with stop-gradient and VLM data, no FAST"),
    "ki_no_subtask": (["--no-subtask"], "ki that does not say first where the finger lands"),
    "pi0_fast": (["--recipe", "pi0_fast"], "FAST tokens only, acting token by token"),
    "frozen": (["--recipe", "frozen"], "expert on the untouched VLM: flow only with stop-gradient"),
    "generalist": (["--recipe", "generalist"], "FAST and text, no expert: acting token by token"),
    "post": (["--recipe", "post", *STAGE_ONE], "a generalist, then flow only on three kinds, with the stop-gradient"),
    "post_through": (["--recipe", "post", "--no-insulate", *STAGE_ONE], "the same without the stop-gradient"),
    "post_tenth": (["--recipe", "post", "--no-insulate", "--threads", "1", *STAGE_ONE],
                   "the same, a tenth of the flow gradient let through"),
    "post_late": (["--recipe", "post", "--no-insulate", "--threads", "1", *STAGE_ONE],
                  "the same, stopped for half of the steps, then let through"),
    "post_held": (["--recipe", "post", "--no-insulate", "--threads", "1", *STAGE_ONE], "let through, features held to a frozen copy's"),
    "two_stage": (STAGE_ONE, "FAST and text first, then a fresh expert: ki from a generalist"),
    "two_stage_joint": (["--recipe", "joint", *STAGE_ONE], "the same, not insulated"),
    "binned": (["--tokens", "binned"], "ki with one token for each number in place of FAST"),
    "leak": ([], "ki whose expert sees the FAST tokens in training (a mistake)"),
    "reference": (["--kinds", "all", "--no-holes"], "ki, demonstrations of all 48 kinds, nothing left out"),
    "blind": (["--recipe", "frozen", "--blind"], "frozen, and not told the object and the goal"),
}
# All but those that post-train: two hundred steps more than the default run (on a laptop), for the arms that learn slowly.
ARMS |= {arm: (["--steps", "800", *flags], what) for arm, (flags, what) in ARMS.items() if not arm.startswith(("generalist", "post"))}
PROGRAMS = {"leak": "tutorials.studies.leak"}   # what trains an arm, if not the next
PROGRAMS |= {f"post_{way}": f"tutorials.studies.between {way}" for way in ("tenth", "late", "held")}
TRAIN = "tutorials.studies.watched"            # nano_ki.train that measures gradients on the way
STAGES = ("The world and its demonstrations", "The model", "The machine", "Studies: what only comparisons change")   # flags of both stages
OWN = {"seed", "out", "resume", "overwrite"}   # settings that a comparison sets itself
CHILDREN = []                                  # all processes that were started
QUICK = ("ki", "pi0", "frozen")                # for --quick: a quarter of an hour on two slow cores
GRID = (.003, .01)                             # VLM rates (Muon and AdamW alike) of --search
# ki, with something changed.
SAME_RATE = dict.fromkeys(("reference", "joint", "ki_no_subtask", "ki_no_vlm", "joint_no_vlm",
                           "ki_no_fast", "pi0_vlm", "binned", "two_stage", "two_stage_joint"), "ki")
TIE = .02                                      # of mean success in a search: twice its standard error, about
SEARCH_SEED = 100                              # of its demonstrations; its scenes are not the test's either
CHECK_EVERY = 100                              # steps between points of a curve
SHOWN = 4                                      # runs side by side in the report
TIMED = 40                                     # steps that tell how long a step takes, for --budget


# -- running ------------------------------------------------------------------------------------------


def folder_of(arm, seed, flags, root):
    """Where a run lives until it is finished, and after: one folder for each arm, seed and set of flags."""
    return Path(root) / "_".join([arm, f"seed{seed}", *(f.lstrip("-") for f in flags)]).replace("/", "-")


def stage_one(flags):
    """Flags of the generalist on which a run with these flags begins: the same world, sizes and machine. Losses, steps and the
    kinds that are shown are those of stage two alone."""
    kept, keep = [], False
    for word in flags:
        if word.startswith("--"):
            name = word[2:].split("=")[0].replace("-", "_")
            name = name if name in configuration.HEADINGS else name.removeprefix("no_")
            keep = configuration.HEADINGS.get(name) in STAGES and name not in ("kinds", "start")
        kept += [word] * keep
    return [*chosen(lines_of(RESULTS / "rates.jsonl"), "generalist"), "--check-every", str(CHECK_EVERY), *kept]


def run(arm, seed, flags, results, root, threads):
    """Train and evaluate one arm in processes of its own; append a line to `results`. Returns whether it worked."""
    out = folder_of(arm, seed, flags, root)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}         # (and so --threads is at most that)

    def call(*words):
        child = subprocess.Popen([sys.executable, "-m", *words], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, env=environment, start_new_session=True)     # (signals come from here)
        CHILDREN.append(child)
        said = child.communicate()[1]
        if child.returncode:
            print(f"{arm} seed {seed} failed:\n{said[-2000:]}", file=sys.stderr, flush=True)
        return not child.returncode
    first = os.path.relpath(folder_of("generalist", seed, stage_one(flags), root), ROOT)
    command = [first if flag == "GENERALIST" else flag for flag in ARMS[arm][0]] + [*flags, "--seed", str(seed)]
    if not (out / "summary.json").exists():
        begun = checkpoint.there(out) and "between" not in PROGRAMS.get(arm, "")         # (those cannot go on, and begin again)
        worked = call(*PROGRAMS.get(arm, TRAIN).split(), *(["--resume"] if begun else [*command, "--overwrite"]), "--out", str(out))
        if not worked or not (out / "summary.json").exists():           # (stopped: it is saved)
            return False
    searching = "--validate" in flags
    if not searching and not (out / "more.json").exists() and not call("tutorials.studies.more", str(out)):
        return False
    checks = [{k: v for k, v in m.items() if k in ("step", "seconds", "success", "vqa", "pull")}
              for m in checkpoint.read_metrics(out / "metrics.jsonl") if "success" in m]
    line, more = read_json(out / "summary.json"), {} if searching else read_json(out / "more.json")
    for key in ("success", "right_puck"):
        more[key] = {**line[key], **more.get(key, {})}
    line = {"arm": arm, "flags": flags,
            "command": " ".join([f"python -m {PROGRAMS.get(arm, 'nano_ki.train')}", *command]), "threads": threads,
            **line, **more, "checks": checks}
    checkpoint.add_metrics(results, line)
    print(f"{arm} seed {seed} {' '.join(flags)}: "
          + "  ".join(f"{k} {v['rate']:.2f}" for k, v in line["success"].items()), flush=True)
    return True


def run_all(jobs, results, root, at_once, threads):
    """Run (arm, seed, flags) jobs, `at_once` together, those that `results` holds already left out.
    Returns the number that failed."""
    done = {(m["arm"], m["seed"], *m["flags"]) for m in lines_of(results) if {"arm", "seed", "flags"} <= set(m)}
    todo = [job for job in jobs if (job[0], job[1], *job[2]) not in done]
    print(f"{len(todo)} runs to do, {at_once} at a time, {threads} threads each", flush=True)
    with program.claimed(f"{results}.running", f"the file {results}"), ThreadPoolExecutor(at_once) as pool:
        try:
            return list(pool.map(lambda job: run(*job, results, root, threads), todo)).count(False)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in CHILDREN:                                      # (each finishes its step and saves)
                child.terminate()
            print("stopping; the same command goes on", file=sys.stderr)
            raise


def side_by_side(runs, path):
    """One web page of these runs, {name: folder}."""
    if runs:
        print(f"side by side: {play.report(runs, path)}")


def swept(text):
    """"alpha=.1,1,10" -> [["--alpha", ".1"], ...]. ValueError if there is no such setting."""
    name, equals, values = text.partition("=")
    if not equals or name.replace("-", "_") not in {f.name for f in fields(Config)} - OWN:
        raise ValueError(f"--sweep is {text!r}; wanted SETTING=VALUE,VALUE... with a setting of nano_ki.train")
    if name.replace("-", "_") == "vlm_rate":                          # (both optimisers' rates go together)
        return [rate_flags(float(value)) for value in values.split(",")]
    return [[f"--{name.replace('_', '-')}", value] for value in values.split(",")]


def seconds_a_step(arm, flags, root, threads):
    """How long a training step of this arm takes: timed on a few, on this machine, as busy as it is."""
    lines = Path(root) / "timed.jsonl"
    lines.parent.mkdir(parents=True, exist_ok=True)
    short = [*flags, "--steps", str(TIMED), "--warmup", "10", "--check-every", "0", "--scenes", "10", "--episodes", "500"]
    if not run(arm, 0, short, lines, root, threads):
        raise ValueError(f"{arm} could not be timed")
    return lines_of(lines)[-1]["train_seconds"] / TIMED


# -- reading ------------------------------------------------------------------------------------------


def read_json(path):
    return json.loads(Path(path).read_text())


def lines_of(path):
    """The runs in a results file (none if it is not there)."""
    return checkpoint.read_metrics(path) if Path(path).exists() else []


def chosen(search, arm):
    """Flags with the VLM rate that was best for `arm` in the lines of a --search; [] if it was not searched. Best:
    success in validation scenes, mean over the test sets. What comes within TIE of it counts as equal: of equals, the
    lowest."""
    mine = {rate_of(m): np.mean([r["rate"] for r in m["success"].values()]) for m in search
            if m["arm"] == SAME_RATE.get(arm, arm)}
    if not mine:
        return []
    return rate_flags(min(rate for rate, success in mine.items() if success >= max(mine.values()) - TIE))


def rate_flags(rate):
    return ["--vlm-rate", f"{rate:g}", "--vlm-adam", f"{rate:g}"]


def rate_of(line):
    return float(line["flags"][line["flags"].index("--vlm-rate") + 1])


def scenes(line, key, name):
    """The outcome of each scene of a test set, bool [n]. key: "success" | "right_puck"."""
    r = line[key][name]
    return np.unpackbits(np.frombuffer(bytes.fromhex(r["scenes"]), np.uint8))[:r["n"]].astype(bool)


def outcomes(lines, key, names):
    """The outcomes of all seeds in one test set or several, one behind the other: [seeds, scenes]."""
    return np.stack([np.concatenate([scenes(m, key, name) for name in np.atleast_1d(names)]) for m in lines]).astype(float)


@cache
def drawn_again(n, resamples, seed):
    """How often each of n is drawn, in `resamples` samples of n."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)


def resampled(values, resamples=2000):
    """(mean, low, high) of [seeds, scenes]: 95 % bootstrap over seeds and over scenes."""
    seeds, scenes = (drawn_again(n, resamples, axis) for axis, n in enumerate(values.shape))
    means = ((seeds @ values) * scenes).sum(1) / values.size
    return float(values.mean()), *(float(q) for q in np.percentile(means, (2.5, 97.5)))


def difference(ours, theirs, key, names, resamples=2000):
    """`resampled` differences, paired by seed and by scene. None if the two have no seed in common."""
    both = sorted({m["seed"] for m in ours} & {m["seed"] for m in theirs})
    if not both:
        return None
    a, b = (outcomes([next(m for m in lines if m["seed"] == s) for s in both], key, names) for lines in (ours, theirs))
    return resampled(a - b, resamples)


def config_of(line):
    """The Config that a run had: its arm's flags, and what was changed."""
    return configuration.parse([*ARMS[line["arm"]][0], *line["flags"], "--device", "cpu"])


def book(scores):
    """The mean of the three kinds of question about one page, in what evaluate.vqa returns."""
    return float(np.mean([scores[k] for k in ("where", "colour", "shape")]))


def first_at(points, level):
    """x where a curve [(x, rate)] first reaches `level`, by straight lines between its points; None if never."""
    x0, y0 = 0, 0
    for x, y in points:
        if y >= level:
            return x0 + (level - y0) / (y - y0) * (x - x0) if y > y0 else x
        x0, y0 = x, y
    return None


def curve(mine, name):
    """Success in the checks during training, and at the end: [(step, seconds, outcomes [seeds, scenes])]."""
    out = []
    for k in range(min(len(m["checks"]) for m in mine)):
        same = [m["checks"][k] for m in mine]
        out.append((same[0]["step"], np.mean([c["seconds"] for c in same]), outcomes(same, "success", name)))
    return [*out, (mine[0]["steps"], np.mean([m["train_seconds"] for m in mine]), outcomes(mine, "success", name))]


def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|",
                      *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def main():
    parser = program.parser(__doc__)
    parser.add_argument("--arms", "--recipes", nargs="+", default=list(ARMS), choices=list(ARMS), dest="arms")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help=f"{' '.join(QUICK)}, seed 0, into runs/quick.jsonl")
    parser.add_argument("--search", action="store_true", help="each arm at each VLM rate of one grid, in validation scenes")
    parser.add_argument("--sweep", help="SETTING=VALUE,VALUE...: all of these, for each arm")
    parser.add_argument("--budget", type=float, help="seconds of training for each run, instead of equal steps")
    parser.add_argument("--results", help="jsonl to append to (default: tutorials/results/arms.jsonl or rates.jsonl)")
    parser.add_argument("--folder", default="runs/compare", help="where the runs live")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, sharing the cores")
    parser.add_argument("--threads", type=int, help="threads of each run (default: cores / jobs)")
    args, flags = parser.parse_known_args()         # the rest goes to nano_ki.train
    if args.quick:
        args.arms, args.seeds = QUICK, [0]
    if given := sorted({f.split("=")[0] for f in flags} & {f"--{name}" for name in OWN}):
        raise ValueError(f"{given[0]} is set by the comparison; use --seeds, --folder")
    args.folder = Path(args.folder).resolve()
    if args.search:
        args.seeds, flags = [SEARCH_SEED], ["--validate", "--check-every", "0", *flags]
    else:
        flags = ["--check-every", str(CHECK_EVERY), *flags]
    results = Path(args.results or ("runs/quick.jsonl" if args.quick else
                                    RESULTS / ("rates.jsonl" if args.search else "arms.jsonl")))
    if not 1 <= args.jobs <= 64 or args.threads is not None and not 1 <= args.threads <= 1024:
        raise ValueError(f"--jobs is {args.jobs} and --threads {args.threads}; both must be 1 or more (--jobs: at most 64)")
    if args.budget is not None and not 0 < args.budget < 1e7:
        raise ValueError(f"--budget is {args.budget}; it must be above 0 and below 1e7 seconds")
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
    search = lines_of(RESULTS / "rates.jsonl")
    changes = swept(args.sweep) if args.sweep else [[]]
    ahead = [("generalist", seed, stage_one([*change, *flags])) for seed in args.seeds for change in changes
             if any("GENERALIST" in ARMS[arm][0] for arm in args.arms)]
    # One serves all that follows.
    ahead = [job for k, job in enumerate(ahead)
             if job not in ahead[:k] and not (folder_of(*job, args.folder) / "summary.json").exists()]
    failed = run_all(ahead, results, args.folder, args.jobs, threads) if ahead else 0
    jobs = []
    for seed in args.seeds:
        for arm in args.arms:
            rates = [chosen(search, arm)]
            if args.search:
                rates = [rate_flags(r) for r in (GRID if arm not in ("frozen", "blind") else GRID[:1])]
            for change in changes:
                for rate in rates:
                    mine = [*rate, *change, *flags]
                    larger = configuration.PRESETS[configuration.parse([*ARMS[arm][0], *mine]).preset].get("steps")
                    if larger and "--steps" in ARMS[arm][0]:            # (those of ARMS are the laptop's)
                        mine = ["--steps", str(larger), *mine]
                    if args.budget:
                        mine += ["--steps", str(int(args.budget / seconds_a_step(arm, mine, args.folder, threads)))]
                    jobs.append((arm, seed, mine))
    failed += run_all([job for job in jobs if job not in ahead], results, args.folder, args.jobs, threads)
    if not (failed or args.search or args.sweep):
        shown = {f"{job[0]}, seed {job[1]}": folder_of(*job, args.folder) for job in jobs if job[1] == args.seeds[0]}
        there = [(name, out) for name, out in shown.items() if out.exists()]
        side_by_side(dict(there[:SHOWN]), Path(args.folder) / "report.html")
    if failed:
        sys.exit(f"error: {failed} of {len(jobs)} runs failed (see above); the same command tries them again")


if __name__ == "__main__":
    program.run(main)
