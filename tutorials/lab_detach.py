"""The detach lab: where can a stop-gradient stand, what leaks, what starves? Predict, lock, measure, score, investigate.

    python -m tutorials.lab_detach show                  # seven placements, a few lines of code each
    python -m tutorials.lab_detach predict me.json       # your table, how sure you are, two reasons
    python -m tutorials.lab_detach lock me.json          # from here on nothing can be changed
    python -m tutorials.lab_detach measure me.json       # the real model, both losses, seven times; your score
    python -m tutorials.lab_detach check my_check.py     # your own check_insulated(model), tried on all seven
    python -m tutorials.lab_detach class *.json          # what a class believed

The placements live here. The library has its one switch, `insulate`, and its one `.detach()`.
Forms can be filled in by hand instead: `predict me.json --form` writes an empty one.
"""
import importlib.util
import inspect
import json
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

from nano_ki import config as configuration
from nano_ki import decoder, probe, program, vit
from nano_ki.checkpoint import load_vlm
from nano_ki.decoder import prefix_mask
from nano_ki.episodes import Data
from nano_ki.model import VLA
from nano_ki.program import write_json
from nano_ki.vit import attend, heads, norm
from tutorials import forms

LAB = "tutorials.lab_detach"
LOSSES = ("flow", "fast")                 # the expert's loss; the VLM's own, cross-entropy on FAST tokens
PARTS = {"vision encoder": "vision encoder", "last keys": "layer {last} k", "last values": "layer {last} v"}   # probe's names
CELLS = [f"{loss} -> {part}" for loss in LOSSES for part in PARTS]
REASONS = ("C", "D")                      # placements that a reason is asked for


# -- the seven placements -----------------------------------------------------------------------------
# A to G; what is shown to the student is the source of these functions.


def a_nowhere(memory):
    """What the expert reads, in every layer."""
    return memory


def b_keys_and_values(memory):
    """What the expert reads, in every layer."""
    return [(k.detach(), v.detach()) for k, v in memory]


def c_before_the_concatenation(q, k, v, mask=None):
    """The VLM's attention. The expert reads the same detached K and V: one of each, for all queries."""
    return attend(q, k.detach(), v.detach(), mask)


def d_hidden_state(block, x):
    """K and V for the expert, computed from the VLM's hidden state x before the layer."""
    h = norm(x.detach())
    return norm(heads(block.k(h))), heads(block.v(h))


def e_keys_only(memory):
    """What the expert reads, in every layer."""
    return [(k.detach(), v) for k, v in memory]


def f_last_layer_only(memory):
    """What the expert reads, in every layer."""
    *early, (k, v) = memory
    return [*early, (k.detach(), v.detach())]


def g_no_grad(vlm, prefix, answer):
    """The VLM's whole forward pass."""
    with torch.no_grad():
        return vlm(prefix, answer)


PLACEMENTS = {f.__name__[0].upper(): f for f in (a_nowhere, b_keys_and_values, c_before_the_concatenation, d_hidden_state,
                                                 e_keys_only, f_last_layer_only, g_no_grad)}
PAPERS = "B"
PARAGRAPHS = {
    "A": "Nothing stops the flow loss. It goes through the expert's attention into every K and V, through them into the hidden states, "
         "and down to the patch embedding. This is `joint` training: the forward pass is the same, to the bit.",
    "B": "The paper's placement (arXiv 2505.23705): both K and V, in every layer, only as the expert's queries read them. The VLM's own "
         "queries read the undetached ones, so the cross-entropy reaches all it did before.",
    "C": "K and V are detached for *all* queries, the VLM's too. No flow gets through; but the cross-entropy now reaches no K and V map "
         "any more, and the vision encoder not at all: the answer's tokens hear of the picture only through K and V. A test that "
         "looks at the flow loss alone passes. Public code has done this.",
    "D": "The hidden state is detached, and *then* projected: the projections stand behind the detach, so the flow loss trains every "
         "K and V map. What lies before them (the vision encoder) is safe. The detach must come last.",
    "E": "V carries a gradient as well as K: what is read, not only where. The key maps of the last layer are safe, and nothing else: "
         "through V the flow loss gets into the hidden states and down to the pixels. Half a stop is a leak.",
    "F": "Each of the expert's layers reads the memory of its own VLM layer. Detach the last one and that layer's K and V are safe, "
         "which is where a hasty test looks; the others still leak, into their own K and V and through the hidden states into "
         "everything below them.",
    "G": "`no_grad` stops the flow loss and everything else: nothing of the VLM's forward pass is recorded, so the cross-entropy has no "
         "way back either, and the VLM stays as it is. That is a frozen VLM, with the price of one that trains.",
}


@contextmanager
def placed(model, letter):
    """`model` with one placement in it; as it was, afterwards."""
    place, forward = PLACEMENTS[letter], decoder.VLM.forward

    def hidden_state(vlm, prefix, answer=None, layers=None, keep=0):
        x, length, mask, memory = prefix, prefix.shape[1], None, []
        if answer is not None:
            x = torch.cat((x, vlm.embed(answer) + vlm.position[vlm.slots:vlm.slots + answer.shape[1]]), 1)
            mask = prefix_mask(length, answer.shape[1], x.device)
        for block in vlm.blocks:
            memory.append(place(block, x[:, :length + keep]))
            x, _ = block(x, mask)
        return vlm.head(norm(x[:, length - 1:])), memory

    def without_recording(vlm, prefix, answer=None, **options):
        return place(lambda *args: forward(vlm, *args, **options), prefix, answer)
    changes = {"C": patch.object(vit, "attend", place), "D": patch.object(decoder.VLM, "forward", hidden_state),
               "G": patch.object(decoder.VLM, "forward", without_recording)}
    change = changes.get(letter) or patch.object(model, "memory_for_expert", place)
    # The library's own switch stays off, the lab's code does the work; but in C what the expert reads is detached too.
    insulate, model.insulate = model.insulate, letter == "C"
    with change:
        try:
            yield model
        finally:
            model.insulate = insulate


def real_model():
    """The shipped VLM with a new expert, and a batch. The expert's gates are opened at random: through closed ones, as
    they are made, nothing leaks whatever stands where."""
    config = configuration.make(device="cpu", preset="laptop", episodes=200, batch=16, vlm_samples=8)
    data = Data(config)
    torch.manual_seed(0)
    model = VLA(config, data.fast)
    load_vlm(model.vlm, config.start, config)
    probe.open_gates(model)
    return model, data.batch()


def truth(model, batch):
    """{letter: {cell: does any gradient get there}} by the real probe."""
    out, last = {}, model.config.depth - 1
    for letter in PLACEMENTS:
        with placed(model, letter):
            norms = probe.gradient_norms(model, batch)
        out[letter] = {f"{loss} -> {part}": norms[loss][name.format(last=last)] > 0
                       for loss in LOSSES for part, name in PARTS.items()}
    return out


# -- a student's form ---------------------------------------------------------------------------------


def empty_form(name):
    return forms.blank(name, cells={letter: dict.fromkeys(CELLS) for letter in PLACEMENTS},
                       confidence=dict.fromkeys(PLACEMENTS), reasons=dict.fromkeys(REASONS, ""))


def complete(form):
    """The form itself. ValueError with the first thing that is missing or wrong in it."""
    try:
        for letter in PLACEMENTS:
            for cell in CELLS:
                if form["cells"][letter][cell] not in (True, False):
                    raise ValueError(f"placement {letter}, {cell}: {form['cells'][letter][cell]!r}; wanted true (a gradient gets "
                                     "there) or false (none does)")
            sure = form["confidence"][letter]
            if type(sure) not in (int, float) or not 50 <= sure <= 100:
                raise ValueError(f"confidence in {letter} is {sure!r}; wanted 50 (a guess) to 100 (certain), in percent")
        for letter in REASONS:
            if len(str(form["reasons"][letter]).split()) < 5:
                raise ValueError(f"the reason for {letter} is {form['reasons'][letter]!r}; wanted a sentence")
        return form
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no form of the lab ({type(error).__name__}: {error}); write one with: "
                         f"python -m {LAB} predict me.json") from None


def scored(form, facts):
    """{"right", "of", "brier", "wrong": [[letter, cell]]}. Brier: mean of (confidence - was it right)^2 over the cells:
    0 is perfect, .25 is what a guesser who says 50 % gets."""
    wrong, brier = [], []
    for letter in PLACEMENTS:
        for cell in CELLS:
            right = form["cells"][letter][cell] == facts[letter][cell]
            brier.append((form["confidence"][letter] / 100 - right) ** 2)
            if not right:
                wrong.append([letter, cell])
    return {"right": len(brier) - len(wrong), "of": len(brier), "brier": round(sum(brier) / len(brier), 4), "wrong": wrong}


def ask(form):
    """Fill in a form at the terminal."""
    print(show())
    print("For each placement: does any gradient get there? `last`: of the VLM's last layer. Answer y or n for each cell, six "
          "letters such as `ynnyyy`, in this order:\n  " + ", ".join(CELLS) + "\n"
          "At the end you are asked for two reasons, of five words or more.")
    for letter in PLACEMENTS:
        while True:
            said = input(f"{letter}: ").strip().lower().replace(" ", "")
            if len(said) == len(CELLS) and set(said) <= set("yn"):
                break
            print(f"wanted {len(CELLS)} letters, y or n")
        form["cells"][letter] = {cell: c == "y" for cell, c in zip(CELLS, said, strict=True)}
        while True:
            said = input(f"{letter}: how sure are you of each of these, 50 to 100 %? ").strip().rstrip("% ")
            if said.isdigit() and 50 <= int(said) <= 100:
                break
            print("wanted a whole number from 50 to 100")
        form["confidence"][letter] = int(said)
    for letter in REASONS:
        while len((said := input(f"Why, for {letter}? (a sentence) ")).split()) < 5:
            print("a whole sentence, please: five words or more")
        form["reasons"][letter] = said


# -- what is printed ----------------------------------------------------------------------------------


def show():
    """The seven placements, as code."""
    out = []
    for letter, function in PLACEMENTS.items():
        # Names say too much.
        head, doc, body = inspect.getsource(function).replace(function.__name__, f"placement_{letter.lower()}", 1).split("\n", 2)
        out.append(f"{letter}. {doc.strip().strip(chr(34))}\n\n{textwrap.indent(head + chr(10) + body.rstrip(), '    ')}\n")
    return "\n".join(out)


def facts_table(facts, form=None):
    """Measured: + a gradient gets there, 0 none does; ! where the form said otherwise."""
    lines = [f"{'':4s}" + "".join(f"{cell:>24s}" for cell in CELLS)]
    for letter, row in facts.items():
        cells = ["+" if row[c] else "0" for c in CELLS]
        if form:
            cells = [s + ("" if form["cells"][letter][c] == row[c] else " !") for s, c in zip(cells, CELLS, strict=True)]
        lines.append(f"{letter:4s}" + "".join(f"{s:>24s}" for s in cells))
    return "\n".join(lines)


def verdict(form, facts):
    """The score in words, with the paragraph of each placement that was not all right."""
    score = form["score"]
    out = [facts_table(facts, form), "", f"{score['right']} of {score['of']} cells right; Brier score {score['brier']:.3f} "
           "(0 is perfect, .25 is guessing)"]
    for letter in dict.fromkeys(row[0] for row in score["wrong"] if row[0] not in REASONS):
        out += ["", textwrap.fill(f"{letter}: {PARAGRAPHS[letter]}", 100)]
    for letter in REASONS:
        out += ["", textwrap.fill(f"Your reason for {letter}: {form['reasons'][letter]}", 100),
                textwrap.fill(f"{letter}: {PARAGRAPHS[letter]}", 100)]
    return "\n".join(out)


def class_table(given, facts):
    """What a class believed: for each cell the share that said 'a gradient gets there', and the truth."""
    scores = [scored(form, facts) for form in given]
    lines = [f"{len(given)} forms; cells right {sum(s['right'] for s in scores) / len(scores):.1f} of {scores[0]['of']}, Brier "
             f"{sum(s['brier'] for s in scores) / len(scores):.3f} on average", "",
             f"{'':4s}" + "".join(f"{cell:>24s}" for cell in CELLS)]
    for letter in PLACEMENTS:
        row = []
        for cell in CELLS:
            share = sum(form["cells"][letter][cell] for form in given) / len(given)
            row.append(f"{100 * share:.0f} % said +, is {'+' if facts[letter][cell] else '0'}")
        lines.append(f"{letter:4s}" + "".join(f"{s:>24s}" for s in row))
    wrong = sorted(((sum([letter, cell] in s["wrong"] for s in scores), letter, cell) for letter in PLACEMENTS for cell in CELLS),
                   reverse=True)
    lines += ["", "To talk about first:"]
    lines += [f"  {letter}, {cell}: {count} of {len(given)} were wrong" for count, letter, cell in wrong[:3] if count]
    return "\n".join(lines)


# -- investigate --------------------------------------------------------------------------------------


def graded(check, model, batch):
    """{letter: (accepted, should be, what it raised or "")} for a student's check_insulated(model). The model carries the batch to
    test with as `model.batch`. A check that raises does not accept: an AssertionError is a refusal; where a placement cuts the
    graph, backward() raises a RuntimeError."""
    out = {}
    model.batch = batch
    for letter in PLACEMENTS:
        with placed(model, letter):
            accepted, raised = False, ""
            model.zero_grad(set_to_none=True)
            try:
                accepted = check(model)
                accepted = accepted is None or bool(accepted)
            except AssertionError:
                pass
            except SystemExit:
                raise ValueError("check_insulated ends the program (sys.exit); return True or False") from None
            except Exception as error:               # (the student's bug, or a graph that is cut)
                raised = f"{type(error).__name__}: {program.first_line(error)}"
        out[letter] = (accepted, letter == PAPERS, raised)
    return out


def load_check(path):
    """The function check_insulated in a student's file. ValueError if there is none."""
    if not Path(path).exists():
        raise ValueError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location("student", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        at = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ValueError(f"{path} cannot be loaded: {type(error).__name__}{at}: {program.first_line(error)}") from None
    if not callable(getattr(module, "check_insulated", None)):
        raise ValueError(f"{path} defines no check_insulated(model); it gets a model whose batch is model.batch, and returns "
                         "True or False (or asserts). Start from nano_ki.probe.gradient_norms(model, model.batch)")
    return module.check_insulated


def main():
    parser = program.parser(__doc__)
    parser.add_argument("action", choices=("show", "predict", "lock", "measure", "check", "class"))
    parser.add_argument("files", nargs="*", help="a form (JSON), or the file with your check")
    parser.add_argument("--name", default="", help="predict: whose form it is")
    parser.add_argument("--form", action="store_true", help="predict: write an empty form, to be filled in by hand")
    parser.add_argument("--json", action="store_true", help="measure, check: print JSON")
    args = parser.parse_args()
    try:
        act(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except (EOFError, KeyboardInterrupt):
        sys.exit("\nstopped; nothing was written")


def act(args):
    if args.action == "show":
        print(show())
        return
    if not args.files or args.action != "class" and len(args.files) != 1:
        raise ValueError(f"{args.action} needs {'forms' if args.action == 'class' else 'one file'}")
    path = args.files[0]
    if args.action == "predict":
        if Path(path).exists():
            raise ValueError(f"{path} is there already; choose another name")
        form = empty_form(args.name)
        try:
            args.form or ask(form)
        except (EOFError, KeyboardInterrupt):
            if not any(form["confidence"].values()):
                raise
            write_json(Path(path), form)
            sys.exit(f"\nstopped; {path} holds what you have said so far. Fill in the rest by hand, then: python -m {LAB} lock {path}")
        write_json(Path(path), form)
        print(f"{path}: {'fill in true or false, 50 to 100, and two reasons; then' if args.form else 'next:'} python -m {LAB} lock {path}")
    elif args.action == "lock":
        form = forms.lock(complete(forms.read(path, LAB)), path)
        print(f"locked: {form['lock'][:forms.CODE]}. Next: python -m {LAB} measure {path}")
    elif args.action == "measure":
        form = forms.locked(forms.read(path, LAB), complete, LAB)
        facts = truth(*real_model())
        form["score"] = scored(form, facts)
        write_json(Path(path), form)
        print(json.dumps({"facts": facts, "score": form["score"]}) if args.json else verdict(form, facts))
    elif args.action == "check":
        result = graded(load_check(path), *real_model())
        if args.json:
            print(json.dumps(result))
            return
        for letter, (accepted, wanted, raised) in result.items():
            print(f"{letter}: {'accepted' if accepted else 'refused '}  "
                  f"{'right' if accepted == wanted else 'WRONG'}{f'   (it raised {raised})' if raised else ''}")
            if accepted != wanted:
                print(textwrap.indent(textwrap.fill(PARAGRAPHS[letter], 96), "   "))
    else:
        print(class_table(forms.of_class(args.files, complete, LAB), truth(*real_model())))


if __name__ == "__main__":
    program.run(main)
