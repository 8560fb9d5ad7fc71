"""Arms x seeds -> one table. Each arm is a training run with a few flags changed; all else is equal.

Every arm sees the same demonstrations (of its seed) and is tested in the same scenes. Finished runs are
appended to a jsonl, so a comparison that was stopped goes on where it was. The tables in README.md are
written from that file, by the same command.

Try it: python -m nano_ki.compare --arms ki pi0 --seeds 0 --steps 300
The tables alone, from the shipped results: python -m nano_ki.compare --tables
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nano_ki.checkpoint import read_metrics
from nano_ki.evaluate import wilson
from nano_ki.pretrain import ROOT
from nano_ki.world import TEST_SETS

RESULTS = ROOT / "tutorials" / "results" / "arms.jsonl"
ARMS = {
    # name: (flags of nano_ki.train, what it is)
    "ki": ([], "knowledge insulation"),
    "joint": (["--recipe", "joint"], "the same without the stop-gradient"),
    "pi0": (["--recipe", "pi0"], "flow loss only, through the VLM"),
    "frozen": (["--recipe", "frozen"], "expert on the untouched VLM"),
    "pi0_fast": (["--recipe", "pi0_fast"], "FAST tokens only, acting token by token"),
    "reference": (["--kinds", "all"], "ki, demonstrations of all 48 kinds"),
    "blind": (["--recipe", "frozen", "--blind"], "frozen, and not told the object and the goal"),
}


def run(arm, seed, flags, results, threads):
    """Train and evaluate one arm in a process of its own; append its summary to `results`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "nano_ki.train", *ARMS[arm][0], *flags, "--seed", str(seed)]
        done = subprocess.run([*command, "--out", str(out)], cwd=ROOT, text=True, capture_output=True,
                              env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        if done.returncode:
            print(f"{arm} seed {seed} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
            return
        line = {"arm": arm, "flags": flags, "command": " ".join(["python", *command[1:]]), "threads": threads,
                **json.loads((out / "summary.json").read_text())}
    with open(results, "a") as f:
        f.write(json.dumps(line) + "\n")
    print(f"{arm} seed {seed}: " + "  ".join(f"{k} {v['rate']:.2f}" for k, v in line["success"].items()),
          flush=True)


def pooled(lines, key, name):
    """One rate over all seeds, as text with its 95 % Wilson interval."""
    hits = sum(round(m[key][name]["rate"] * m[key][name]["n"]) for m in lines)
    r = wilson(hits, sum(m[key][name]["n"] for m in lines))
    return f"{r['rate']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"


def tables(lines):
    """Markdown: success per test set, and right puck and VQA, one row an arm."""
    arms = [a for a in ARMS if any(m["arm"] == a for m in lines)]
    out = ["| arm | seeds | " + " | ".join(TEST_SETS).replace("_", " ") + " |", "|---" * 6 + "|"]
    for arm in arms:
        mine = [m for m in lines if m["arm"] == arm]
        out.append(f"| **{arm}**: {ARMS[arm][1]} | {len(mine)} | "
                   + " | ".join(pooled(mine, "success", s) for s in TEST_SETS) + " |")
    out += ["", "| arm | right puck moved most: seen / new both | VQA book: where / colour / shape "
            "| VQA robot pictures |", "|---" * 4 + "|"]

    def answers(mine, key):
        return " / ".join(f"{sum(m[key][k] for m in mine) / len(mine):.2f}" for k in ("where", "colour", "shape"))
    before = lines[:1]
    if before:
        out.append(f"| the VLM before training | | {answers(before, 'vqa_before')} | "
                   f"{answers(before, 'vqa_before_robot')} |")
    for arm in arms:
        mine = [m for m in lines if m["arm"] == arm]
        out.append(f"| **{arm}** | {pooled(mine, 'right_puck', 'seen')} / {pooled(mine, 'right_puck', 'new_both')} | "
                   f"{answers(mine, 'vqa_after')} | {answers(mine, 'vqa_after_robot')} |")
    return "\n".join(out)


def write_between(path, name, text):
    """Replace what stands between <!-- name --> and <!-- /name --> in a Markdown file."""
    old = path.read_text()
    head, rest = old.split(f"<!-- {name} -->\n")
    tail = rest.split(f"<!-- /{name} -->")[1]
    Path(f"{path}.part").write_text(f"{head}<!-- {name} -->\n{text}\n<!-- /{name} -->{tail}")
    os.replace(f"{path}.part", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", default=str(RESULTS), help="jsonl to append to")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, sharing the cores")
    parser.add_argument("--threads", type=int, help="threads of each run (default: cores / jobs)")
    parser.add_argument("--tables", action="store_true", help="write README's tables from the results; train nothing")
    args, flags = parser.parse_known_args()         # the rest goes to nano_ki.train
    results = Path(args.results)
    results.parent.mkdir(parents=True, exist_ok=True)
    lines = read_metrics(results) if results.exists() else []
    if not args.tables:
        done = {(m["arm"], m["seed"], *m["flags"]) for m in lines}
        todo = [(a, s) for s in args.seeds for a in args.arms if (a, s, *flags) not in done]
        print(f"{len(todo)} runs to do, {args.jobs} at a time")
        threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda job: run(*job, flags, results, threads), todo))
        lines = read_metrics(results)
    plain = [m for m in lines if not m["flags"]]
    if results == RESULTS:
        write_between(ROOT / "README.md", "arms", tables(plain))
    print(tables(lines))


if __name__ == "__main__":
    main()
