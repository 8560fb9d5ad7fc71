"""The tables of tutorials/11_scaling.md: what this machine measured, and what a large job would need.

    python -m tutorials.studies.scaling --measure     # measures (a few minutes, two cores), then writes the tables
    python -m tutorials.studies.scaling               # writes them from tutorials/results/bench.json and the formulas
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from nano_ki import checkpoint, program
from tutorials.studies import bench
from tutorials.studies.claims import write_between

RESULTS = Path(__file__).parent.parent / "results" / "bench.json"
PAGE = Path(__file__).parent.parent / "11_scaling.md"
WAYS = {        # name: (how it is started, flags)
    "one process, one thread": (["-m", "nano_ki.train"], ["--shards", "2"], 1),
    "one process, two threads": (["-m", "nano_ki.train"], ["--shards", "2"], 2),
    "two processes of one thread, DDP": (["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "nano_ki.train"], [], 1),
    "the same, FSDP2": (["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "nano_ki.train"], ["--fsdp"], 1),
}
STEPS = 61


def step_ms(start, flags, threads):
    """Milliseconds a step of the default run, started in this way."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *start, "--steps", str(STEPS), "--check-every", "0", "--scenes", "2",
                   "--threads", str(threads), *flags]
        subprocess.run([*command, "--out", f"{folder}/run"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        lines = [m for m in checkpoint.read_metrics(Path(folder) / "run" / "metrics.jsonl") if "ce" in m]
    first, last = lines[0], lines[2]
    return 1000 * (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])


def tables(result):
    """{name of a place in the page: Markdown}."""
    ways = ["| started as | ms a step |", "|---|---|", *(f"| {name} | {ms:.0f} |" for name, ms in result["ways"].items())]
    one = result["bench"]
    return {"bench": f"{one['device']}, {one['cores']} cores, torch {one['torch']}, preset {one['preset']}:\n\n"
            + bench.table(one), "ways": "\n".join(ways), "plan": bench.plan_table()}


def main():
    if "--measure" in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-m", "tutorials.studies.bench", "--save", f"{folder}/b.json"], check=True)
            measured = json.loads(Path(f"{folder}/b.json").read_text())
        ways = {name: round(step_ms(*way), 1) for name, way in WAYS.items()}
        program.write_json(RESULTS, {"bench": measured, "ways": ways})
    for name, text in tables(json.loads(RESULTS.read_text())).items():
        write_between(PAGE, name, text)


if __name__ == "__main__":
    program.run(main)
