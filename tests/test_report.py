"""The report page: whole, self-contained, and working in a browser (headless Chromium, where it is installed)."""
import json
import re
import shutil
import subprocess

import pytest
import torch
from conftest import TINY

from nano_ki import config as configuration
from nano_ki import evaluate, program, train
from tutorials.studies import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of two tiny runs: the file and what went into it."""
    out = tmp_path_factory.mktemp("report")
    for name, options in (("ki", {}), ("<pi0>", {"recipe": "pi0", "vlm_samples": 0})):
        train.train(configuration.make(**{**TINY, **options}, steps=40, out=str(out / name)))
    runs = [report.gather(out / name) for name in ("ki", "<pi0>")]
    (out / "report.html").write_text(report.page(runs))
    return out / "report.html", runs


def test_nothing_is_fetched_and_names_are_escaped(page):
    text = page[0].read_text()
    addresses = set(re.findall(r"https?://[^\"'\s<]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}                # a name, not an address
    assert not re.search(r"<link|<iframe|<script[^>]*src=|@import|url\(", text)
    assert "<pi0>" not in text and "&lt;pi0&gt;" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert [r["name"] for r in data["runs"]] == ["ki", "<pi0>"]


def test_everything_is_on_it(page):
    text, runs = page[0].read_text(), page[1]
    for heading in ("What came out", "Curves", "Rollouts, failures first", "Which loss reaches", "Settings"):
        assert heading in text
    assert text.count("<svg") == text.count('<svg viewBox="0 0') and text.count('role="img" aria-label=') >= text.count("<svg")
    for run in runs:
        wins = [r["won"] for r in run["rollouts"]]
        assert wins == sorted(wins) and len(wins) == 7 * report.SCENES
        for scene in run["rollouts"]:
            assert scene["plans"][0]["at"] == 0 and 1 <= len(scene["frames"]) <= 80
            for plan in scene["plans"]:
                assert len(plan["path"]) == run["config"]["euler_steps"] + 1 and len(plan["path"][0]) == 16
                assert (plan["spoken"] is None) == (not run["config"]["fast_loss"])
                assert len(plan["attention"]) == 36 and 0 < sum(plan["attention"]) < 1


def test_the_attention_drawn_is_the_attention_there_is(model, tiny, data):
    """The same weights applied to the memory's values by hand give what the expert's layer computes."""
    tables = evaluate.test_scenes("seen", 3)
    image, prompt = evaluate.inputs(model, tables)
    with torch.no_grad():
        memory = model.vlm(model.vlm.prefix(image, prompt))[1]
        x = torch.randn(3, 1, 16, 3, generator=torch.Generator().manual_seed(0))
        near = report.attention(model, x, memory)
        masked = [(torch.cat((k[:, :, :36] * 0, k[:, :, 36:]), 2), v) for k, v in memory]
        flat = report.attention(model, x, masked)
    assert near.shape == (3, 36) and (near.std(1) > 3 * flat.std(1)).all()      # (equal keys: nothing stands out)
    assert not any(block._forward_pre_hooks for block in model.expert.blocks)


def test_thoughts_are_what_the_policy_does(model):
    tables = evaluate.test_scenes("seen", 2)
    said = report.thoughts(model, tables, torch.Generator().manual_seed(0))
    plan = model.fast.restore(model.act(*evaluate.inputs(model, tables), torch.Generator().manual_seed(0)).numpy())
    assert all(report.short(plan[i, :, :2]) == said[i]["path"][-1] for i in range(2))


def test_a_folder_without_a_run_gets_a_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: "):
        program.run(report.main)


PROBE = """<script>
const errors = []; window.onerror = m => errors.push(m); console.error = m => errors.push(m);
addEventListener("load", () => setTimeout(() => {
  const out = {}, theme = () => getComputedStyle(document.body).backgroundColor;
  out.before = theme(); document.getElementById("theme").click(); out.after = theme();
  const section = document.querySelector("#runs section"), board = section.querySelector("svg"), time = section.querySelector(".time");
  out.first = board.getAttribute("aria-label"); time.value = 5; time.oninput(); out.sixth = board.getAttribute("aria-label");
  const noise = section.querySelector(".denoise"), dots = () => [...board.querySelectorAll("circle")].map(c => c.getAttribute("cx")).join();
  out.end = dots(); noise.value = 0; noise.oninput(); out.start = dots();
  const pick = section.querySelector("select"); pick.value = 3; pick.onchange(); out.other = board.getAttribute("aria-label");
  const play = section.querySelector("button"); play.click(); out.playing = play.textContent; play.click(); out.stopped = play.textContent;
  out.unnamed = [...document.querySelectorAll("svg, img")].filter(e => !e.getAttribute("aria-label") && !e.getAttribute("alt")).length;
  out.unlabelled = [...document.querySelectorAll("input, select")].filter(e => !e.labels.length && !e.getAttribute("aria-label")).length;
  out.fetched = performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"));
  out.sideways = document.documentElement.scrollWidth - innerWidth; out.sections = document.querySelectorAll("#runs section").length;
  out.errors = errors; document.title = "RESULT" + JSON.stringify(out);
}, 50));
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH (Debian: apt install chromium)")
@pytest.mark.parametrize("width", [390, 1300])
def test_in_a_browser(page, tmp_path, width):
    copy = tmp_path / "page.html"
    copy.write_text(page[0].read_text().replace("<head>", f"<head>{PROBE}"))
    done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                           f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom", f"file://{copy}"],
                          capture_output=True, text=True, timeout=120)
    import html
    out = json.loads(html.unescape(re.search(r"<title>RESULT(.*?)</title>", done.stdout, re.S)[1]))
    assert out["errors"] == [] and out["fetched"] == [] and out["unnamed"] == out["unlabelled"] == 0, out
    assert out["before"] != out["after"] and out["first"] != out["sixth"] and out["start"] != out["end"]
    assert "Step 1 of" in out["first"] and "Step 6 of" in out["sixth"] and out["other"] != out["first"]
    assert (out["playing"], out["stopped"], out["sections"]) == ("stop", "play", 2)
    assert out["sideways"] <= 0, out["sideways"]
