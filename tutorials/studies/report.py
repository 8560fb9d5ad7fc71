"""Runs as one web page that opens from disk: curves, gradients, answers, and rollouts to play.

Everything is in the file: pictures, numbers, a little script. Nothing is fetched. Several runs stand side by side.

    python -m tutorials.studies.report runs/ki-001 [runs/pi0-001]          # writes report.html into the (first) run's folder
"""
import base64
import html
import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nano_ki import evaluate, flow, language, probe, program, render, world
from nano_ki.checkpoint import load_model, read_metrics
from nano_ki.episodes import Data
from nano_ki.model import Batch
from nano_ki.vit import HEAD, norm, queries_keys_values

SCENES = 3                   # of each test set: drawn from those that training was checked in
WIDE, HIGH = 420, 230        # of a chart, in its own units
COLOURS = ("var(--a)", "var(--b)", "var(--c)", "var(--d)")


# -- what a policy does -------------------------------------------------------------------------------


@torch.no_grad()
def thoughts(model, tables, generator):
    """What the policy sees and plans, for each table: a list of dicts with the picture (PNG, base64), the expert's
    attention over the picture tokens, its denoising steps [steps + 1][H][2], and its FAST chunk [H][2] if it speaks."""
    image, prompt = evaluate.inputs(model, tables)
    memory = model.remember(image, prompt)
    paths, looks = [], None
    if model.config.flow_loss:
        noise = torch.empty(len(image), 1, model.fast.horizon, model.fast.dims).normal_(generator=generator)

        def velocity(x, t):
            paths.append(x[:, 0])
            return model.expert(x, t, memory)
        paths.append(flow.euler(velocity, noise, flow.times(model.config.euler_steps))[:, 0])
        looks = attention(model, paths[-2][:, None], memory)
    spoken = model.fast.restore(model.act_tokens(image, prompt).numpy()) if model.config.fast_loss else None
    paths = [model.fast.restore(x.numpy()) for x in paths]
    return [{"picture": png(image[i].numpy()),
             "attention": None if looks is None else [round(v, 4) for v in looks[i].tolist()],
             "path": [short(x[i, :, :2]) for x in paths],
             "spoken": None if spoken is None else short(spoken[i, :, :2])} for i in range(len(image))]


def attention(model, x, memory):
    """How much the expert's action tokens look at each picture token at the last Euler step: [B, P], the mean over
    layers, heads and tokens. (The rest of their attention goes to words and to each other.)"""
    looks = []

    def look(block, given):
        x, modulation, (keys, _), _ = given
        scale, shift, *_ = modulation.unbind(-3)
        q, own, _ = queries_keys_values((norm(x) * scale + shift).flatten(1, 2), block.q, block.k, block.v)
        looks.append((q @ torch.cat((keys, own), 2).mT * 10 / HEAD).softmax(-1))
    hooks = [block.register_forward_pre_hook(look) for block in model.expert.blocks]
    model.expert(x, flow.times(model.config.euler_steps)[-2].expand(x.shape[:2]), memory)
    for hook in hooks:
        hook.remove()
    patches = (model.config.image // 8) ** 2
    return torch.stack([weights[..., :patches].mean((1, 2)) for weights in looks]).mean(0)


def rollouts(model, per_set=SCENES):
    """Scenes played by the policy, failures first: a list of dicts, one frame for each step."""
    c, rows = model.config, []
    policy = evaluate.policy_of(model)
    for name in world.TEST_SETS[:-1]:
        start = evaluate.test_scenes(name, per_set, evaluate.CHECK_SEED, c.pucks)
        mine = [{"set": name.replace("_", " "), "command": text, "frames": [], "plans": [],
                 "pucks": [[world.COLOURS[a], world.SHAPES[b]] for a, b in kinds], "goal": short(goal)}
                for text, kinds, goal in zip(language.instruction(start), start.kind, start.goal_xy(), strict=True)]
        generator = torch.Generator().manual_seed(0)

        def watch(now, ids, chunk, i, mine=mine, generator=generator):
            if i == 0:
                for k, thought in zip(ids, thoughts(model, now, generator), strict=True):
                    mine[k]["plans"].append({"at": len(mine[k]["frames"]), **thought})
            for j, k in enumerate(ids):
                mine[k]["frames"].append({"puck": short(now.puck[j]), "finger": short(now.finger[j]),
                                          "down": bool(now.pressed[j]), "next": short(chunk[j, i:, :2])})
        end = evaluate.rollout(policy, start, c.execute, watch, c.rate)
        won, right = world.success(end), evaluate.right_puck(start, end)
        for scene, a, b in zip(mine, won, right, strict=True):
            rows.append({**scene, "won": bool(a), "right": bool(b)})
    return sorted(rows, key=lambda r: r["won"])


def short(array):
    return np.round(np.asarray(array, float), 3).tolist()


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def gather(folder, name=None):
    """Everything about one run that the page shows. name: what the page calls it (default: its folder's name)."""
    folder = Path(folder)
    model = load_model(folder)
    metrics = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
    summary = json.loads((folder / "summary.json").read_text()) if (folder / "summary.json").exists() else None
    data = Data(replace(model.config, episodes=200), model.fast)
    gradients, insulate = {}, model.insulate
    for way, model.insulate in (("with the stop-gradient", True), ("without", False)):
        gradients[way] = probe.gradient_norms(model, Batch(*data.batch()))
    model.insulate = insulate
    return {"name": name or folder.name, "config": asdict(model.config), "metrics": metrics, "summary": summary,
            "gradients": gradients, "rollouts": rollouts(model)}


# -- the page -----------------------------------------------------------------------------------------


def chart(title, lines, top=None):
    """SVG. lines: [(name, xs, ys, lows or None, highs or None)]; top: end of the y axis, for
    curves that rise towards it (default: the largest y)."""
    lines = [line for line in lines if len(line[1])]
    if not lines:
        return ""
    x1 = max(max(xs) for _, xs, *_ in lines)
    y1 = top or max(max(ys) for _, _, ys, *_ in lines) * 1.05 or 1
    left, right, high, low = 40, WIDE - 8, 26, HIGH - 24

    def place(x, y):
        return f"{left + x / x1 * (right - left):.1f},{low - min(y, y1) / y1 * (low - high):.1f}"
    says = "; ".join(f"{name} ends at {ys[-1]:.3g}" for name, _, ys, *_ in lines)
    out = [f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{html.escape(f"{title}: {says}")}">',
           f'<text x="{left}" y="15" class="title">{html.escape(title)}</text>']
    for k in range(5):
        y = low - k / 4 * (low - high)
        out.append(f'<path class="grid" d="M{left} {y}H{right}"/><text class="tick" x="{left - 4}" y="{y + 4}" '
                   f'text-anchor="end">{y1 * k / 4:.2g}</text>')
    out.append(f'<text class="tick" x="{left}" y="{HIGH - 8}">0</text>'
               f'<text class="tick" x="{right}" y="{HIGH - 8}" text-anchor="end">{x1:g} steps</text>')
    for i, (name, xs, ys, lows, highs) in enumerate(lines):
        colour, dash = COLOURS[i % 4], ' stroke-dasharray="6 3"' if i >= 4 else ""
        if lows is not None:
            band = [place(x, y) for x, y in zip(xs, highs, strict=True)]
            band += [place(x, y) for x, y in zip(xs[::-1], lows[::-1], strict=True)]
            out.append(f'<polygon points="{" ".join(band)}" fill="{colour}" opacity=".15"/>')
        points = " ".join(place(x, y) for x, y in zip(xs, ys, strict=True))
        if len(xs) == 1:
            out.append('<circle cx="{}" cy="{}" r="3" fill="{}"/>'.format(*points.split(","), colour))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
                   f'<text x="{right - 4}" y="{low - 8 - 14 * i if top else high + 12 + 14 * i}" fill="{colour}" text-anchor="end">'
                   f'{html.escape(name)}</text>')
    return "".join(out) + "</svg>"


def charts(runs):
    """All curves, runs side by side in each."""
    out = []
    for key, title in (("fast", "FAST cross-entropy"), ("text", "text cross-entropy"), ("flow", "flow loss")):
        lines = [(run["name"], [m["step"] for m in run["metrics"] if key in m], [m[key] for m in run["metrics"] if key in m],
                  None, None) for run in runs]
        out.append(chart(title, [line for line in lines if any(line[2])]))
    for key in ("seen", "new_both"):
        lines = []
        for run in runs:
            checks = [(m["step"], m["success"][key]) for m in run["metrics"] if "success" in m]
            if run["summary"]:
                checks.append((run["summary"]["steps"], run["summary"]["success"][key]))
            lines.append((run["name"], [s for s, _ in checks], *([r[k] for _, r in checks] for k in ("rate", "low", "high"))))
        out.append(chart(f"success, {key.replace('_', ' ')} (band: 95 %)", lines, 1))
    for pictures in ("book", "robot"):
        lines = []
        for run in runs:
            checks = [(m["step"], np.mean(list(m["vqa"][pictures].values()))) for m in run["metrics"] if "vqa" in m]
            lines.append((run["name"], [s for s, _ in checks], [v for _, v in checks], None, None))
        out.append(chart(f"questions answered, {pictures} pictures", lines, 1))
    return "".join(f"<figure>{svg}</figure>" for svg in out if svg)


def grid(head, rows):
    """An HTML table that scrolls sideways where it is too wide; its first column is a heading."""
    cells = "".join(f'<th scope="col">{html.escape(str(h))}</th>' for h in head)
    body = "".join(f'<tr><th scope="row">{html.escape(str(row[0]))}</th>'
                   + "".join(f"<td>{html.escape(str(c))}</td>" for c in row[1:]) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def outcome_table(runs):
    rows = []
    for key, title in (("success", "success"), ("right_puck", "right puck")):
        for name in world.TEST_SETS:
            rows.append([f"{title}, {name.replace('_', ' ')}"] + [
                "-" if not r["summary"] else "{rate:.2f} [{low:.2f}, {high:.2f}]".format(**r["summary"][key][name])
                for r in runs])
    for key, title in (("", "book"), ("_robot", "robot pictures")):
        for kind in ("where", "colour", "shape"):
            rows.append([f"answers, {title}: {kind}"] + [
                "-" if not r["summary"] else f"{r['summary'][f'vqa_before{key}'][kind]:.2f} → "
                f"{r['summary'][f'vqa_after{key}'][kind]:.2f}" for r in runs])
    rows.append(["ms a chunk: flow / tokens"] + ["-" if not r["summary"] else " / ".join(
        "-" if v is None else str(v) for v in r["summary"]["ms_per_chunk"].values()) for r in runs])
    return grid(["", *(r["name"] for r in runs)], rows)


def settings_table(runs):
    keys = list(runs[0]["config"])
    return grid(["setting", *(r["name"] for r in runs)],
                [[("≠ " if len({str(r["config"].get(k)) for r in runs}) > 1 else "") + k,
                  *(r["config"].get(k) for r in runs)] for k in keys])


def gradient_table(run):
    ways = list(run["gradients"])
    head = ["gradient norm on", *(f"{loss} loss, {way}" for way in ways for loss in probe.LOSSES)]
    parts = run["gradients"][ways[0]]["flow"]
    return grid(head, [[part, *(f"{run['gradients'][way][loss][part]:.3g}" for way in ways for loss in probe.LOSSES)]
                       for part in parts])


def page(runs):
    """The whole file, as text."""
    play = [{"name": r["name"], "rollouts": r["rollouts"]} for r in runs]
    # ("<" inside a script must not end it)
    data = json.dumps({"runs": play, "side": 2 * world.HALF, "puck": world.PUCK, "finger": world.FINGER,
                       "near": world.NEAR,
                       "rgb": dict(zip(world.COLOURS, (f"rgb({','.join(map(str, (255 * c).astype(int)))})"
                                                       for c in render.RGB), strict=True))}).replace("<", "\\u003c")
    names = ", ".join(r["name"] for r in runs)
    gradients = "".join(f"<h3>{html.escape(r['name'])}</h3>{gradient_table(r)}" for r in runs)
    return (TEMPLATE.replace("@NAMES@", html.escape(names)).replace("@CHARTS@", charts(runs))
            .replace("@OUTCOME@", outcome_table(runs)).replace("@GRADIENTS@", gradients)
            .replace("@SETTINGS@", settings_table(runs)).replace("@DATA@", data))


TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>nano_ki: @NAMES@</title>
<style>
:root { --paper: #fff; --ink: #1c1c1c; --faint: #666; --line: #ddd; --a: #1769aa; --b: #b8500a; --c: #2a7a2a; --d: #8a3fa0;
        color-scheme: light }
:root[data-theme=dark] { --paper: #16181b; --ink: #e8e8e8; --faint: #a0a0a0; --line: #3a3d42; --a: #6cb6f5; --b: #f59a52;
        --c: #7fce7f; --d: #cf9be0; color-scheme: dark }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) { --paper: #16181b; --ink: #e8e8e8; --faint: #a0a0a0;
        --line: #3a3d42; --a: #6cb6f5; --b: #f59a52; --c: #7fce7f; --d: #cf9be0; color-scheme: dark } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem;
       max-width: 1320px }
header { display: flex; gap: 1rem; align-items: baseline; justify-content: space-between; flex-wrap: wrap }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem } h3 { margin: .8rem 0 .3rem; font-size: 1rem }
.charts, .runs { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)) }
figure { margin: 0 } svg { width: 100%; height: auto; display: block } svg text { font-size: 11px } svg text:not([fill]) { fill: currentColor }
.title { font-size: 13px; font-weight: 600 } .tick { fill: var(--faint) }
.grid { stroke: var(--line) } .wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { border-bottom: 1px solid var(--line); padding: .2rem .6rem; text-align: right; white-space: nowrap; font-weight: 400 }
th:first-child { text-align: left } thead th { font-weight: 600; white-space: normal; vertical-align: bottom }
button, select, input { font: inherit; color: inherit } button, select { background: none; border: 1px solid var(--faint);
       border-radius: 4px; padding: .2rem .6rem; max-width: 100% }
input[type=range] { width: 100%; accent-color: var(--a) } .pair { display: grid; grid-template-columns: 2fr 1fr; gap: .5rem } section { max-width: 780px }
.table { background: #80694f; border-radius: 4px } .say { min-height: 3em; color: var(--faint) } .note { color: var(--faint) }
details summary { cursor: pointer } label { display: block }
</style></head><body>
<header><h1>nano_ki: @NAMES@</h1><button id="theme" type="button">dark / light</button></header>
<h2>What came out</h2>@OUTCOME@
<p class="note">Rates with 95 % intervals (Wilson). Answers: share right before → after training.</p>
<h2>Curves</h2><div class="charts">@CHARTS@</div>
<h2>Rollouts, failures first</h2>
<p class="note">White dots: waypoints still to come. Orange: the expert's plan at the chosen denoising step. Purple: the same
chunk as the VLM's FAST tokens say it. Small picture: what the policy saw when it planned; brighter patches are those that
the expert looks at.</p>
<div class="runs" id="runs"></div>
<h2>Which loss reaches which weights</h2>
<details><summary>gradient norm by part, on one batch</summary>@GRADIENTS@</details>
<h2>Settings</h2><details><summary>all settings (≠: the runs differ)</summary>@SETTINGS@</details>
<script type="application/json" id="data">@DATA@</script>
<script>
const data = JSON.parse(document.getElementById("data").textContent), S = data.side, svgns = "http://www.w3.org/2000/svg";
const root = document.documentElement;
document.getElementById("theme").onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};
function make(tag, attributes, parent) {
  const e = tag.startsWith("svg:") ? document.createElementNS(svgns, tag.slice(4)) : document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) k === "text" ? e.textContent = v : e.setAttribute(k, v);
  if (parent) parent.append(e);
  return e;
}
function polygon(points) { return "M" + points.map(p => p.map(v => v.toFixed(3)).join(" ")).join("L") + "Z"; }
const around = (n, r, from) => Array.from({length: n}, (_, i) => {
  const a = from + 2 * Math.PI * i / n, s = Array.isArray(r) ? r[i % r.length] : r; return [s * Math.sin(a), -s * Math.cos(a)]; });
const circle = r => `M${r} 0A${r} ${r} 0 1 0 ${-r} 0A${r} ${r} 0 1 0 ${r} 0Z`;
const shapes = {disc: circle(1), ring: circle(.98) + circle(.46), square: polygon(around(4, 1.19, Math.PI / 4)),
  triangle: polygon(around(3, 1.2, 0)), star: polygon(around(10, [1.15, .46], 0)),
  cross: "M-.32 -1H.32V-.32H1V.32H.32V1H-.32V.32H-1V-.32H-.32Z"};
function dots(parent, points, colour, line) {
  if (line) make("svg:polyline", {points: points.map(p => p.join(",")).join(" "), fill: "none", stroke: colour,
    "stroke-width": .012, opacity: .8}, parent);
  for (const [x, y] of points) make("svg:circle", {cx: x, cy: y, r: .018, fill: colour}, parent);
}
data.runs.forEach((run, number) => {
  const box = make("section", {"aria-label": "rollouts of " + run.name}, document.getElementById("runs"));
  make("h3", {text: run.name}, box);
  const pick = make("select", {"aria-label": "scene of " + run.name}, box);
  run.rollouts.forEach((r, i) => make("option", {value: i,
    text: `${r.won ? "done" : r.right ? "FAILED (right puck)" : "FAILED (wrong puck)"}: ${r.command} [${r.set}]`}, pick));
  const say = make("p", {class: "say", "aria-live": "polite"}, box), pair = make("div", {class: "pair"}, box);
  const board = make("svg:svg", {viewBox: `${-S / 2} ${-S / 2} ${S} ${S}`, class: "table", role: "img"}, pair);
  const side = make("div", {}, pair), eye = make("svg:svg", {viewBox: "0 0 48 48", role: "img"}, side);
  const time = make("input", {type: "range", min: 0, value: 0, class: "time", id: "time" + number},
    make("label", {text: "time"}, box));
  const noise = make("input", {type: "range", min: 0, class: "denoise"}, make("label", {text: "denoising step"}, box));
  const go = make("button", {type: "button", text: "play"}, box);
  let timer = null;
  function draw() {
    const r = run.rollouts[pick.value], t = +time.value, f = r.frames[t];
    const plan = [...r.plans].reverse().find(p => p.at <= t);
    board.replaceChildren(); eye.replaceChildren();
    make("svg:circle", {cx: r.goal[0], cy: r.goal[1], r: .24, fill: "none", stroke: "white", "stroke-width": .05, opacity: .6}, board);
    f.puck.forEach(([x, y], i) => make("svg:path", {d: shapes[r.pucks[i][1]], "fill-rule": "evenodd", fill: data.rgb[r.pucks[i][0]],
      transform: `translate(${x} ${y}) scale(${data.puck})`}, board));
    if (plan.spoken) dots(board, plan.spoken, "#b565d8", true);
    if (plan.path.length) dots(board, plan.path[+noise.value], "#ff9d2e", true);
    dots(board, f.next, "white", false);
    make("svg:circle", {cx: f.finger[0], cy: f.finger[1], r: data.finger, fill: f.down ? "#111" : "none", stroke: "#111",
      "stroke-width": .03}, board);
    const words = `${r.command}. Step ${t + 1} of ${r.frames.length}, finger ${f.down ? "down" : "up"}.`;
    board.setAttribute("aria-label", words + " On the table: " + r.pucks.map((p, i) =>
      `${p.join(" ")} at ${f.puck[i].map(v => v.toFixed(1)).join(", ")}`).join("; "));
    make("svg:image", {href: "data:image/png;base64," + plan.picture, width: 48, height: 48, style: "image-rendering: pixelated"}, eye);
    if (plan.attention) {
      const n = Math.sqrt(plan.attention.length), most = Math.max(...plan.attention);
      plan.attention.forEach((a, i) => make("svg:rect", {x: i % n * 48 / n, y: Math.floor(i / n) * 48 / n, width: 48 / n,
        height: 48 / n, fill: "black", opacity: (.75 * (1 - a / most)).toFixed(2)}, eye));
    }
    eye.setAttribute("aria-label", "camera picture at the last plan" + (plan.attention ? ", darker where the expert looks less" : ""));
    say.textContent = words + (t + 1 === r.frames.length ? (r.won ? " Done." : " Not done in time.") : "");
  }
  function choose() {
    const r = run.rollouts[pick.value];
    time.max = r.frames.length - 1; time.value = 0;
    noise.max = Math.max(0, r.plans[0].path.length - 1); noise.value = noise.max; noise.disabled = !r.plans[0].path.length;
    draw();
  }
  pick.onchange = choose; time.oninput = draw; noise.oninput = draw;
  go.onclick = () => {
    if (timer) { clearInterval(timer); timer = null; go.textContent = "play"; return; }
    if (+time.value === +time.max) time.value = 0;
    go.textContent = "stop";
    timer = setInterval(() => { if (+time.value === +time.max) return go.onclick(); time.value = +time.value + 1; draw(); }, 90);
  };
  choose();
});
</script></body></html>
"""


def main():
    parser = program.parser(__doc__)
    parser.add_argument("runs", nargs="+", help="folders of runs")
    parser.add_argument("--out", help="file to write (default: report.html in the first run's folder)")
    args = parser.parse_args()
    out = args.out or Path(args.runs[0]) / "report.html"
    text = page([gather(folder) for folder in args.runs])
    program.write_whole(out, lambda f: f.write(text.encode(errors="replace")))      # (a folder's name may be no text)
    print(f"{out}: {len(text) / 1e6:.1f} MB, {len(args.runs)} runs")


if __name__ == "__main__":
    program.run(main)
