"""The project as a whole: imports, sockets, README's claims about itself."""
import ast
import inspect
import json
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, command

from nano_ki import config, train

CODE = sorted((ROOT / "nano_ki").glob("*.py"))


def test_imports_are_torch_numpy_tqdm_pillow_and_the_standard_library():
    found = set()
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            names = ([a.name for a in node.names] if isinstance(node, ast.Import) else
                     [node.module] if isinstance(node, ast.ImportFrom) else [])
            found |= {n.split(".")[0] for n in names}
    assert found - set(sys.stdlib_module_names) == {"torch", "numpy", "tqdm", "PIL", "nano_ki"}


def test_no_socket_is_opened():
    code = ("import socket\n"
            "def no(*a, **k): raise AssertionError('a socket was opened')\n"
            "socket.socket.connect = socket.socket.bind = no\n"
            "from nano_ki import config, train, evaluate, pretrain, probe\n"
            "from nano_ki.episodes import Data\n"
            "Data(config.make(device='cpu', episodes=50, start='')).batch()\n")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_every_file_demonstrates_itself(tmp_path):
    for name in ("world", "render", "language", "episodes", "vit", "decoder", "flow", "expert"):
        args = [str(tmp_path / f"{name}.png")] if name == "render" else []
        done = command(f"nano_ki.{name}", *args)
        assert done.returncode == 0 and done.stdout.strip(), (name, done.stderr)


def test_size():
    """The house stays small: the package (what one reads; its page in the browser apart), the idea in it, README, and the step that is the method."""
    lines = {p.stem: len(p.read_text().splitlines()) for p in CODE}
    assert sum(lines.values()) - lines["play"] <= 3000 and lines["play"] <= 345
    assert sum(lines[n] for n in ("vit", "decoder", "flow", "expert", "model")) <= 520
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
    step = inspect.getsource(train.train_step)
    assert len(step.splitlines()) <= 30 and re.search(r'\n +loss = losses\["ce"\] \+ config.alpha \* losses\["flow"\]  ', step)


def test_only_the_studies_heading_holds_what_studies_set():
    """A setting of a study stands under the last heading; the first one holds the method."""
    notes, heading = config.helps()
    order = list(dict.fromkeys(heading.values()))
    assert order[0] == "The method" and order[-1].startswith("Studies") and len(order) >= 6
    assert ({"insulate", "fast_loss", "flow_loss", "vlm_samples", "alpha", "flow_draws"}
            <= {f for f, h in heading.items() if h == "The method"})
    assert {f for f, h in heading.items() if h == order[-1]} == {"tokens", "blind", "validate"}
    said = command("nano_ki.train", "--help").stdout
    assert all(f"\n{h}:\n" in said for h in order)


def readme_commands():
    text = (ROOT / "README.md").read_text()
    return re.findall(r"^    (?:pip install .*&& )?(python -m [^#\n]+?)\s*(?:#.*)?$", text, re.M)


@pytest.mark.slow
def test_readmes_commands_run(tmp_path):
    """Each command, made small by flags behind it (the last one wins)."""
    small = {"nano_ki.train": "--steps 2 --episodes 60 --batch 8 --scenes 2 --check-every 0 --out {tmp}/run{i}",
             "nano_ki.pretrain": "--steps 2 --batch 4 --out {tmp}/vlm{i}.pt", "nano_ki.play": "--html {tmp}/report.html",
             "tutorials.studies.compare": "--arms frozen --steps 2 --episodes 60 --batch 8 --scenes 2 "
                                          "--results {tmp}/c{i}.jsonl --folder {tmp}/c{i}",
             "tutorials.studies.bench": "--episodes 60 --batch 8 --vlm-samples 4"}
    ran = set()
    for i, line in enumerate(readme_commands()):
        _, _, name, *words = shlex.split(line)
        # They have tests of their own.
        if name in ("pytest", "tutorials.studies.fast", "tutorials.lab_forgetting") or line == "python -m nano_ki.play":
            continue
        words = [str(tmp_path / "run0") if w == "runs/ki-001" else w for w in words]
        done = subprocess.run([sys.executable, "-m", name, *words, *small[name].format(tmp=tmp_path, i=i).split()], cwd=ROOT,
                              text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, (line, done.stderr[-2000:])
        ran.add(name)
    assert ran == set(small) and (tmp_path / "report.html").exists()


def test_read_next_goes_through_the_map_from_top_to_bottom_and_ends():
    order = re.findall(r"\(nano_ki/(\w+)\.py\)", (ROOT / "README.md").read_text().split("## Map")[1].split("## ")[0])
    way = ["world"]
    while found := re.search(r"Read next: (\w+)\.py", (ROOT / f"nano_ki/{way[-1]}.py").read_text()):
        assert order.index(found[1]) > order.index(way[-1]), f"{way[-1]}.py sends its reader back, to {found[1]}.py"
        way.append(found[1])
    assert way[-1] == order[-1] == "play" and {"vit", "decoder", "flow", "expert", "model", "train"} <= set(way)


def test_readme_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert link.startswith("https://arxiv.org/") or (ROOT / link).exists(), link


def test_shipped_vlm_has_its_provenance():
    made = json.loads((ROOT / "data" / "vlm.pt.json").read_text())
    assert made["command"].startswith("python -m nano_ki.pretrain") and made["seed"] == 0 and made["commit"]
    scores = dict(made["scores"]["book"])
    assert scores.pop("went") > .55 and min(scores.values()) >= .97          # ("went": .48 is the best guess from one page)
    assert (ROOT / "data" / "vlm.pt").stat().st_size <= 8e6


def test_shipped_vlm_knows_what_its_provenance_says():
    from nano_ki import checkpoint, evaluate
    c = config.make(device="cpu", preset="laptop")
    vlm = checkpoint.new_vlm(c)
    checkpoint.load_vlm(vlm, c.start, c)
    scores = evaluate.vqa(vlm, "book", 200, seed=5)
    assert scores.pop("went") > .5 and min(scores.values()) >= .95


def test_shipped_generalist_is_what_its_provenance_says():
    """It was made by one command, from the VLM that ships, and acts and answers as it did then."""
    from nano_ki import checkpoint, evaluate
    from nano_ki.model import VLA
    made = json.loads((ROOT / "data" / "generalist.pt.json").read_text())
    assert (made["command"] == "python -m nano_ki.train --recipe generalist --ship data/generalist.pt"
            and made["commit"] and made["recipe"] == "generalist")
    assert (ROOT / "data" / "generalist.pt").stat().st_size <= 3e6
    c = config.make(device="cpu", preset="laptop", recipe="generalist")
    model = VLA(c, checkpoint.begin("data/generalist.pt", c)[1])
    checkpoint.load_vlm(model.vlm, "data/generalist.pt", c)
    won, _ = evaluate.success(evaluate.policy_of(model), c, 60, ("seen",))
    assert made["success"]["seen"]["rate"] > .6 and abs(won["seen"]["rate"] - made["success"]["seen"]["rate"]) < .2
    book = evaluate.vqa(model.vlm, "book", 200)
    assert all(abs(book[k] - made["vqa_after"][k]) < .06 for k in ("where", "colour", "shape"))


def test_the_tables_of_the_scaling_page_are_measured_and_counted():
    from tutorials.studies import scaling
    page, result = scaling.PAGE.read_text(), json.loads(scaling.RESULTS.read_text())
    for name, text in scaling.tables(result).items():
        assert f"<!-- {name} -->\n{text}\n<!-- /{name} -->" in page, name
    assert set(result["ways"]) == set(scaling.WAYS)


def test_the_fast_study_is_the_page_of_its_lines():
    from tutorials.studies import fast_sweeps
    lines = [json.loads(line) for line in (ROOT / "tutorials/results/fast.jsonl").read_text().splitlines()]
    assert (ROOT / "tutorials/results/fast.md").read_text() == fast_sweeps.page(lines)
    for sweep, (values, _, _) in fast_sweeps.SWEEPS.items():
        assert [m["value"] for m in lines if m.get("sweep") == sweep] == list(values)
    assert all(m["saturated"] or m["rmse"] <= m["rmse_bound"] for m in lines[1:])


def test_numbers_in_prose_are_counted():
    from nano_ki import language, world
    from tutorials import check, run
    from tutorials.studies import bench
    millions = {}
    for preset in ("laptop", "gpu", "big"):
        c = config.make(device="cpu", preset=preset)
        p = bench.parameters(c, language.FIRST_FAST + c.fast_vocab, c.rate * world.STEPS * 3 + 3)
        millions[preset] = (p["vlm"] + p["vlm rest"]) / 1e6, sum(p.values()) / 1e6
    readme = " ".join((ROOT / "README.md").read_text().split())
    scaling = " ".join((ROOT / "tutorials" / "11_scaling.md").read_text().split())
    for text in (readme, scaling):
        assert f"VLM of {millions['gpu'][0]:.0f} M parameters" in text and f"{millions['big'][1]:.0f} M parameters" in text
    assert f"data/vlm.pt ({(ROOT / 'data' / 'vlm.pt').stat().st_size / 1e6:.1f} MB)" in readme
    assert "under half a million parameters" in readme and millions["laptop"][0] < .5
    assert f"{len(language.WORDS)} words" in readme
    assert "Nineteen pages" in readme and len(run.pages()) == 19
    assert "Twenty exercises" in readme and len(check.CHECKS) == 20
    assert "rejects six wrong places" in readme
    assert f"{len(world.KINDS['all'])} kinds" in readme and "twelve" in readme and len(world.KINDS["seen"]) == 12


def test_the_default_run_that_is_shown_is_of_this_world():
    """Its VLM, before training, answered what the shipped one answers now about the robot's pictures as they are now."""
    from nano_ki import checkpoint, evaluate
    shown = json.loads((ROOT / "tutorials" / "results" / "default_run.json").read_text())
    c = config.make(device="cpu", preset="laptop")
    vlm = checkpoint.new_vlm(c)
    checkpoint.load_vlm(vlm, c.start, c)
    now = evaluate.vqa(vlm, "robot", c.scenes, c.image, pucks=c.pucks, cloth=c.cloth)
    assert shown["vqa_before_robot"] == pytest.approx(now, abs=.02)
    assert (shown["recipe"], shown["preset"], shown["steps"], shown["seed"]) == ("ki", "laptop", c.steps, c.seed)
    readme = (ROOT / "README.md").read_text()
    assert f"{shown['train_seconds']:.0f} s of training, {shown['total_seconds']:.0f} s in all, {shown['peak_rss_mib']} MiB" in readme
