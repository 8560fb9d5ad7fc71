"""The page: what it shows is what the policy does, what is sent to it is checked, and it works in a browser (headless Chromium)."""
import base64
import contextlib
import copy
import html
import http.client
import io
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, command
from PIL import Image

from nano_ki import checkpoint, evaluate, language, play, train, world
from nano_ki import config as configuration

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two tiny runs, {name: folder}."""
    out = tmp_path_factory.mktemp("runs")
    for name, options in (("ki", {}), ("<pi0>", {"recipe": "pi0", "vlm_samples": 0})):
        train.train(configuration.make(**{**TINY, **options}, steps=40, out=str(out / name)))
    return {name: out / name for name in ("ki", "<pi0>")}


@pytest.fixture(scope="module")
def page(runs):
    """A report of them: the file, and what is on it."""
    path = runs["ki"].parent / "report.html"
    assert play.report(runs, path).endswith(" MB, 2 runs")
    return path, json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.S)[1])


@pytest.fixture(scope="module")
def server():
    """The page as `python -m nano_ki.play` serves it, with the policies that ship."""
    play.Handler.policies = {name: ROOT / "data" / f"{name}.pt" for name in play.SHIPPED}
    with play.Server(("127.0.0.1", 0), play.Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def ask(port, path, body=None, method="POST", **headers):
    """(status, what was said)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    connection.request(method, path, body, {"Content-Type": "application/json"} | headers)
    reply = connection.getresponse()
    said = reply.read().decode()
    return reply.status, json.loads(said) if reply.getheader("Content-Type").startswith("application/json") else said


TABLE = {"pucks": [{"colour": "red", "shape": "star", "x": .1, "y": -.3},
                   {"colour": "cyan", "shape": "ring", "x": -.2, "y": .5}], "finger": [0, .9], "down": False}
ONE = {"policy": "ki", "table": TABLE, "words": "push the cyan ring to the left"}


# -- what it shows ------------------------------------------------------------------------------------


def test_the_attention_drawn_is_the_attention_there_is(model):
    """Keys that all are equal look alike; hooks are gone afterwards."""
    image, prompt = evaluate.inputs(model, evaluate.test_scenes("seen", 3))
    with torch.no_grad():
        memory = model.vlm(model.vlm.prefix(image, prompt))[1]
        x, t = torch.randn(3, 1, 16, 3, generator=torch.Generator().manual_seed(0)), torch.tensor(.3)
        near = play.attention(model, x, t, memory)
        masked = [(torch.cat((k[:, :, :36] * 0, k[:, :, 36:]), 2), v) for k, v in memory]
        flat = play.attention(model, x, t, masked)
    assert near.shape == (3, 36) and (near.std(1) > 3 * flat.std(1)).all()
    assert not any(block._forward_pre_hooks for block in model.expert.blocks)


@pytest.mark.parametrize("name", play.SHIPPED)
def test_a_plan_is_what_the_policy_does(name):
    """The plan shown is the chunk that model.act and act_tokens give, and the frames are the world's."""
    model = checkpoint.load_model(ROOT / "data" / f"{name}.pt")
    tables = evaluate.test_scenes("new_both", 1)
    look = evaluate.inputs(model, tables)
    chunk = model.fast.restore(model.act(*look, torch.Generator().manual_seed(5)).numpy())[0]
    by_hand = tables.take(slice(None))
    found = play.plan(model, tables, seed=5)
    assert np.allclose(found["chunk"], chunk, atol=2e-3) and np.allclose(found["plan"][-1], chunk[:, :2], atol=2e-3)
    assert len(found["plan"]) == model.config.euler_steps + 1 and set(found["ms"]) == {"tokens", "read", "flow"}
    for waypoint in chunk[:len(found["frames"])]:
        world.step(by_hand, waypoint[None])
    assert np.allclose(by_hand.puck[0], found["frames"][-1]["puck"], atol=2e-3) and found["done"] == bool(world.success(by_hand)[0])
    if model.config.fast_loss:
        assert np.allclose(found["spoken"], model.fast.restore(model.act_tokens(*look).numpy())[0, :, :2], atol=2e-3)
    assert ((found["landing"] is not None) == model.config.subtask
            and play.short(model.fast.decode([found["tokens"]])[0, :, :2]) == found["spoken"])


def test_what_ships_says_what_it_is_for():
    """`ki` pushes new objects. `post` answers, `post_through` has forgotten; on what they were shown both push."""
    right, done = {}, {}
    for name in play.SHIPPED:
        path = ROOT / "data" / f"{name}.pt"
        made = json.loads((ROOT / "data" / f"{name}.pt.json").read_text())
        assert path.stat().st_size <= 5e6 and made["commit"] and f"--ship data/{name}.pt" in made["command"]
        model = checkpoint.load_model(path)
        right[name] = evaluate.vqa(model.vlm, "book", 100)["where"]
        shown = evaluate.test_scenes("new_both" if name == "ki" else "3", 60)
        done[name] = world.success(evaluate.rollout(evaluate.policy_of(model), shown)).mean()
    assert right["ki"] > .9 and right["post"] > .9 and right["post_through"] < .3 and min(done.values()) > .7, (right, done)


def test_a_question_is_answered_in_words_and_places(server):
    """The place is where the puck is, whichever way round the words say it; `post_through` cannot tell."""
    for words in ("where is the cyan ring?", "find the cyan ring", "describe the picture"):
        status, said = ask(server, "/ask", {**ONE, "words": words, "clean": True})
        assert status == 200 and np.abs(np.array(said["marks"][0]["xy"]) - (-.2, .5)).max() < .1, (words, said)
    assert [m["label"] for m in said["marks"]] == ["cyan ring", "red star"]
    x, y = (int(v) for v in language.to_bin((-.2, .5)))
    assert ask(server, "/ask", {**ONE, "words": f"what colour is at {x} {y}?", "clean": True})[1]["answer"] == "cyan"


@pytest.mark.parametrize("name", play.SHIPPED)
def test_a_question_about_a_place_marks_that_place_with_the_answer(server, name):
    """Whatever the VLM says, and the camera's picture comes along."""
    for what in ("colour", "shape"):
        said = ask(server, "/ask", {**ONE, "policy": name, "words": f"what {what} is at 12 20?"})[1]
        mark, = said["marks"]
        assert (language.to_bin(mark["xy"]) == (12, 20)).all() and mark["label"] == (said["answer"] or "(nothing)")
        with Image.open(io.BytesIO(base64.b64decode(said["picture"]))) as picture:
            assert picture.size == (48, 48)


def test_a_command_puts_what_is_not_there(server):
    status, said = ask(server, "/aim", {"table": TABLE, "words": "push the pink cross to the top"})
    assert status == 200 and said["words"] == "push the pink cross to the top" and said["table"]["pucks"][1]["colour"] == "pink"
    assert said["table"]["pucks"][0] == TABLE["pucks"][0]
    status, said = ask(server, "/plan", {**ONE, "words": "push the pink cross to the top"})
    assert status == 400 and said["error"] == "there is no pink cross on this table, but red star, cyan ring"


# -- what is sent to it -------------------------------------------------------------------------------


@pytest.mark.parametrize("change, says", [
    ({"words": "push the crimson ring to the left"}, "unknown word 'crimson'"),
    ({"words": 7}, "a command is a sentence"), ({"words": "where is the red star?"}, "is no command"),
    ({"policy": "none"}, "choose from ki, post"), ({"policy": ["ki"]}, "choose from ki, post"),
    ({"policy": "../ki"}, "choose from"), ({"seed": -1}, "seed is -1"), ({"seed": True}, "seed is True"),
    ({"table": None}, "1 to 4 pucks"), ({"table": TABLE | {"pucks": TABLE["pucks"] * 3}}, "1 to 4 pucks"),
    ({"table": TABLE | {"finger": [0]}}, "two coordinates"),
    ({"table": TABLE | {"finger": [0, float("nan")]}}, "numbers from -1.2"),
    ({"table": TABLE | {"finger": [0, 10 ** 400]}}, "numbers from -1.2"), ({"table": TABLE | {"down": 1}}, "true or false"),
    ({"table": TABLE | {"pucks": [{"colour": ["red"], "shape": {}, "x": 0, "y": 0}]}}, "a puck has a colour"),
    ({"table": TABLE | {"pucks": [TABLE["pucks"][0] | {"x": "0"}]}}, "numbers from")])
def test_a_bad_request_gets_a_sentence(server, change, says):
    status, said = ask(server, "/plan", {**ONE, **change})
    assert status == 400 and says in said["error"], said


@pytest.mark.parametrize("text, says", [
    ("push the crimson ring to the left", "'crimson'.*; say: red"), ("push the turquoise ring to the left", "'turquoise'.*; say: cyan"),
    ("push the violet ring to the left", "'violet'.*; say: purple"), ("push the red ring to the west", "'west'.*; say: left"),
    ("push the red ring to the north", "'north'.*; say: top"), ("push the red ball to the east", "'ball'.*; say: disc"),
    ("move the red disc to the top", "'move'.*; say: push"), ("where is the scarlet circle?", "'scarlet'.*; say: red"),
    ("where is the red circle?", "'circle'.*; say: disc or ring"), ("push the redd star to the left", "'redd'.*; say: red"),
    ("push the red star to the lefft", "'lefft'.*; say: left"), ("what color is at 12 20?", "'color'.*; say: colour"),
    # What is near to nothing is answered with what may stand there, or with the form.
    ("push the grey ring to the left", f"'grey'.*; say: {' or '.join(world.COLOURS)}"),
    ("push the big red ring to the left", "'big'.*; say: push the COLOUR SHAPE to the GOAL"),
    ("what colour is at 12 99?", "'99'.*; numbers are 0 to 31"), ("what colour is at 12 -3?", "'-3'.*; numbers are 0 to 31"),
    ("what colour is at twelve 20?", r"'twelve'.*; say: what colour is at X Y\?"),
    ("how are you?", "'how'.*; say: push or where.* or describe"),
    ("where is the red ring 32", "'32'.*; numbers are 0 to 31")])
def test_an_unknown_word_is_answered_with_those_that_fit(server, text, says):
    for path in ("/plan", "/aim") if text.startswith(("push", "move")) else ("/ask",):
        status, said = ask(server, path, {**ONE, "words": text})
        assert status == 400 and re.fullmatch(f"unknown word {says}", said["error"]), said


def test_all_words_offered_are_known_and_all_everyday_words_are_not():
    offered = {known: others.split() for known, others in play.EVERYDAY.items()}
    assert set(offered) <= {*world.COLOURS, *world.SHAPES, *world.GOALS, *language.QUESTIONS, "push"}
    assert not {word for others in offered.values() for word in others} & {*language.SLOT_OF, *language.FILLERS}


def test_a_body_that_does_not_come_is_answered(server, monkeypatch):
    """The connection stays open, and the rest of the request never comes."""
    monkeypatch.setattr(play.Handler, "timeout", .3)
    with socket.create_connection(("127.0.0.1", server), 60) as sock:
        sock.sendall(b"POST /plan HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{}")
        reply = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, said = reply.partition(b"\r\n\r\n")
    assert b" 408 " in head.split(b"\r\n")[0] and "shorter than" in json.loads(said)["error"], reply


def test_http_that_is_none(server):
    assert ask(server, "/plan", b"{", )[0] == 400 and ask(server, "/plan", b"[" * 19000)[0] == 400 and ask(server, "/plan", [1])[0] == 400
    assert ask(server, "/plan", b"x" * 30_000)[0] == 413 and ask(server, "/plan", ONE, **{"Content-Type": "text/plain"})[0] == 415
    assert (ask(server, "/nothing", ONE)[0] == 404 and ask(server, "/etc/passwd", method="GET")[0] == 404
            and ask(server, "/../data/ki.pt", method="GET")[0] == 404)
    assert ask(server, "/plan", ONE, Host="evil.example")[0] == 403 and ask(server, "/", method="GET", Host="evil.example:80")[0] == 403
    assert ask(server, "/plan", ONE, method="PUT")[0] == 405 and ask(server, "/", method="BREW")[0] == 405
    assert (ask(server, "/", method="GET")[0] == ask(server, "/?x=1", method="GET")[0] == 200
            and ask(server, "/", method="GET", Host="LOCALHOST:1")[0] == 200)
    assert ask(server, "/nothing", {})[0] == 404 and ask(server, "/", method="GET", Host="localhost:evil")[0] == 403
    assert ask(server, "/plan", {**ONE, "clean": "false"})[1]["error"].startswith("clean is true or false")
    for head, status in (("HEAD / HTTP/1.0\r\nHost: localhost\r\n\r\n", b" 405 "),
                         ("POST /plan HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                          "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b" 4")):
        with socket.create_connection(("127.0.0.1", server), 60) as sock:
            sock.sendall(head.encode())
            sock.shutdown(socket.SHUT_WR)
            reply = b"".join(iter(lambda sock=sock: sock.recv(65536), b""))
        assert status in reply.split(b"\r\n")[0] and (not head.startswith("HEAD") or reply.endswith(b"\r\n\r\n")), reply


def test_five_hundred_malformed_requests(server, capfd):
    """Real requests with bytes changed, cut, doubled; bytes that are no HTTP. Each gets an answer below 500; afterwards it still works."""
    rng = random.Random(0)
    paths = ["/plan", "/ask", "/aim", "/scene", "/", "/plan?x=1", "/%00", "//"]
    values = [None, True, -1, 1e308, "", "push", "ki", [], {}, [[]], {"a": 1}, "where is the red star?", "\0", "é" * 50, 10 ** 30]

    def spoil(thing):
        if isinstance(thing, dict) and thing and rng.random() < .8:
            key = rng.choice(list(thing))
            return {**thing, key: spoil(thing[key])} if rng.random() < .8 else {k: v for k, v in thing.items() if k != key}
        if isinstance(thing, list) and thing and rng.random() < .7:
            i = rng.randrange(len(thing))
            return [*thing[:i], spoil(thing[i]), *thing[i + 1:]] if rng.random() < .8 else thing * 2
        return rng.choice(values)
    for number in range(500):
        body = json.dumps(spoil(ONE)).encode()
        head = (f"POST {rng.choice(paths)} HTTP/1.{rng.randrange(2)}\r\nHost: localhost\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        raw = bytearray(head + body)
        if number % 3:
            for _ in range(rng.randrange(1, 6)):
                at = rng.randrange(len(raw) if number % 3 == 1 else len(head))
                raw[at:at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        with socket.create_connection(("127.0.0.1", server), 60) as sock:
            sock.sendall(raw)
            sock.shutdown(socket.SHUT_WR)
            reply = b"".join(iter(lambda sock=sock: sock.recv(65536), b""))
        status = re.match(rb"HTTP/1\.\d (\d+)", reply)
        assert status is None and not reply.startswith(b"HTTP") or 200 <= int(status[1]) < 500, (bytes(raw), reply[:200])
        assert b"Traceback" not in reply
    assert ask(server, "/plan", ONE)[0] == 200 and "Traceback" not in "".join(capfd.readouterr())


def test_one_computation_at_a_time(server, monkeypatch):
    """Requests that come together are computed one behind the other, and all are answered."""
    inside, most, real = [], [], play.plan

    def watched(*args):
        inside.append(1)
        most.append(len(inside))
        result = real(*args)
        inside.pop()
        return result
    monkeypatch.setattr(play, "plan", watched)
    said, each = [], [threading.Thread(target=lambda: said.append(ask(server, "/plan", ONE)[0])) for _ in range(8)]
    for thread in each:
        thread.start()
    for thread in each:
        thread.join()
    assert said == [200] * 8 and max(most) == 1


def test_commands_that_cannot_be_served(tmp_path):
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    for args, says in ((["--port", "70000"], "--port is 70000"),
                       (["--port", str(taken.getsockname()[1])], f"cannot serve at port {taken.getsockname()[1]}"),
                       ([str(tmp_path), "--html", ""], "name a file"),
                       ([str(tmp_path), "--html", str(tmp_path)], "name a file"),
                       (["--html", str(tmp_path / "x.html")], "which ones?"), ([str(tmp_path)], str(tmp_path)),
                       ([str(tmp_path), "--html", str(tmp_path / "x.html")], str(tmp_path))):
        done = command("nano_ki.play", *args)
        assert done.returncode == 1 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr


def suppressed(port):
    with contextlib.suppress(OSError, http.client.HTTPException):
        for _ in range(20):
            ask(port, "/plan", ONE)


@pytest.mark.slow
def test_from_the_command_to_a_policy_that_pushes_what_one_typed():
    """In seconds, without training; Ctrl-C ends it in one line."""
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "nano_ki.play"], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        port = int(re.search(r"http://127.0.0.1:(\d+)", process.stdout.readline())[1])
        scene = ask(port, "/aim", {"table": TABLE, "words": "push the pink cross to the top"})[1]
        for _ in range(10):
            plan = ask(port, "/plan", {"policy": "ki", **scene})[1]
            for puck, (x, y) in zip(scene["table"]["pucks"], plan["frames"][-1]["puck"], strict=True):
                puck.update(x=x, y=y)
            scene["table"].update(finger=plan["frames"][-1]["finger"], down=plan["frames"][-1]["down"])
            if plan["done"]:
                break
        took = time.monotonic() - began
        busy = threading.Thread(target=lambda: suppressed(port))             # (a plan that is being computed is let end)
        busy.start()
        time.sleep(.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130 and process.stderr.read().strip() == "stopped"
    assert plan["done"] and took < 30, took                # (on an idle machine 4 seconds)


@pytest.mark.slow
def test_runs_that_are_named_are_shown_first(runs):
    """The page opens its first three policies."""
    named = str(runs["ki"])
    for args, first in (((named,), named), ((), "ki")):
        with subprocess.Popen([sys.executable, "-m", "nano_ki.play", *args], cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
            address = re.search(r"http://127.0.0.1:(\d+)", process.stdout.readline())
            connection = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=20)
            connection.request("GET", "/")
            page = connection.getresponse().read().decode()
            connection.close()
            process.terminate()
        assert re.search(r'"policies": \{"(.*?)":', page)[1] == first


# -- a report -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_of_one_name_and_damaged_files_of_runs(runs, tmp_path):
    """Both are shown, each by a name of its own; NaN is no JSON; a summary that is none is none."""
    for name in ("a", "b"):
        shutil.copytree(runs["ki"], tmp_path / name / "run")
    (tmp_path / "a" / "run" / "summary.json").write_text("{}")
    (tmp_path / "b" / "run" / "summary.json").write_text('{"torn": ')
    (tmp_path / "a" / "run" / "metrics.jsonl").write_text('{"step": 20, "fast": NaN, "flow": 1.0, "gradient": {"vlm": Infinity}}\n')
    names = play.named([tmp_path / "a" / "run", tmp_path / "b" / "run", runs["<pi0>"]])
    assert list(names) == [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run"), "<pi0>"]
    play.report({name: folder for name, folder in names.items() if name != "<pi0>"}, tmp_path / "r.html")
    text = re.search(r'id="data">(.*?)</script>', (tmp_path / "r.html").read_text(), re.S)[1]
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert [r["summary"] for r in data["runs"]] == [None, None] and data["runs"][0]["metrics"][0]["fast"] is None


def test_nothing_is_fetched_and_names_are_escaped(page):
    text, data = page[0].read_text(), page[1]
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) == {"http://www.w3.org/2000/svg"}                # a name, not an address
    assert not re.search(r"<link(?! rel=\"icon\" href=\"data:,\")|<iframe|<script[^>]*src=|@import|url\(", text)
    assert "<pi0>" not in text and [r["name"] for r in data["runs"]] == ["ki", "<pi0>"]


def test_everything_is_in_it(page):
    for run in page[1]["runs"]:
        done = [s["plans"][-1]["done"] for s in run["scenes"]]
        assert done == sorted(done) and len(done) == 7 * play.SCENES and run["summary"]["success"] and run["metrics"]
        assert run["gradients"]["with the stop-gradient"]["flow"]["head"] == 0
        for scene in run["scenes"]:
            assert 1 <= sum(len(p["frames"]) for p in scene["plans"]) <= world.HORIZON
            for plan in scene["plans"]:
                assert len(plan["plan"]) == run["config"]["euler_steps"] + 1 and len(plan["plan"][0]) == 16
                assert ("spoken" in plan) == run["config"]["fast_loss"] and len(plan["attention"]) == 36 and 0 < sum(plan["attention"]) < 1


# -- in a browser -------------------------------------------------------------------------------------


COMMON = """
const errors = []; window.onerror = m => errors.push(String(m)); console.error = m => errors.push(String(m)); addEventListener("unhandledrejection", e => errors.push(String(e.reason)));
const out = {cut: [], small: []}, $ = q => document.querySelector(q), all = q => [...document.querySelectorAll(q)];
const wait = ms => new Promise(done => setTimeout(done, ms));
const until = async f => { for (let i = 0; i < 400 && !f(); i++) await wait(100); return f(); };
const named = e => `${e.tagName} ${(e.selectedOptions?.[0]?.text || e.value || e.textContent).trim().slice(0, 60)}`;
const clips = (e, axis) => getComputedStyle(e)["overflow" + axis] !== "visible";
const edges = e => {                           // of what is drawn of e: its box, and its words, which may be wider
  const range = document.createRange(), all = [e.getBoundingClientRect()];
  range.selectNodeContents(e);
  if (!e.childElementCount && e.textContent) all.push(range.getBoundingClientRect());
  const seen = all.filter(r => r.width);
  return {left: Math.min(...seen.map(r => r.left)), right: Math.max(...seen.map(r => r.right)), top: all[0].top, bottom: all[0].bottom};
};
const look = (where, note) => {                // what is cut off, or must be scrolled sideways to be read, inside an element
  for (const e of [...where.querySelectorAll("*")].filter(e => e.checkVisibility({visibilityProperty: true}))) {
    const r = edges(e), drawn = e.ownerSVGElement, wide = e.scrollWidth > e.clientWidth + 1, high = e.scrollHeight > e.clientHeight + 1;
    const say = what => { const s = `${what}: ${named(e)} (${note})`; if (!out.cut.includes(s)) out.cut.push(s); };
    if (drawn && e.tagName !== "text" || r.right < r.left) continue;             // (a drawing may end at its frame, but no word of it)
    if (!drawn && wide && (e.tagName === "INPUT" || clips(e, "X"))) say("wider than its box");
    if (!drawn && high && /hidden|clip/.test(getComputedStyle(e).overflowY) && !e.matches("input, select, svg")) say("higher than its box");
    if (e.tagName === "SELECT") {              // (its text, beside its arrow, is as wide as the browser would like it to be)
      const free = e.cloneNode(true); free.style.cssText = "max-width: none; width: auto; position: absolute"; e.after(free);
      if (free.offsetWidth > e.offsetWidth + 1) say("text cut");
      free.remove();
    }
    let p = e.parentElement;
    while (p && p !== document.body && !clips(p, "X")) p = p.parentElement;
    const page = {left: 0, right: document.documentElement.clientWidth, top: -1e9, bottom: 1e9};
    const b = !p || p === document.body ? page : p.getBoundingClientRect();
    if (r.left < b.left - 1 || r.right > b.right + 1 || drawn && (r.top < b.top - 1 || r.bottom > b.bottom + 1)) say("beyond the edge");
    if (!drawn) continue;
    const m = e.getScreenCTM(), px = parseFloat(getComputedStyle(e).fontSize) * Math.hypot(m.a, m.b);
    if (px < 11 && out.small.length < 20) out.small.push(`${px.toFixed(1)} px: ${named(e)}`);
  }
};
const end = () => {
  look(document.body, "at the end"); out.inner = innerWidth;
  out.unnamed = all("svg, img").filter(e => !e.getAttribute("aria-label") && !e.getAttribute("alt")).length;
  out.unlabelled = all("input, select").filter(e => !e.labels.length && !e.getAttribute("aria-label")).length;
  out.fetched = performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:") && !n.startsWith(location.origin));
  out.sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth; out.errors = errors;
  parent.postMessage(out, "*");
};
"""
REPORT = """
  const theme = () => getComputedStyle(document.body).backgroundColor;
  out.before = theme(); $("#theme").click(); out.after = theme();
  const pane = $("#runs section"), board = pane.querySelector(".board"), time = pane.querySelector(".time"), label = () => board.getAttribute("aria-label");
  out.first = label(); time.value = 5; time.oninput(); out.sixth = label();
  const noise = pane.querySelector(".denoise"), dots = () => [...board.querySelectorAll("circle")].map(c => c.getAttribute("cx")).join();
  out.end = dots(); noise.value = 0; noise.oninput(); out.start = dots();
  const pick = pane.querySelector("select"); pick.value = 3; pick.onchange(); out.other = label();
  const go = [...pane.querySelectorAll("button")].at(-1); go.click(); out.playing = go.textContent; go.click(); out.stopped = go.textContent;
  all("details").forEach(e => { e.open = true; });
  for (const pane of all("#runs section")) {         // every scene, at its start and at its end
    const pick = pane.querySelector("select"), time = pane.querySelector(".time");
    for (const o of pick.options) {
      pick.value = o.value; pick.onchange(); look(pane, "start");
      time.value = time.max; time.oninput(); look(pane, "end");
    }
  }
  out.axes = all(".chart").every(c => c.querySelector("text[transform*=rotate]").textContent && c.textContent.includes("training steps"));
  out.headings = all("h2").map(e => e.textContent); out.panes = all("#runs section").length; out.charts = all(".chart").length;
"""
LIVE = """
  await until(() => $("#say").value);
  const says = () => all(".say").map(e => e.textContent), type = (id, text, go) => { $(id).value = text; $(go).click(); };
  out.panes = all(".pane").length; out.what = all(".what").map(e => e.textContent);
  $("#say").value = "push the orange triangle to the bottom"; look(document.body, "at first");
  type("#say", "push the crimson ring to the left", "#push"); await until(() => $(".error").textContent); out.unknown = $(".error").textContent; out.first = getComputedStyle($(".denoise").parentNode).visibility;
  type("#say", "push the cyan ring to the left", "#push"); await until(() => says().every(t => t.includes("done"))); out.pushed = says(); out.put = $(".error").textContent;
  look(document.body, "after a plan");
  out.label = $(".board").getAttribute("aria-label"); out.told = all(".pane")[0].querySelectorAll(".told div").length;
  const noise = $(".denoise"), plan = () => $(".board").querySelectorAll("circle[fill='#ff9d2e']")[9].getAttribute("cx");
  const last = plan(); noise.value = 0; noise.oninput(); out.slides = last !== plan();
  $("#back").click(); const told = () => all(".answer").map(e => e.textContent);
  const marks = e => e.querySelectorAll("path[stroke='#ffe94a']").length;
  const seen = () => all(".pane").map(p => {         // pictures that can be seen, marks on them and on the board, the word drawn last
    const eye = p.querySelector(".pair div svg"), board = p.querySelector(".board");
    const pictures = eye.checkVisibility({visibilityProperty: true}) && eye.querySelectorAll("image").length;
    return [pictures, marks(eye), marks(board), board.lastElementChild.textContent];
  });
  out.unseen = seen().map(s => s[0]);
  const asks = async q => {
    type("#ask", q, "#asks"); await until(() => told().every(t => t.includes(q) && t.includes("ms"))); look(document.body, q);
    return told();
  };
  out.answers = await asks("where is the cyan ring?"); out.seen = seen();
  out.at = [];
  for (const q of ["what colour is at 12 20?", "what shape is at 31 0?", "what shape is at 0 31?"]) out.at.push([await asks(q), seen()]);
  type("#ask", "how are you?", "#asks"); await until(() => $(".error").textContent); out.question = $(".error").textContent;
  const puck = () => $(".puck"), before = puck().getAttribute("transform");
  puck().focus(); puck().dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true})); out.moved = before !== puck().getAttribute("transform") && document.activeElement === puck();
  puck().dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
  $(".goal:nth-of-type(3)").dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
  await until(() => $("#say").value.endsWith("to the top") && says().every(t => t.includes("done"))); out.by_keys = $("#say").value;
  const b = $(".board").getBoundingClientRect(), p = puck(), at = p.getBoundingClientRect();
  const event = (kind, x, y, target) => target.dispatchEvent(new PointerEvent(kind, {clientX: x, clientY: y, bubbles: true}));
  $("#back").click(); const start = puck().getAttribute("transform");
  event("pointerdown", at.x + 5, at.y + 5, puck()); event("pointermove", b.x + b.width / 2, b.y + b.height / 2, window); event("pointerup", 0, 0, window); out.dragged = puck().getAttribute("transform"); out.from = start;
  for (const [x, y] of [[0, 1], [1, 1], [0, 0], [1, 0]]) {
    event("pointerdown", at.x + 5, at.y + 5, puck()); event("pointermove", b.x + x * b.width, b.y + y * b.height, window);
    event("pointerup", 0, 0, window); look(document.body, `dragged to ${x} ${y}`);
  }
  const old = $(".board").getAttribute("aria-label"); $("#new").click(); out.fresh = await until(() => $(".board").getAttribute("aria-label") !== old);
"""


def probed(text, steps):
    """The page with a probe in it; its first scene is always the same one (a policy does not push in every scene)."""
    return text.replace("<head>", f"<head><script>{COMMON} Math.random = () => .5; addEventListener('load', async () => {{ "
                        f"try {{ await wait(50); {steps} }} catch (e) {{ errors.push(String(e)); }} end(); }});</script>")


def framed(address, width):
    """A page that holds another one, so wide. (No window of headless Chromium is narrower than 500 pixels.)"""
    return (f"<!doctype html><link rel=icon href='data:,'><iframe src='{address}' style='border: 0; width: {width}px; height: 900px'>"
            "</iframe><script>onmessage = e => { document.title = 'RESULT' + JSON.stringify(e.data); }</script>")


def browse(address, width, folder):
    """Open a page that is `framed` and holds one that is `probed`; what the probe found, which no page may lack."""
    done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
                           f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000",
                           "--virtual-time-budget=150000", "--dump-dom", address], capture_output=True, text=True, timeout=240)
    out = json.loads(html.unescape(re.search(r"<title>RESULT(.*?)</title>", done.stdout, re.S)[1]))
    assert out["errors"] == [] and out["fetched"] == [] and out["unnamed"] == out["unlabelled"] == 0, out
    assert out["inner"] == width and out["sideways"] <= 0 and not out["cut"] and not out["small"], "\n".join(map(str, (
        out["inner"], out["sideways"], *out["cut"], *out["small"])))
    return out


@in_a_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1300])
def test_a_report_in_a_browser(page, tmp_path, width):
    """Of three runs, all of it can be read: nothing is cut off, nothing is smaller than 11 pixels."""
    runs = copy.deepcopy(page[1]["runs"])
    for run, (x, y) in zip(runs, ((.98, .98), (-.98, -.98)), strict=True):             # a puck in a corner has its name, too
        run["scenes"][0]["table"]["pucks"][0].update(x=x, y=y)
    (tmp_path / "page.html").write_text(probed(play.page({"runs": [*runs, {**runs[0], "name": "joint-lower-rate-2"}]}), REPORT))
    (tmp_path / "frame.html").write_text(framed("page.html", width))
    out = browse(f"file://{tmp_path}/frame.html", width, tmp_path)
    assert out["before"] != out["after"] and out["first"] != out["sixth"] and out["start"] != out["end"] and out["other"] != out["first"]
    assert (out["playing"], out["stopped"], out["panes"], out["charts"], out["axes"]) == ("stop", "play", 3, 5, True)
    assert out["headings"] == ["What came out", "Curves", "Rollouts, failures first", "Which loss reaches which weights", "Settings"]


@in_a_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1300])
def test_the_page_in_a_browser(server, tmp_path, monkeypatch, width):
    """Type, push, slide, ask, move by keys and by hand, and find all of it answered on the page."""
    real, first = play.page, iter([framed("/?framed", width)])
    monkeypatch.setattr(play, "page", lambda data: next(first, None) or probed(real(data), LIVE))
    out = browse(f"http://127.0.0.1:{server}/", width, tmp_path)
    assert (out["panes"] == 3 and out["what"] == list(play.SHIPPED.values())
            and "unknown word 'crimson'" in out["unknown"] and "unknown word 'how'" in out["question"])
    assert out["first"] == "hidden" and "cyan ring" in (out["put"] or "cyan ring")
    assert (out["pushed"][0].startswith("done in") and "push the cyan ring to the left" in out["label"]
            and out["told"] == 2 and out["slides"])
    assert all("where is the cyan ring?" in text for text in out["answers"]) and out["seen"][0][2] == 1
    # No picture before a question; then it is there, with as many marks as the board, and one at a place that was asked about.
    assert out["unseen"] == [False] * 3 and all(shows == 1 and eye == board for shows, eye, board, _ in out["seen"])
    for says, seen in out["at"]:
        assert all((shows, eye, board) == (1, 1, 1) for shows, eye, board, _ in seen), (says, seen)
        assert all(label[:9] in text for text, (*_, label) in zip(says, seen, strict=True)), (says, seen)
    assert out["moved"] and out["by_keys"].endswith("to the top") and out["dragged"] != out["from"] and out["fresh"]
