"""Type an instruction and watch policies push, ask their VLMs: one page in the browser, served by this machine to itself.

    python -m nano_ki.play                          # the policies that ship, and the runs under runs/
    python -m nano_ki.play a/run b/run              # the policies that ship, and these runs
    python -m nano_ki.play a/run --html report.html # no server: runs as one file, with curves, outcomes and rollouts

The page (play.html) holds the scene and sends it along with each request; nothing is kept here. A request is a table and
a sentence, an answer is what a policy thinks: its picture, its plan while noise becomes motion, the VLM's words.
"""
import base64
import difflib
import io
import json
import re
import sys
import threading
import time
from contextlib import suppress
from copy import copy
from dataclasses import asdict, replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nano_ki import checkpoint, episodes, evaluate, flow, language, probe, program, render, world
from nano_ki.config import refuse
from nano_ki.language import END, FIRST_FAST, NUMBER0
from nano_ki.vit import HEAD, STRIDE, norm, queries_keys_values

SHIPPED = {"ki": "knowledge insulation: a VLM that learned to act by FAST tokens, and an expert, with the stop-gradient",
           "post": "a generalist, then flow alone on three other kinds of object, with the stop-gradient",
           "post_through": "the same without the stop-gradient: flow went through its VLM"}          # (files in data/)
MOST, PATIENCE = 20_000, 30          # bytes in a request; seconds that it waits for the one before, or for its own bytes
PATHS = "/scene", "/aim", "/plan", "/ask"
SETS, SCENES = world.TEST_SETS[:-1], 3         # ("long" is two commands in a row: give them); scenes of each set in a report
EVERYDAY = {"red": "crimson scarlet ruby", "green": "lime olive", "blue": "navy azure", "yellow": "gold lemon", "cyan": "turquoise teal",
            "purple": "violet lilac indigo magenta", "orange": "amber brown", "pink": "rose magenta", "disc": "disk ball circle coin",
            "ring": "circle hoop", "square": "box block cube", "triangle": "pyramid cone", "cross": "plus", "left": "west", "right": "east",
            "top": "north upper", "bottom": "south lower", "push": "move shove slide bring put", "where": "locate", "colour": "color"}
load = cache(checkpoint.load_model)

# What a policy thinks

@torch.no_grad()
def plan(model, tables, seed=0, cloth=None):
    """One look, one plan, and its first waypoints carried out: a dict for JSON. tables: one, and it is moved; seed: of
    the noise; cloth: another contrast of the table's cloth."""
    c, size, ms = model.config, model.fast.horizon * model.fast.dims, {}

    def timed(name, work):
        began, result = time.perf_counter(), work()
        ms[name] = round(1000 * (time.perf_counter() - began), 1)
        return result
    image, prompt = inputs(model, tables, cloth)
    found = {"picture": png(image[0].numpy()), "plan": [], "ms": ms}
    if c.fast_loss or c.recipe == "post":              # (the VLM has learned FAST, or the generalist it was)
        speaker = copy(model)                          # (a generalist begins with a place, whatever its expert reads)
        speaker.said = language.LANDING * (c.subtask or not c.fast_loss)
        ids = timed("tokens", lambda: model.vlm.generate((image, prompt), speaker.said + size + 1, speaker.allowed, END))[0].numpy()
        chunk = model.fast.decode(fast := ids[ids >= FIRST_FAST] - FIRST_FAST)
        found |= {"tokens": fast.tolist(), "spoken": short(chunk[:, :2]), "landing": short(place(*ids[:2])) if c.subtask else None}
    if c.flow_loss:
        memory = timed("read", lambda: model.remember(image, prompt))
        noise = torch.empty(1, 1, model.fast.horizon, model.fast.dims).normal_(generator=torch.Generator().manual_seed(seed))
        steps, times = [], flow.times(c.euler_steps)

        def velocity(x, t):
            steps.append(x)
            return model.expert(x, t, memory)
        steps.append(timed("flow", lambda: flow.euler(velocity, noise, times)))
        found["attention"] = [round(v, 4) for v in attention(model, steps[-2], times[-2], memory)[0].tolist()]
        found["plan"] = [short(model.fast.restore(x[0, 0].numpy())[:, :2]) for x in steps]
        chunk = model.fast.restore(steps[-1][0, 0].numpy())
    frames = []
    for waypoint in chunk[:c.execute]:
        world.step(tables, waypoint[None], c.rate)
        frames.append({"puck": short(tables.puck[0]), "finger": short(tables.finger[0]), "down": bool(tables.pressed[0])})
        if done := bool(world.success(tables)[0]):
            break
    return found | {"chunk": short(chunk), "frames": frames, "done": done, "time": world.HORIZON * c.rate}

def attention(model, x, t, memory):
    """How much the expert's action tokens, x [B, 1, H, A] at time t, look at each picture token: [B, P], the mean over layers,
    heads and tokens. (The rest of their attention goes to words and to each other.)"""
    looks = []

    def look(block, given):
        x, modulation, (keys, _), _ = given
        scale, shift, *_ = modulation.unbind(-3)
        q, own, _ = queries_keys_values((norm(x) * scale + shift).flatten(1, 2), block.q, block.k, block.v)
        looks.append((q @ torch.cat((keys, own), 2).mT * 10 / HEAD).softmax(-1))
    hooks = [block.register_forward_pre_hook(look) for block in model.expert.blocks]
    model.expert(x, t.expand(x.shape[:2]), memory)
    for hook in hooks:
        hook.remove()
    return torch.stack([weights[..., :(model.config.image // STRIDE) ** 2].mean((1, 2)) for weights in looks]).mean(0)

@torch.no_grad()
def ask(model, tables, text, cloth=None):
    """The VLM's answer to a question about a table: its words, the picture, and the places in the words, or in the question."""
    prompt = understood(text)
    verb = language.WORDS[prompt[language.VERB]]
    refuse(verb not in language.QUESTIONS, f"{text!r} is no question about one picture; ask for example: where is the red star? "
           "what colour is at 12 20? describe the picture")
    image, began = inputs(model, tables, cloth)[0], time.perf_counter()
    ids = model.vlm.generate((image, torch.from_numpy(prompt[None])), language.ANSWER, end=END)[0].tolist()
    marks, label, numbers = [], [], []
    for i in ids[:ids.index(END)] if END in ids else ids:
        (numbers if NUMBER0 <= i < FIRST_FAST else label).append(i)
        if len(numbers) == 2:
            marks.append({"xy": short(place(*numbers[::-1 if verb == "find" else 1])), "label": language.answer_text(label)})
            label, numbers = [], []
    if verb in ("colour", "shape"):
        marks = [{"xy": short(place(*prompt[[language.X, language.Y]])), "label": language.answer_text(ids) or "(nothing)"}]
    ms = round(1000 * (time.perf_counter() - began), 1)
    return {"answer": language.answer_text(ids), "marks": marks, "picture": png(image[0].numpy()), "ms": ms}

def inputs(model, tables, cloth=None):
    """evaluate.inputs, under another cloth."""
    view = copy(model)
    view.config = model.config if cloth is None else replace(model.config, cloth=cloth)
    return evaluate.inputs(view, tables)

def place(x, y):
    """Table coordinates of two location words (ids): the middle of the bin."""
    return (np.array((x, y)) - NUMBER0 + .5) * 2 * world.HALF / language.BINS - world.HALF

def short(array):
    return np.round(np.asarray(array, float), 3).tolist()

def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()

# What the page sends. ValueError, as a sentence for its reader, for all that is no table, no words, no number.

def table_of(given):
    """{"pucks": [{"colour", "shape", "x", "y"}, ...], "finger": [x, y], "down": bool} -> Tables of one (without a command)."""
    pucks = given.get("pucks") if isinstance(given, dict) else None
    refuse(not isinstance(pucks, list) or not 1 <= len(pucks) <= language.MOST_PUCKS, f"a table has 1 to {language.MOST_PUCKS} pucks, in a list")
    for p in pucks:
        refuse(not isinstance(p, dict) or p.get("colour") not in world.COLOURS or p.get("shape") not in world.SHAPES,
               f"a puck has a colour ({', '.join(world.COLOURS)}) and a shape ({', '.join(world.SHAPES)})")
    kind = [(world.COLOURS.index(p["colour"]), world.SHAPES.index(p["shape"])) for p in pucks]
    xy, finger = [(p.get("x"), p.get("y")) for p in pucks], given.get("finger")
    refuse(not isinstance(finger, list) or len(finger) != 2, "a finger has two coordinates")
    refuse(not all(type(v) in (int, float) and abs(v) <= world.HALF for pair in (*xy, finger) for v in pair), f"coordinates are numbers from {-world.HALF} to {world.HALF}")
    refuse(type(given.get("down")) is not bool, "down is true or false: whether the finger is pressed")
    return world.Tables(np.array([xy], np.float32).clip(-world.PUCK_LIMIT, world.PUCK_LIMIT), np.array([kind]), np.array([finger], np.float32),
                        np.array([given["down"]]), np.zeros(1, int), np.zeros(1, int))

def json_of(tables):
    """The inverse of `table_of`, and the command in words."""
    pucks = [dict(colour=world.COLOURS[c], shape=world.SHAPES[s], x=x, y=y) for (c, s), (x, y) in zip(tables.kind[0], short(tables.puck[0]), strict=True)]
    return {"table": {"pucks": pucks, "finger": short(tables.finger[0]), "down": bool(tables.pressed[0])}, "words": language.instruction(tables)[0]}

def understood(text):
    """language.parse; an unknown word is refused with those that fit: by their meaning, by their spelling, or of a kind that is missing."""
    refuse(not isinstance(text, str), "a command is a sentence, and so is a question")
    words = re.findall(r"(?<!\S)-\d+|[^\W_]+", text.lower())
    slots = {language.SLOT_OF.get(w): w for w in words}
    needs = language.SAID.get(verb := slots.get(language.VERB), ("VERB", "COLOUR", "SHAPE", "GOAL"))
    fit = [w for w, slot in language.SLOT_OF.items() if slot not in slots and language.SLOT_NAMES[slot] in needs and w != "went"]
    for word in (w for w in words if not (w in language.SLOT_OF or w in language.FILLERS or f"<{w}>" in language.NUMBERS)):
        refuse(word.lstrip("-").isdecimal(), f"unknown word {word!r} in {text!r}; numbers are 0 to {language.BINS - 1}")
        near = ([w for w, others in EVERYDAY.items() if word in others.split()] or difflib.get_close_matches(word, fit, 3, .75)
                or [w for w in fit if language.SLOT_OF[w] == language.SLOT_OF[fit[0]]] or [re.sub("[{}]", "", language.SENTENCES[verb])])
        refuse(True, f"unknown word {word!r} in {text!r}; say: {' or '.join(near)}")
    return language.parse(text)

def aim(tables, text, put=False):
    """Give one table a command in words, in place. put: an object that is not there takes the place of the last one."""
    prompt = understood(text)
    refuse(prompt[language.VERB] != language.ID["push"], f"{text!r} is no command; say: push the COLOUR SHAPE to the GOAL")
    kind = prompt[[language.COLOUR, language.SHAPE]] - (language.COLOUR0, language.SHAPE0)
    if put and not (tables.kind[0] == kind).all(1).any():
        tables.kind[0, -1] = kind
    there = (tables.kind[0] == kind).all(1)
    asked, *names = (f"{world.COLOURS[c]} {world.SHAPES[s]}" for c, s in (kind, *tables.kind[0]))
    refuse(not there.any(), f"there is no {asked} on this table, but {', '.join(names)}")
    tables.target[:], tables.goal[:] = there.argmax(), prompt[language.GOAL] - language.GOAL0

def answer(path, given, policies):
    """What the server says to a request to one of PATHS, a dict. ValueError for a bad one."""
    seed, name = given.get("seed", 0), given.get("policy")
    refuse(type(seed) is not int or not 0 <= seed < 2 ** 31, f"seed is {seed!r}; wanted a whole number from 0 to {2 ** 31 - 1}")
    if path == "/scene":
        refuse(given.get("set") not in SETS, f"set is {given.get('set')!r}; choose from {', '.join(SETS)}")
        return json_of(evaluate.test_scenes(given["set"], 1, seed))
    refuse(type(clean := given.get("clean", False)) is not bool, "clean is true or false: whether the camera sees no cloth")
    tables, cloth = table_of(given.get("table")), 0. if clean else None
    if path == "/aim":
        aim(tables, given.get("words"), put=True)
        return json_of(tables)
    refuse(not isinstance(name, str) or name not in policies, f"policy is {name!r}; choose from {', '.join(policies)}")
    if path == "/plan":
        aim(tables, given.get("words"))
        return plan(load(policies[name]), tables, seed, cloth)
    return ask(load(policies[name]), tables, given.get("words"), cloth)

class Handler(BaseHTTPRequestHandler):
    """GET / is the page; a POST of JSON to /scene, /aim, /plan or /ask is answered by `answer`, one at a time."""
    timeout, busy, policies = PATIENCE, threading.Lock(), {}

    def do_GET(self):
        if self.local():
            if self.path.split("?")[0] == "/":
                return self.reply(200, page({"policies": {name: SHIPPED.get(name, "a run") for name in self.policies}}), "text/html")
            self.send_error(404, f"nothing is at {self.path[:80]}; the page is at /")

    def do_POST(self):
        if not self.local():
            return
        size, *more = self.headers.get_all("Content-Length") or [""]
        if self.path not in PATHS:
            return self.send_error(404, f"nothing is at {self.path[:80]}")
        if more or "Transfer-Encoding" in self.headers or not (size.isascii() and size.isdigit() and len(size) < 9 and int(size) <= MOST):
            return self.send_error(413 if size.isdigit() else 411, f"a request says its length, once, and it is at most {MOST} bytes")
        if self.headers.get_content_type() != "application/json":        # (which no page of another site may send)
            return self.send_error(415, "a request is application/json")
        try:
            given = json.loads(self.rfile.read(int(size)))
            refuse(not isinstance(given, dict), "a request is a JSON object")
        except TimeoutError:
            return self.send_error(408, f"the request is shorter than it says ({int(size)} bytes), and no more came in {self.timeout} s")
        except (ValueError, RecursionError) as error:
            return self.send_error(400, f"that is no request: {program.first_line(error)}")
        if not self.busy.acquire(timeout=PATIENCE):
            return self.send_error(429, "busy with other requests; try again")
        try:
            self.reply(200, answer(self.path, given, self.policies))
        except (ValueError, OSError) as error:
            self.send_error(400, program.first_line(error))
        finally:
            self.busy.release()

    def local(self):
        """Whether the browser asked for this machine by name. (Another site may give its own name this address.)"""
        host, _, port = (self.headers.get("Host") or "").lower().partition(":")
        return host in ("127.0.0.1", "localhost") and (port.isdigit() or not port) or self.send_error(403, "this server answers 127.0.0.1 alone")

    def reply(self, status, content, kind="application/json"):
        body = (content if isinstance(content, str) else json.dumps(content)).encode(errors="replace")
        self.send_response(status)
        for name, value in (("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", len(body)), ("Cache-Control", "no-store")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def send_error(self, code, message=None, explain=None):          # (http.server calls it, too, for what is no HTTP or another method)
        self.close_connection = True
        self.reply(code if code < 500 else 405, {"error": message or "that is no request that this server knows"})

    def log_message(self, *_):
        pass

class Server(ThreadingHTTPServer):
    def handle_error(self, request, address):                        # (a browser that went away is no error)
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, address)

# The page, and reports

def page(data):
    """play.html with its data: for a server {"policies": {name: what it is}}, for a report {"runs": [gather]}."""
    data |= {"half": world.HALF, "puck": world.PUCK, "finger": world.FINGER, "goals": dict(zip(world.GOALS, short(world.PLACES), strict=True)), "sets": SETS,
             "rgb": {name: (255 * rgb).astype(int).tolist() for name, rgb in zip(world.COLOURS, render.RGB, strict=True)}, "bins": language.BINS}
    data = json.loads(json.dumps(data), parse_constant=lambda name: None)              # (JSON has no NaN)
    text = json.dumps(data).replace("<", "\\u003c")                                    # ("<" inside a script must not end it)
    return Path(__file__).with_suffix(".html").read_text(encoding="utf-8").replace("@DATA@", text)

def gather(path, name=None):
    """All that a report shows of one run. name: what it is called (default: its folder's name)."""
    path, summary, scenes = Path(path), None, []
    model = checkpoint.load_model(path)
    metrics = checkpoint.read_metrics(file) if (file := path / "metrics.jsonl").exists() else []
    with suppress(OSError, ValueError):                        # (of a run that is not finished there is none)
        summary = found if "success" in (found := json.loads((path / "summary.json").read_text())) else None
    batch, gradients, insulate = episodes.Data(replace(model.config, episodes=200), model.fast).batch(), {}, model.insulate
    for way, model.insulate in (("with the stop-gradient", True), ("without", False)):
        gradients[way] = probe.gradient_norms(model, batch)
    model.insulate = insulate
    for key in SETS:
        start = evaluate.test_scenes(key, SCENES, evaluate.CHECK_SEED, model.config.pucks)
        for tables in (start.take([i]) for i in range(SCENES)):
            scene, left = {"set": key, **json_of(tables), "plans": []}, world.HORIZON * model.config.rate
            while left > 0:
                scene["plans"].append(new := plan(model, tables))
                left = 0 if new["done"] else left - len(new["frames"])
            scenes.append(scene)
    return {"name": name or path.name, "config": asdict(model.config), "metrics": metrics, "summary": summary, "gradients": gradients,
            "scenes": sorted(scenes, key=lambda s: s["plans"][-1]["done"])}

def named(folders):
    """{name: folder}: each by its last part, or by all of it where another has the same."""
    last = [Path(folder).name for folder in folders]
    return {name if last.count(name) == 1 else str(folder): folder for name, folder in zip(last, folders, strict=True)}

def report(runs, path):
    """Write a report of runs, {name: folder}. ValueError, with its name, for one that cannot be played."""
    refuse(not path or Path(path).is_dir(), f"--html is {str(path)!r}; name a file")
    found = []
    for name, folder in runs.items():
        try:
            found.append(gather(folder, name))
        except ValueError as error:
            raise ValueError(f"{folder}: {program.first_line(error)}") from None
    text = page({"runs": found})
    program.write_whole(path, lambda f: f.write(text.encode(errors="replace")))       # (a folder's name may be no text)
    return f"{path}: {len(text) / 1e6:.1f} MB, {len(runs)} runs"

def main():
    parser = program.parser(__doc__)
    parser.add_argument("runs", nargs="*", help="folders of runs (default: those under runs/)")
    parser.add_argument("--html", help="write a report of the runs to this file, and end")
    parser.add_argument("--port", type=int, default=0, help="to serve at (0 to 65535; default 0: any that is free)")
    args = parser.parse_args()
    refuse(not 0 <= args.port < 2 ** 16, f"--port is {args.port}; wanted 0 to 65535")
    refuse(args.html is not None and not args.runs, "--html needs runs: which ones?")
    torch.set_num_threads(1)               # (as fast on idle cores for one robot, and much faster on busy ones)
    if args.html is not None:
        return print(report(named(args.runs), args.html))
    runs = args.runs or sorted(str(path.parent) for path in Path("runs").glob(f"**/{checkpoint.LATEST}"))
    shipped, own = {name: program.ROOT / "data" / f"{name}.pt" for name in SHIPPED}, {str(Path(run).resolve()) if run in SHIPPED else run: Path(run) for run in runs}
    Handler.policies = own | shipped if args.runs else shipped | own               # (the first three are shown at once)
    try:
        server = Server(("127.0.0.1", args.port), Handler)
    except OSError as error:
        raise OSError(f"cannot serve at port {args.port} ({error.strerror}); choose another --port, or none") from None
    with server:
        for run in args.runs:
            load(Path(run))                # (what is wrong with it is said here)
        print(f"open http://127.0.0.1:{server.server_port} in a browser; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        finally:
            Handler.busy.acquire(timeout=PATIENCE)             # (what is being computed is let end)

if __name__ == "__main__":
    program.run(main)
