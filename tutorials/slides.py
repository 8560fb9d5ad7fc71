"""The slides for the 90 minutes of TEACHING.md, as one HTML file that opens from disk.

    python -m tutorials.slides slides.html          # arrow keys or a tap; N: notes; printed, one slide a page

Pictures and numbers come from tutorials/drawings and tutorials/results, so that slides and pages say the same.
"""
import base64
import html
import io
from pathlib import Path

from PIL import Image

from nano_ki import program
from tutorials.studies import claims

HERE = Path(__file__).parent
# A slide: minutes, title, lines, picture ("" for none; "... lower": its lower half), what the teacher says and does. Lines that begin with $ are commands.
SLIDES = [
    (0, "Who may change what the VLM knows?",
     ["Knowledge insulation, in 90 minutes",
      "A robot policy made from a vision-language model, and one line of code"], "",
     "The room has nano_ki installed. Nobody has trained anything."),
    (1, "A policy you can talk to", ["$ python -m nano_ki.play", "Three policies push at the same table",
                                     "Type: push the blue disc to the left. Ask: where is the blue disc?",
                                     "Then: push the cyan ring to the left. Ask: where is the cyan ring?",
                                     "New scene, the command again, the question again. Which of the three has lost something?"], "",
     "Two minutes alone, then collect: what does post_through do well, and what does it say? Do not explain yet. It pushes most "
     "blue discs (a kind that it was trained on last), few cyan rings, and hardly answers. The command puts the ring on the table: "
     "ask after it."),
    (8, "What is inside", ["The VLM reads a picture and words, and leaves keys and values in each layer: its memory",
                           "The action expert reads the memory and turns noise into motion",
                           "FAST tokens: a motion, as a few words of a code. The VLM learns to say them"], "results/model.png",
     "Two losses: cross-entropy for the VLM's words and tokens, flow for the expert. Follow one black arrow from the picture to the motion. Then the coloured ones: who is trained by which loss?"),
    (12, "Flow matching in one picture", ["Noise at t = 0, the chunk at t = 1", "Trained at one random t, used at several"],
     "drawings/flow.png", "Page 04. Ask: why not predict the chunk at once? (Two right ways: the mean is wrong.)"),
    (16, "Who sees whom", ["The VLM never sees the expert", "The expert never sees the FAST tokens"],
     "drawings/mask.png", "Page 05. Cover one cell and ask what would look better in training and fail in use."),
    (20, "Predict, and lock it",
     ["A generalist: a VLM that has learned to say actions, for twelve kinds of object",
      "Post-training: it gets an expert, trained by flow alone on three other kinds (red star, green square, blue disc)",
      "Once with .detach(), once without. All else is equal", "$ python -m tutorials.lab_forgetting predict YOURNAMES.json"], "",
     "In pairs. Five measures, three answers each, and how sure. At the end it prints a code: collect the codes before anybody runs. "
     "A second code means a second form."),
    (27, "Run", ["$ python -m tutorials.lab_forgetting run YOURNAMES.json", "Watch runs/forgetting/page.png",
                 "What would a practitioner see, who has only the three kinds?"], "",
     "Two to four minutes; run it on your own machine, too. Meanwhile everybody sends you the form's file. A practitioner sees only the "
     "first curve."),
    (33, "What did the class expect?",
     ["$ python -m tutorials.lab_forgetting class *.json", "Where was the class sure, and wrong?"], "",
     "All forms in one folder. Show the class table; its last column counts who was sure, and wrong. Most expect that success on the "
     "shown kinds tells. There one seed may come out as equal or as through: both can be defended."),
    (38, "Measured, three seeds", ["Success and answers against the VLM's learning rate. Left: 600 steps. Right: 1,800",
                                   "Blue is all that a practitioner sees. The rate that is best there forgets"],
     "results/dial.png lower", "Question 6 of the claims (there with a subtask, too). Your lab is the left picture at rate .01. With the "
     "line there is nothing to choose."),
    (44, "The line: a bug hunt", ["In nano_ki it is one line. In your file it has a bug: find it, mend it",
                                  "tutorials/exercises/ex_06_1.py", "$ python -m tutorials.check 06.1"], "",
     "Five minutes. Then ask: what comes back through V? (--hint opens hints one by one.) The right line: nano_ki/model.py, "
     "search for THE STOP-GRADIENT."),
    (52, "How do you test it?", ["A test with both halves: flow reaches no weight of the VLM, cross-entropy reaches all",
                                 "A new expert's gates are 0: a test at step 0 passes on any model", "$ python -m nano_ki.probe"],
     "drawings/gates.png", "Page 07. In the probe's table look at the zeros alone: the gates are random, so sizes mean nothing. The lazy test, "
     "which looks at the flow loss alone, passes two wrong placements besides the paper's (TEACHING's key: 07). Let each pair write down "
     "what it expects of the next slide's four rungs."),
    (57, "And what teaches the VLM?",
     ["It begins at a VLM that has never seen the robot. Does it learn to push? What becomes of its answers?",
      "1. The flow loss alone, let through to the VLM", "2. The flow loss alone, detached",
      "3. Detached, and the VLM learns to say subtask and FAST tokens", "4. The same, with questions in each batch",
      "$ python -m tutorials.lab_forgetting ladder"], "drawings/tokens.png",
     "Four rungs of 250 steps, one seed each, three to six minutes. Each pair reads out what it expected of a rung before its line comes."),
    (65, "Four rungs, measured",
     ["1. Flow through it: it learns to push, and forgets", "2. Detached: it keeps everything, and learns little",
      "3. Subtask and FAST teach it to act, and erase", "4. Questions restore"], "",
     "Compare with what the machine has just printed. Who expected all four?"),
    (68, "Knowledge insulation",
     ["Detach, FAST, questions: two losses, one model", "Does the detach still matter, with all of it? Write it down"], "",
     "Before the next slide: a show of hands."),
    (70, "Joint training from the VLM, measured", ["800 steps, three seeds. Answers: where / colour / shape", "@ki", "@joint", "@pi0", "@frozen"], "",
     "It does not, in joint training: the gradient of the VLM's own loss is ten times longer, and questions bring back what flow moves (page 08). A result that a class should meet: "
     "honest measurement contradicts the name of the method, here."),
    (76, "When does it pay?", ["In post-training on few kinds, by flow alone: it keeps all that is not shown",
                               "Shown everything again: pushing is better without, answers are lost",
                               "A VLM that never saw the robot: detached and alone it starves", "Which row is yours? tutorials/08a_post_training.md"], "",
     "The map, too large for a wall: tutorials/results/map.png. Page 08a, the table: \"May the expert's gradient enter my VLM?\" Each pair finds the row of its own project; hear four pairs."),
    (84, "Before you trust somebody's .detach()",
     ["What would you test?", "Which curve would have warned you?",
      "At home: pages 04 to 08, and build the policy yourself: tutorials/my_vla.py"], "", "One sentence each. Collect them."),
]
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Knowledge insulation in 90 minutes</title><style>
* { box-sizing: border-box } body { margin: 0; font: 26px/1.45 system-ui, sans-serif; background: #fff; color: #1c1c1c }
section { display: none; min-height: 100vh; padding: 3vh 6vw; flex-direction: column; justify-content: center } section.now { display: flex } body:not(.notes) section.now { height: 100vh }
h1 { font-size: 1.6em; margin: 0 0 .5em } p { margin: .25em 0 } code { display: block; background: #f0f0f0; padding: .2em .5em; border-radius: .2em; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8em }
img { max-width: 100%; max-height: 62vh; min-height: 30vh; flex: 0 1 auto; object-fit: contain; object-position: left; margin-top: .6em; align-self: flex-start } aside { display: none; margin-top: 1em; padding-top: .5em; border-top: 2px solid #999; font-size: .7em; color: #555 } .notes aside { display: block }
footer { position: fixed; right: 1em; bottom: .4em; font-size: .55em; color: #666 } @media (max-width: 700px) { body { font-size: 18px } }
@media print { section { display: flex; page-break-after: always } footer { display: none } aside { display: block } }
</style></head><body>@SLIDES@<footer id="at"></footer><script>
const all = [...document.querySelectorAll("section")]; let at = Math.min(Math.max(0, parseInt(location.hash.slice(1)) - 1 || 0), all.length - 1);
function show(i) { at = Math.min(Math.max(0, i), all.length - 1); all.forEach((s, k) => s.classList.toggle("now", k === at)); location.replace("#" + (at + 1));
  document.getElementById("at").textContent = all[at].dataset.from + " min, slide " + (at + 1) + " of " + all.length + " (arrows; N: notes)"; }
addEventListener("keydown", e => { if (["ArrowRight", "PageDown", " "].includes(e.key)) show(at + 1); else if (["ArrowLeft", "PageUp"].includes(e.key)) show(at - 1); else if (e.key === "n" || e.key === "N") document.body.classList.toggle("notes"); });
addEventListener("click", e => show(at + (e.clientX > innerWidth / 3 ? 1 : -1))); show(at);
</script></body></html>"""


def arms():
    """{arm: what it is, and its outcome}, in the words of README's table."""
    lines, told = claims.by_arm(claims.read("arms")), {**claims.TOLD, "joint": "the same without the detach"}
    return {a: f"{told[a]}: {claims.mean(mine, 'success', 'seen', 'rate'):.2f} on seen objects, "
               f"{claims.mean(mine, 'success', 'new_both', 'rate'):.2f} on new ones, "
               f"answers {claims.answers(mine, 'vqa_after')}" for a, mine in lines.items() if a in told}


def slide(minute, title, lines, picture, notes, known):
    def line(text):
        if text.startswith("@"):
            name = text[1:]
            return f"<p><b>{name}</b>: {html.escape(known[name])}</p>"
        return f"<code>{html.escape(text.removeprefix('$ '))}</code>" if text.startswith(("$", "    ")) else f"<p>{html.escape(text)}</p>"
    image = ""
    if picture:
        name, _, lower = picture.partition(" ")                  # "results/dial.png lower": its lower half
        with Image.open(HERE / name) as whole, io.BytesIO() as file:
            (whole.crop((0, whole.height // 2, *whole.size)) if lower else whole).save(file, "PNG")
            image = f'<img alt="{html.escape(title)}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
    return (f'<section data-from="{minute}"><h1>{html.escape(title)}</h1>{"".join(map(line, lines))}{image}'
            f'<aside>{html.escape(notes)}</aside></section>')


def main():
    parser = program.parser(__doc__)
    parser.add_argument("file", help="the HTML file to write")
    path, known = parser.parse_args().file, arms()
    program.write_whole(path, lambda f: f.write(PAGE.replace("@SLIDES@", "".join(slide(*s, known) for s in SLIDES)).encode()))
    print(f"{path}: {len(SLIDES)} slides")


if __name__ == "__main__":
    program.run(main)
