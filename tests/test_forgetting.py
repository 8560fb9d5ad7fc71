"""The lab in which a VLM forgets: forms that cannot be changed, a score, and both arms for real, though tiny."""
import json
import shlex

import numpy as np
import pytest
from conftest import TINY, command

from nano_ki import checkpoint, train
from nano_ki import config as configuration
from nano_ki.model import VLA
from tutorials import forms
from tutorials import lab_forgetting as lab

ROW = {"detached": .9, "through": .4, "difference": [.5, .4, .6], "higher": "detached"}
RESULT = {name: dict(ROW) for name in lab.MEASURED} | {"shown": {**ROW, "through": .89, "difference": [.01, -.03, .05], "higher": "equal"}}


def form_of(higher="detached", sure=80, name="me"):
    form = {**lab.empty_form(name), "higher": dict.fromkeys(lab.MEASURED, higher), "sure": dict.fromkeys(lab.MEASURED, sure)}
    return {**form, "lock": forms.digest(form)}


def locked(form):
    return forms.locked(form, lab.complete, lab.LAB)


def run(*args, text=""):
    return command("tutorials.lab_forgetting", *args, text=text)


def test_a_form_from_prediction_to_lock(tmp_path):
    path = tmp_path / "me.json"
    done = run("predict", path, text="x\nd\nten\n90\n" + "t\n34\n" * 4)            # (two answers that are asked again)
    assert done.returncode == 0, done.stderr
    form = locked(json.loads(path.read_text()))
    assert f"locked, {form['lock'][:forms.CODE]}" in done.stdout                   # (the code that a class collects)
    path.rename(tmp_path / "moved.json")
    assert "was locked before" in run("predict", path, text="d\n34\n" * 5).stderr          # (said before anything is asked)
    (tmp_path / "moved.json").rename(path)
    assert form["higher"] == {"shown": "detached", **dict.fromkeys(list(lab.MEASURED)[1:], "through")} and form["sure"]["shown"] == 90
    by_hand = tmp_path / "hand.json"
    assert run("predict", "--form", by_hand).returncode == 0 and "detached, through, equal" in by_hand.read_text()
    done = run("lock", by_hand)
    assert done.returncode != 0 and "wanted which is higher" in done.stderr
    by_hand.write_text(json.dumps({**form_of(), "lock": None}))
    assert run("lock", by_hand).returncode == 0 and locked(json.loads(by_hand.read_text()))


@pytest.mark.parametrize("change, says", [
    ({"lock": None}, "not locked"), ({"lock": "0" * 64}, "was changed"), ({"name": "another"}, "was changed"),
    ({"higher": {}}, "wanted which is higher"),
    ({"sure": dict.fromkeys(lab.MEASURED, 100.5)}, "wanted 34"), ({"sure": dict.fromkeys(lab.MEASURED, True)}, "wanted 34"),
    ({"higher": dict.fromkeys(lab.MEASURED, "equal")}, "was changed"), ({"higher": 3}, "no form"), ({"sure": None}, "no form")])
def test_forms_that_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        locked({**form_of(), **change})


def test_a_score_is_computed_from_the_measured_numbers():
    assert lab.scored(form_of("detached", 100), RESULT) == {"right": 4, "of": 5, "brier": .2}
    assert lab.scored(form_of("equal", 34), RESULT)["right"] == 1
    said = lab.report(RESULT, form_of("through"))
    assert said.count("you said: through (wrong)") == 5 and "0.90 and 0.40" in said


def two_runs(folder):
    """The files of two runs, as the lab leaves them, with numbers that are known."""
    def summary(rate, answers, speed):
        won = {"rate": rate, "n": 8, "scenes": bytes([255 if rate else 0]).hex()}
        return {"success": {"seen": won}, "right_puck": {"new_both": won},
                "vqa_after": dict.fromkeys(("where", "colour", "shape"), answers),
                "samples_a_second": speed}
    for arm, numbers in (("detached", (1., .9, 104)), ("through", (0., .86, 100))):
        (folder / arm).mkdir(parents=True)
        (folder / arm / "summary.json").write_text(json.dumps(summary(*numbers)))
        (folder / arm / "shown.json").write_text(json.dumps({"shown": summary(1., 0, 0)["success"]["seen"]}))


def test_a_class_is_counted_without_what_is_no_form(tmp_path):
    for name, form in (("a", form_of()), ("b", form_of("equal")), ("c", {**form_of(), "lock": "forged"}), ("d", {"score": 5})):
        (tmp_path / f"{name}.json").write_text(json.dumps(form))
    (tmp_path / "e.json").write_text("no json")
    files = sorted(tmp_path.glob("*.json"))
    done = run("class", *files, "--folder", tmp_path / "none")
    assert done.returncode != 0 and "no result yet" in done.stderr
    (tmp_path / "f.json").write_text((tmp_path / "a.json").read_text())                     # (a copy counts once)
    two_runs(tmp_path / "run")
    done = run("class", *files, tmp_path / "f.json", "--folder", tmp_path / "run")
    assert done.returncode == 0 and done.stdout.count("left out:") == 4 and "2 forms" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith(lab.MEASURED["knew"]))
    assert row.split()[-5:] == ["1", "0", "1", "detached", "1"]              # (one of the two said 80 %, and was wrong)


def test_what_is_higher_follows_from_the_difference(tmp_path):
    two_runs(tmp_path)
    assert {name: row["higher"] for name, row in lab.result_of(tmp_path).items()} == {
        "shown": "equal", "knew": "detached", "right": "detached", "book": "equal", "speed": "equal"}


def test_a_form_is_locked_once_and_nothing_is_overwritten(tmp_path):
    path = tmp_path / "me.json"
    form = {**form_of(), "lock": None}
    path.write_text(json.dumps(form))
    done = run("lock", path)
    assert done.stdout.strip().endswith(json.loads(path.read_text())["lock"][:8]), done.stderr
    before = path.read_text()
    assert run("lock", path).returncode == 0 and path.read_text() == before              # (locked already, and unchanged)
    for args, says in ((("predict", path), "there already"), (("lock",), "wants files"), (("predict",), "wants one file"),
                       (("run", path, path), "wants files, got 2"), (("predict", tmp_path / "new.json"), "answers end here")):
        done = run(*args)
        assert done.returncode != 0 and says in done.stderr and "Traceback" not in done.stderr, args
    assert path.read_text() == before and not (tmp_path / "new.json").exists()
    for other in ("me.json", "other.json"):                      # unlocked, changed and locked again: the list of locks knows it
        (tmp_path / other).write_text(json.dumps({**form, "sure": dict.fromkeys(lab.MEASURED, 99)}))
        assert "locked before, with other answers" in run("lock", tmp_path / other).stderr
    changed = {**form, "sure": dict.fromkeys(lab.MEASURED, 99)}
    with pytest.raises(ValueError, match="changed after"):
        locked({**changed, "lock": forms.digest(changed)})


@pytest.mark.parametrize("flags", ["--insulate", "--no-insulate", "--recipe ki", "--expert-updates=0"])
def test_the_arms_differ_by_the_line_alone(flags):
    assert lab.same_but_for_the_line(["--steps", "9"]).steps == 9
    with pytest.raises(ValueError, match="told apart"):
        lab.same_but_for_the_line(shlex.split(flags))


def test_the_shipped_generalist_says_where_the_pucks_on_the_page_are():
    c = configuration.make(device="cpu", preset="laptop", recipe="generalist")
    model = VLA(c, checkpoint.begin("data/generalist.pt", c)[1])
    checkpoint.load_vlm(model.vlm, "data/generalist.pt", c)
    said, tables = lab.places_said(model, lab.asked()), lab.asked()
    assert np.abs(np.array(said) - tables.target_xy()).max() < .12


@pytest.mark.slow
def test_both_arms_and_a_rung_for_real(tmp_path):
    tiny = {**TINY, "episodes": 200}
    train.train(configuration.make(**tiny, recipe="generalist", steps=2, out=str(tmp_path / "g")))
    flags = {k: v for k, v in tiny.items() if k not in ("vlm_samples", "device")} | {"steps": 4, "check_every": 2, "start": tmp_path / "g"}
    words = shlex.join(f"--{k.replace('_', '-')}={v}" for k, v in flags.items())
    (tmp_path / "me.json").write_text(json.dumps(form_of("through")))
    done = run("run", tmp_path / "me.json", "--folder", tmp_path / "f", "--train", words)
    assert done.returncode != 0 and "was not locked here" in done.stderr                 # (its digest was made by hand)
    (tmp_path / "me.json").write_text(json.dumps({**form_of("through"), "lock": None}))
    assert run("lock", tmp_path / "me.json").returncode == 0
    done = run("run", tmp_path / "me.json", "--folder", tmp_path / "f", "--train", words)
    assert done.returncode == 0, done.stderr
    assert "you said: through" in done.stdout and "of 5 right" in done.stdout and (tmp_path / "f" / "page.png").stat().st_size > 5000
    result = json.loads((tmp_path / "f" / "result.json").read_text())
    # A check and the end.
    assert {*lab.MEASURED, "score", "flags", "commit"} == set(result) and done.stdout.count("\ndetached  ") == 2
    kept = checkpoint.load(tmp_path / "f" / "detached")["model"], checkpoint.load(tmp_path / "g")["model"]
    assert all((kept[0][k] == v).all() for k, v in kept[1].items() if k.startswith("vlm."))
    done = run("ladder", "detach", "--folder", tmp_path / "f", "--train", words)
    assert done.returncode == 0 and "measured: success" in done.stdout, done.stderr
    done = run("ladder", "nothing", "--folder", tmp_path / "f", "--train", words)
    assert done.returncode != 0 and "choose from flow, detach" in done.stderr
    done = run("run", "--folder", tmp_path / "f", "--train", words + " --start=nowhere.pt")
    assert done.returncode != 0 and "no VLM at" in done.stderr and "Traceback" not in done.stderr.split("failed:")[0]
