"""The detach lab: seven placements on the real model, locked answers, a score that means something."""
import json

import pytest
import torch
from conftest import command

from nano_ki import decoder, probe, vit
from tutorials import forms
from tutorials import lab_detach as lab

RIGHT = """
from nano_ki import probe
def check_insulated(model):
    norms = probe.gradient_norms(model, model.batch)
    vlm = [name for name in probe.parts(model) if name != "expert"]
    return all(norms["flow"][n] == 0 for n in vlm) and all(norms["fast"][n] > 0 for n in vlm)
"""
LAZY = RIGHT.replace(' and all(norms["fast"][n] > 0 for n in vlm)', "")
LATE = RIGHT.replace('norms["flow"][n] == 0 for n in vlm', 'norms["flow"][n] == 0 for n in vlm if n.startswith("layer 3")')


@pytest.fixture(scope="module")
def real():
    return lab.real_model()


@pytest.fixture(scope="module")
def facts(real):
    return lab.truth(*real)


def answered(facts, flip=(), sure=90):
    form = lab.empty_form("someone")
    form["cells"] = {a: {c: v ^ ((a, c) in flip) for c, v in row.items()} for a, row in facts.items()}
    form["confidence"] = dict.fromkeys(facts, sure)
    form["reasons"] = dict.fromkeys(lab.REASONS, "because the projections stand behind it")
    return {**form, "lock": forms.digest(form)}


def run(*args, text=None):
    return command("tutorials.lab_detach", *args, text=text or "")


def test_the_placements_differ_as_the_paragraphs_say(facts, real):
    rows = {letter: "".join("0+"[v] for v in row.values()) for letter, row in facts.items()}
    assert rows == {"A": "++++++", "B": "000+++", "C": "000000", "D": "0+++++", "E": "+0++++", "F": "+00+++", "G": "000000"}
    model, batch = real
    assert decoder.VLM.forward.__name__ == "forward" and vit.attend.__name__ == "attend" and model.insulate
    with lab.placed(model, "A"):
        joint = probe.gradient_norms(model, batch)
    model.insulate = False
    assert probe.gradient_norms(model, batch) == joint             # A is the library's joint training, and
    model.insulate = True
    ours = probe.gradient_norms(model, batch)
    with lab.placed(model, "B"):
        assert probe.gradient_norms(model, batch) == ours          # B is its insulation, number by number


def test_every_placement_computes_the_same_forward_pass(real):
    model, batch = real
    losses = []
    for letter in lab.PLACEMENTS:
        with lab.placed(model, letter):
            out = model.losses(batch, torch.Generator().manual_seed(0))
        losses.append([round(out[k].item(), 5) for k in ("ce", "flow")])
    assert all(x == losses[0] for x in losses)


def test_names_do_not_give_the_placements_away():
    text = lab.show()
    assert (all(f"def placement_{letter.lower()}(" in text for letter in lab.PLACEMENTS)
            and not any(f.__name__ in text for f in lab.PLACEMENTS.values()))


def test_score_and_brier(facts):
    perfect = lab.scored(answered(facts, sure=100), facts)
    assert perfect["right"] == perfect["of"] == 42 and perfect["brier"] == 0 and perfect["wrong"] == []
    assert lab.scored(answered(facts, sure=50), facts)["brier"] == .25
    missed = lab.scored(answered(facts, {("D", "flow -> last keys"), ("C", "fast -> vision encoder")}, 100), facts)
    assert missed["right"] == 40 and missed["brier"] == pytest.approx(2 / 42, abs=1e-4)
    form = answered(facts, {("D", "flow -> last keys")})
    form["score"] = lab.scored(form, facts)
    text = lab.verdict(form, facts)
    assert "+ !" in text and "D: The hidden state is detached" in " ".join(text.split()) and "41 of 42" in text
    assert "\nA: Nothing stops" not in text


def test_a_form_from_prediction_to_score(tmp_path, facts):
    form = tmp_path / "me.json"
    text = "".join(f"{''.join('ny'[v] for v in facts[a].values())}\n{80}\n" for a in facts)
    text = "yn\n" + text + "short\nit is detached for all of the queries\nprojections come after the detach here\n"
    assert run("measure", form).returncode == 1
    said = run("predict", form, "--name", "Ada", text=text)
    assert said.returncode == 0 and "wanted 6 letters" in said.stdout and "a whole sentence" in said.stdout, said.stderr
    early = run("measure", form)
    assert early.returncode == 1 and "is not locked" in early.stderr and "+" not in early.stdout
    assert "locked" in run("lock", form).stdout
    content = form.read_text()
    assert "locked" in run("lock", form).stdout and form.read_text() == content          # (nothing was changed: nothing is wrong)
    done = run("measure", form)
    assert done.returncode == 0 and "42 of 42" in done.stdout, done.stderr
    written = json.loads(form.read_text())
    assert written["name"] == "Ada" and written["score"]["brier"] == pytest.approx(.04)
    written["cells"]["A"]["flow -> last keys"] ^= True
    form.write_text(json.dumps(written))
    assert "changed after it was locked" in run("measure", form).stderr
    # Unlocked, or locked once more, by hand.
    for again in ({"lock": None}, {"lock": forms.digest(written)}, {"lock": None, "id": "another"}):
        form.write_text(json.dumps({**written, **again}))
        assert "locked before" in run("lock", form).stderr
        assert any(words in run("measure", form).stderr for words in ("is not locked", "changed after it was locked"))
    form.rename(tmp_path / "moved.json")
    assert ("locked before, with other answers" in run("lock", tmp_path / "moved.json").stderr
            or "another" in (tmp_path / "moved.json").read_text())


def test_a_form_by_hand_and_bad_forms(tmp_path, facts):
    form = tmp_path / "me.json"
    assert run("predict", form, "--form").returncode == 0
    assert "placement A, flow -> vision encoder: None" in run("lock", form).stderr
    assert "is there already" in run("predict", form, "--form").stderr
    for content in ("", "[]", "{}", '{"cells": 3}', json.dumps({**lab.empty_form("me"), "cells": 3}),
                    json.dumps({k: v for k, v in answered(facts).items() if k != "lock"})):
        form.write_text(content)
        bad = run("lock", form)
        assert bad.returncode == 1 and bad.stderr.startswith("error: ") and "Traceback" not in bad.stderr
    empty = run("predict", tmp_path / "other.json", text="")
    assert empty.returncode == 1 and "nothing was written" in empty.stderr and not (tmp_path / "other.json").exists()
    begun = run("predict", tmp_path / "other.json", text="ynynyn\n70\nyy")                    # what was said is kept
    assert begun.returncode == 1 and "what you have said so far" in begun.stderr and "Traceback" not in begun.stderr
    assert json.loads((tmp_path / "other.json").read_text())["confidence"]["A"] == 70
    assert "placement B, flow -> vision encoder: None" in run("lock", tmp_path / "other.json").stderr


@pytest.mark.parametrize("code, wrong", [(RIGHT, ""), (LAZY, "CG"), (LATE, "F")])
def test_the_grader_accepts_only_the_papers_placement(tmp_path, real, code, wrong):
    path = tmp_path / "mine.py"
    path.write_text(code)
    result = lab.graded(lab.load_check(path), *real)
    assert "".join(a for a, (said, wanted, _) in result.items() if said != wanted) == wrong


def test_a_check_that_raises_accepts_nothing(tmp_path, real):
    """The natural test calls backward() on both losses; where a placement cuts the graph, that raises."""
    path = tmp_path / "mine.py"
    path.write_text("""
import torch
def check_insulated(model):
    def reached(name):
        model.zero_grad()
        model.losses(model.batch, torch.Generator().manual_seed(0))[name].backward()
        return [p.grad is not None and bool(p.grad.any()) for p in (model.vlm.vit.small.weight, model.vlm.blocks[-1].k.weight, model.vlm.blocks[-1].v.weight)]
    return not any(reached("flow")) and all(reached("fast"))
""")
    result = lab.graded(lab.load_check(path), *real)
    assert all(said == wanted for said, wanted, _ in result.values()) and result["G"][2].startswith("RuntimeError") and not result["B"][2]
    done = run("check", path)
    assert done.returncode == 0 and "it raised RuntimeError" in done.stdout and "WRONG" not in done.stdout


def test_the_grader_says_what_is_missing(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("import torch\ndef check_insulated(model) return True\n")
    (tmp_path / "foreign.py").write_text("import no_such_package\n")
    for name, says in (("empty", "check_insulated"), ("none", "no file"), ("broken", "SyntaxError in line 2"), ("foreign", "no_such_package")):
        with pytest.raises(ValueError, match=says):
            lab.load_check(tmp_path / f"{name}.py")


def test_what_a_class_believed(facts):
    given = [answered(facts, {("C", "fast -> vision encoder")}), answered(facts, {("C", "fast -> vision encoder")}), answered(facts)]
    for form in given:
        form["score"] = {"right": 0, "of": 42, "brier": 9., "wrong": []}                # (forged: it is not believed)
    text = lab.class_table(given, facts)
    assert "3 forms; cells right 41.3 of 42" in text and "67 % said +, is 0" in text
    assert "C, fast -> vision encoder: 2 of 3 were wrong" in text


def test_a_class_is_counted_without_what_is_no_form(tmp_path, facts):
    good, changed = answered(facts), answered(facts)
    changed["cells"]["A"]["flow -> last keys"] ^= True
    for name, form in {"a": good, "b": answered(facts), "copy": good, "changed": changed,
                       "open": {**answered(facts), "lock": None}, "half": lab.empty_form("me"), "none": []}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(form))
    done = run("class", *sorted(tmp_path.glob("*.json")))
    assert done.returncode == 0 and "2 forms; cells right 42.0" in done.stdout and done.stdout.count("left out") == 5, done.stderr
    assert f"code {good['lock'][:8]}: {tmp_path / 'a.json'}" in done.stdout           # (to be compared with those that were collected)
    measured = run("measure", tmp_path / "a.json")                                    # a digest made by hand: nobody locked it here
    assert measured.returncode != 0 and "was not locked here" in measured.stderr
    assert "no locked form is left" in run("class", tmp_path / "none.json").stderr
