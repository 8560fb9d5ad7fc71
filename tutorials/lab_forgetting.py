"""The lab in which one watches a VLM forget. Predict, lock, run, score.

A generalist (data/generalist.pt: FAST and text, twelve kinds of object) gets a new action expert, which is trained by the
flow loss alone on demonstrations of three other kinds: once with the stop-gradient (`detached`), once without (`through`).
All else is equal: steps, updates, rates, samples, seeds. The expert reads features alone and no words of a subtask, which flow
would ruin for everybody to see (--train="--subtask" shows that). Both run side by side, one thread each.

    python -m tutorials.lab_forgetting                   # asks what you expect, runs both, tells what you got right
    python -m tutorials.lab_forgetting predict me.json   # only the form, locked (--form: an empty one, to fill in by hand)
    python -m tutorials.lab_forgetting lock me.json      # locks a form that was filled in by hand
    python -m tutorials.lab_forgetting run me.json       # runs both and scores a locked form (no form: just runs)
    python -m tutorials.lab_forgetting class *.json      # what a class expected
    python -m tutorials.lab_forgetting ladder            # what each part of the recipe is for, rung by rung

While it runs, runs/forgetting/page.png is drawn anew. A lock has a code, the first digits of a hash of the answers. Whoever collects
the codes beforehand knows which forms were locked before the result.          Read next: 08a_post_training.md
"""
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from nano_ki import checkpoint, draw, evaluate, language, program, render, train, world
from nano_ki import config as configuration
from nano_ki.program import ROOT
from tutorials import forms
from tutorials.studies import compare, more
from tutorials.studies.compare import book

FOLDER, LAB = Path("runs") / "forgetting", "tutorials.lab_forgetting"
SCENES, EQUAL = 200, .05                  # scenes in each set; differences smaller than this count as "equal"
POINTS = 8                                # on each curve, the last one at the end
ARMS = {"detached": ["--recipe", "post", "--no-subtask"], "through": ["--recipe", "post", "--no-subtask", "--no-insulate"]}
MEASURED = {        # what is asked of both arms
    "shown": "success on the three kinds that are shown now",
    "knew": "success on the twelve kinds that the generalist knew",
    "right": "right puck pushed, where colour and shape are new",
    "book": "answers to questions about book pages",
    "speed": "samples trained on in a second",
}
ANSWERS = {"d": "detached", "t": "through", "e": "equal"}
SURE = 70                                 # percent: who says so and is wrong, is counted in the class table
LADDER = {          # rung: (flags of nano_ki.train, what is trained)
    "flow": (["--recipe", "pi0"], "the flow loss alone, its gradient let through to the VLM (page 00b)"),
    "detach": (["--recipe", "frozen"], "the flow loss alone, its gradient stopped (page 00c)"),
    "FAST": (["--vlm-samples", "0"], "the gradient stopped, and a subtask and FAST tokens to teach the VLM (page 00d)"),
    "questions": ([], "the same with questions in each batch: knowledge insulation (page 00e)"),
}
EACH = ["--steps", "250", "--vlm-rate", ".01", "--vlm-adam", ".01", "--scenes", "100", "--check-every", "0"]        # of the rungs


# -- a form -------------------------------------------------------------------------------------------


def empty_form(name):
    return forms.blank(name, higher=dict.fromkeys(MEASURED), sure=dict.fromkeys(MEASURED),
                       how={"higher": f"after training, which is higher: {', '.join(ANSWERS.values())}", "sure": "34 (a guess) to 100 (certain)",
                            **MEASURED})


def complete(form):
    """The form itself. ValueError with the first thing that is missing or wrong in it."""
    if not all(isinstance(form.get(k), dict) for k in ("higher", "sure")):
        raise ValueError(f"this is no form of the lab; write one with: python -m {LAB} predict me.json --form")
    for key in MEASURED:
        if form["higher"].get(key) not in ANSWERS.values():
            raise ValueError(f"{key}: {form['higher'].get(key)!r}; wanted which is higher, {', '.join(ANSWERS.values())}")
        if type(sure := form["sure"].get(key)) not in (int, float) or not 34 <= sure <= 100:
            raise ValueError(f"sure of {key}: {sure!r}; wanted 34 (a guess among three) to 100 (certain), in percent")
    return form


def ask(form):
    """This form, filled in at the terminal."""
    def say(text, end="\n"):                                 # (--json prints JSON alone)
        print(text, end=end, file=sys.stderr, flush=True)

    def answer(question):
        say(question, "")
        return input()
    say("After training, which of the two is higher? d: detached, t: through, e: equal (less than .05 apart; speed: less than 5 %).")
    for key, question in MEASURED.items():
        try:
            while (said := answer(f"{question} [d/t/e] ").strip().lower()) not in ANSWERS:
                say("wanted d, t or e")
            while not ((sure := answer("  how sure are you, 34 to 100 %? ").strip().rstrip("% ")).isdecimal() and 34 <= int(sure) <= 100):
                say("  wanted a whole number from 34 (a guess) to 100 (certain)")
        except EOFError:
            raise ValueError("the answers end here; nothing is kept") from None
        form["higher"][key], form["sure"][key] = ANSWERS[said], int(sure)
    return form


def lock(form, path):
    """Lock a complete form, and print its code."""
    print(f"{path}: locked, {forms.lock(form, path)['lock'][:forms.CODE]}")


# -- both arms ----------------------------------------------------------------------------------------


def shown(model, n=100):
    """Success in scenes like the demonstrations of stage 2, and where the VLM says the pucks of three commands are."""
    c = model.config
    end = evaluate.rollout(evaluate.policy_of(model), more.shown(c, n), c.execute, rate=c.rate)
    return {"shown": evaluate.outcome(world.success(end)), "said": places_said(model, asked())}


def asked():
    """The tables about which both VLMs are asked on the page."""
    return evaluate.test_scenes("seen", 3, evaluate.CHECK_SEED)


@torch.no_grad()
def places_said(model, tables):
    """What the VLM answers to "where is ...?" about the command's puck on robot pictures: [x, y] each, or None if no place."""
    prompts = np.stack([language.parse("where is the {} {}?".format(
                            *(names[k] for names, k in zip((world.COLOURS, world.SHAPES), kind, strict=True))))
                        for kind in tables.kind[np.arange(len(tables)), tables.target]])
    image = render.robot_camera(tables, model.config.image, model.config.cloth)
    words = model.vlm.generate((torch.from_numpy(image), torch.from_numpy(prompts)), 2).numpy() - language.NUMBER0
    places = (words + .5) * (2 * world.HALF / language.BINS) - world.HALF
    return [place.tolist() if ((row >= 0) & (row < language.BINS)).all() else None for place, row in zip(places, words, strict=True)]


def child(out, flags):
    """One arm, in a process of its own: nano_ki.train, and in each check what the lab shows. At the end that once more: shown.json."""
    c = configuration.parse(["--device", "cpu", "--threads", os.environ["OMP_NUM_THREADS"],
                             "--scenes", str(SCENES), *flags, "--out", str(out), "--overwrite"])
    if train.train(c, watch=lambda model, data: shown(model)) is None:
        sys.exit(130)                            # (it was stopped)
    model = checkpoint.load_model(out)
    program.write_json(Path(out) / "shown.json", {**shown(model, c.scenes), "vqa": evaluate.vqa_both(model, 100)})          # (as in the checks)


def start(out, flags, threads=1):
    """Start a run in a process of its own."""
    with open(f"{out}.log", "wb") as log:
        return subprocess.Popen([sys.executable, "-m", "tutorials.lab_forgetting", "child", str(out), *flags],
                                cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                env={**os.environ, "OMP_NUM_THREADS": str(threads)})


def points_of(out):
    """What a run has found so far, in its checks and at the end: [{"step", "shown", "knew", "right", "right_new", "new", "book", "said"}]."""
    path, end = out / "metrics.jsonl", out / "shown.json"
    checks = [m for m in checkpoint.read_metrics(path) if "success" in m] if path.exists() else []
    if end.exists():
        summary = compare.read_json(out / "summary.json")
        checks.append({**summary, "step": summary["steps"], **compare.read_json(end)})
    return [{"step": m["step"], "shown": m["shown"]["rate"], "knew": m["success"]["seen"]["rate"],
             "right": m["right_puck"]["seen"]["rate"], "right_new": m["right_puck"]["new_both"]["rate"], "new": m["success"]["new_both"]["rate"],
             "book": book(m["vqa"]["book"]), "said": m["said"]} for m in checks]


def folders(folder):
    """{arm: its folder}."""
    return {arm: (folder / arm).resolve() for arm in ARMS}


def watch_both(folder, flags, tell=print):
    """Train both arms side by side, and show on the way what they still know."""
    outs = folders(folder)
    for out in outs.values():                    # (else the last run's points are printed)
        checkpoint.clear(out)
        (out / "shown.json").unlink(missing_ok=True)
    jobs = {arm: start(out, [*ARMS[arm], *flags]) for arm, out in outs.items()}
    tell(f"{folder / 'page.png'} is drawn anew while they run\n{'':10s}step  shown kinds  twelve kinds  right puck of the twelve  new both  "
         "book answers")
    told, running = dict.fromkeys(ARMS, 0), True
    try:
        while running:
            codes = [job.poll() for job in jobs.values()]                        # (polled first, so that no point is missed)
            running = None in codes and not any(codes)
            points = {arm: points_of(out) for arm, out in outs.items()}
            for arm, mine in points.items():
                for p in mine[told[arm]:]:
                    tell(f"{arm:10s}{p['step']:4d}{p['shown']:12.2f}{p['knew']:14.2f}{p['right']:26.2f}{p['new']:10.2f}{p['book']:13.2f}")
            if told != (told := {arm: len(mine) for arm, mine in points.items()}):
                page(points, folder / "page.png")
            time.sleep(.5 * running)
    finally:
        for job in jobs.values():
            job.terminate()
    for (arm, job), code in zip(jobs.items(), codes, strict=True):
        job.wait()
        if code:
            raise ValueError(f"{arm} failed: {Path(f'{outs[arm]}.log').read_text()[-1000:]}")


def page(points, path):
    """The picture that is drawn anew: curves of both arms, and where each VLM says that the puck of a command is."""
    charts = {title: {arm: ([p["step"] for p in mine], [p[key] for p in mine]) for arm, mine in points.items()} for title, key in (
        ("success on the three shown kinds, by step", "shown"), ("success on the twelve kinds it knew, by step", "knew"),
        ("right puck pushed, of the twelve, by step", "right"), ("right puck, colour and shape new, by step", "right_new"),
        ("success on new colours and shapes, by step", "new"),
        ("answers about the book, by step", "book"))}
    draw.curves(charts, path, 420, 260, 3)
    tables, size = asked(), 270
    pictures = render.robot_camera(tables, size, configuration.Config.cloth)
    curves = Image.open(path).convert("RGB")
    sheet = Image.new("RGB", (curves.width, curves.height + size + 40), draw.PAPER)
    sheet.paste(curves, (0, 0))
    pen, font, names = ImageDraw.Draw(sheet), draw.font_of(13), language.instruction(tables)
    for k in range(len(tables)):
        left, top = 10 + k * (size + 5), curves.height + 34
        sheet.paste(Image.fromarray(pictures[k]), (left, top))
        pen.text((left, top - 30), f"where is the {' '.join(names[k].split()[2:4])}?", draw.INK, font)
        for i, (arm, mine) in enumerate(points.items()):
            said = mine[-1]["said"][k] if mine else None
            pen.text((left + i * 110, top - 15), f"{arm}: {'x' if said else 'no place'}", draw.LINES[i], font)
            if said:
                x, y = (left + (said[0] + world.HALF) / (2 * world.HALF) * size, top + (said[1] + world.HALF) / (2 * world.HALF) * size)
                for a, b in (((x - 9, y - 9), (x + 9, y + 9)), ((x - 9, y + 9), (x + 9, y - 9))):
                    pen.line((a, b), draw.PAPER, 6)
                    pen.line((a, b), draw.LINES[i], 3)
    draw.save(sheet, path)


# -- what came out ------------------------------------------------------------------------------------


def result_of(folder):
    """{what is measured: {"detached", "through", "difference": [middle, low, high], "higher"}}, 95 % intervals over scenes, from
    the two runs in this folder. ValueError if they are not there."""
    outs = folders(folder)
    if not all((out / "shown.json").exists() for out in outs.values()):
        raise ValueError(f"{folder} holds no result yet; first: python -m tutorials.lab_forgetting run")
    runs = {arm: compare.read_json(out / "summary.json") for arm, out in outs.items()}
    for arm, out in outs.items():
        runs[arm]["success"]["shown"] = compare.read_json(out / "shown.json")["shown"]
    out = {}
    for name, key, part in (("shown", "success", "shown"), ("knew", "success", "seen"), ("right", "right_puck", "new_both")):
        two = [[{"seed": 0, **run}] for run in runs.values()]
        out[name] = {**{arm: run[key][part]["rate"] for arm, run in runs.items()}, "difference": compare.difference(*two, key, part)}
    for name, value in (("book", lambda run: book(run["vqa_after"])), ("speed", lambda run: run["samples_a_second"])):
        out[name] = {arm: value(run) for arm, run in runs.items()}
        out[name]["difference"] = [out[name]["detached"] - out[name]["through"]] * 3
    for name, row in out.items():
        apart = row["difference"][0] / (row["through"] if name == "speed" else 1)
        row["higher"] = "equal" if abs(apart) < EQUAL else "detached" if apart > 0 else "through"
    return out


def sentence(result):
    """What the numbers say, in one sentence."""
    r = {name: (row["detached"], row["through"]) for name, row in result.items()}
    return (f"On the three kinds that were shown the two stand at {r['shown'][0]:.2f} and {r['shown'][1]:.2f}; "
            f"on the twelve that the generalist knew at {r['knew'][0]:.2f} and {r['knew'][1]:.2f}; "
            f"and of the questions about the book the VLM still answers {r['book'][0]:.2f} with the stop-gradient "
            f"and {r['book'][1]:.2f} without it.")


def scored(form, result):
    """{"right", "of", "brier"}. Brier: mean of (confidence - was it right)^2. 0 is perfect; guessing (a third sure, a third right)
    gets .22."""
    right = [form["higher"][name] == row["higher"] for name, row in result.items()]
    return {"right": sum(right), "of": len(right), "brier": round(float(np.mean([(form["sure"][name] / 100 - hit) ** 2
                                                                                   for name, hit in zip(result, right, strict=True)])), 4)}


def report(result, form=None):
    lines = [f"{'':54s}detached  through  difference"]
    for name, row in result.items():
        low, high = row["difference"][1:]
        apart = (f"{row['difference'][0]:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if low < high else "") if name != "speed"
                 else f"x {row['detached'] / row['through']:.2f}")
        digits = 0 if name == "speed" else 2
        lines.append(f"{MEASURED[name]:54s}{row['detached']:8.{digits}f}{row['through']:9.{digits}f}  {apart}"
                     + (f"   you said: {form['higher'][name]}{'' if form['higher'][name] == row['higher'] else ' (wrong)'}" if form else ""))
    return "\n".join([*lines, "", sentence(result)])


def class_table(forms, result):
    """What a class expected, and what came out."""
    lines = [f"{len(forms)} forms", f"{'':54s}detached  through  equal   came out   wrong, though {SURE} % sure or more"]
    for name, row in result.items():
        said = [form["higher"][name] for form in forms]
        wrong = sum(form["sure"][name] >= SURE and form["higher"][name] != row["higher"] for form in forms)
        lines.append(f"{MEASURED[name]:54s}" + "".join(f"{said.count(arm):8d}" for arm in ANSWERS.values()) + f"   {row['higher']:11s}{wrong}")
    return "\n".join(lines)


def ladder(folder, rungs, given=()):
    """One run for each rung, after the other: what is trained, and what came out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in rungs:
        flags, trained = LADDER[name]
        out = (folder / f"rung-{name}").resolve()
        print(f"\n{name}: {trained}", flush=True)
        job = start(out, [*flags, *EACH, *given], os.cpu_count())
        try:
            if job.wait():
                raise ValueError(f"{name} was stopped, or failed: {Path(f'{out}.log').read_text()[-1000:]}")
        finally:
            job.terminate()
        summary = compare.read_json(out / "summary.json")
        print(f"  measured: success {summary['success']['seen']['rate']:.2f} on the twelve kinds, "
              f"{summary['success']['new_both']['rate']:.2f} on new ones; "
              f"the book {book(summary['vqa_before']):.2f} -> {book(summary['vqa_after']):.2f}, "
              f"robot pictures {book(summary['vqa_before_robot']):.2f} -> {book(summary['vqa_after_robot']):.2f}; "
              f"{summary['total_seconds']:.0f} s", flush=True)


def same_but_for_the_line(flags):
    """The settings of both arms. ValueError if they differ by more than the line, or if that does not differ."""
    c = {arm: configuration.parse([*own, *flags, "--device", "cpu"]) for arm, own in ARMS.items()}
    detached, through = c.values()
    if through != replace(detached, insulate=False) or not detached.insulate or through.updates != detached.updates:
        raise ValueError("--train sets what the arms are told apart by; leave out --insulate, --recipe and --expert-updates")
    return detached


def main():
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3:])
        return
    parser = program.parser(__doc__)
    parser.add_argument("action", nargs="?", choices=("all", "predict", "lock", "run", "class", "ladder"), default="all")
    parser.add_argument("files", nargs="*", help="forms (JSON); for ladder: rungs")
    parser.add_argument("--form", action="store_true", help="predict: write an empty form, to fill in by hand")
    parser.add_argument("--folder", default=str(FOLDER), help="where the runs and the page are written")
    parser.add_argument("--json", action="store_true", help="all, run: print the result as JSON (what is told on the way goes to stderr)")
    parser.add_argument("--train", default="", help='flags of nano_ki.train for all runs, in quotes: --train="--steps 200"')
    args = parser.parse_intermixed_args()
    folder, flags, count = Path(args.folder), shlex.split(args.train), len(args.files)
    if args.action in ("predict", "lock", "class") and not count or count > 1 and args.action in ("all", "predict", "run"):
        raise ValueError(f"{args.action} wants {'one file' if args.action == 'predict' else 'files'}, got {count}")
    if args.action == "ladder":
        if unknown := set(args.files) - set(LADDER):
            raise ValueError(f"there is no rung {min(unknown)!r}; choose from {', '.join(LADDER)}")
        ladder(folder, args.files or LADDER, flags)
    elif args.action == "predict":
        path = Path(args.files[0])
        form = empty_form(path.stem)
        if path.exists() or forms.before(form, path):
            raise ValueError(f"{path} {'is there already' if path.exists() else 'was locked before'}; name another file")
        if args.form:
            program.write_json(path, form)
        else:
            lock(ask(form), path)
    elif args.action == "lock":
        for path in args.files:
            lock(complete(forms.read(path, LAB)), path)
    elif args.action == "class":
        result = result_of(folder)
        print(class_table(forms.of_class(args.files, complete, LAB), result))
    else:
        c = same_but_for_the_line(flags)
        form = forms.locked(forms.read(args.files[0], LAB), complete, LAB) if count else None
        with program.claimed(folder / "running.json", f"the folder {folder}"):
            if args.action == "all" and not form:
                form = ask(empty_form("me"))
                form = forms.lock(form, folder / f"form-{form['id'][:8]}.json")
            watch_both(folder, ["--check-every", str(max(1, c.steps // POINTS)), *flags],
                       lambda line: print(line, file=sys.stderr if args.json else sys.stdout, flush=True))
        result = result_of(folder)
        score = {"score": scored(form, result)} if form else {}
        program.write_json(folder / "result.json", {**result, **score, "flags": flags, "commit": program.commit()})
        print(json.dumps({**result, **score}, indent=1) if args.json else report(result, form))
        if form and not args.json:
            print("\n{right} of {of} right; Brier score {brier:.2f} (0 is perfect, .22 is guessing)".format(**score["score"]))


if __name__ == "__main__":
    program.run(main)
