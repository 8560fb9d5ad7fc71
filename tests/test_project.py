"""The project as a whole: imports, sockets, README's claims about itself."""
import ast
import re
import subprocess
import sys

from conftest import ROOT

CODE = sorted((ROOT / "nano_ki").glob("*.py"))


def test_imports_are_torch_numpy_tqdm_pillow_and_the_standard_library():
    found = set()
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            names = ([a.name for a in node.names] if isinstance(node, ast.Import) else
                     [node.module] if isinstance(node, ast.ImportFrom) else [])
            found |= {n.split(".")[0] for n in names}
    assert found - set(sys.stdlib_module_names) == {"torch", "numpy", "tqdm", "PIL", "nano_ki"}


def test_imports_point_one_way():
    """What the table of files says: low layers know nothing of the model."""
    def uses(name):
        text = (ROOT / "nano_ki" / f"{name}.py").read_text()
        return set(re.findall(r"^from nano_ki\.(\w+) import|^from nano_ki import (.+)$", text, re.M))
    for name in ("world", "fast", "flow", "draw"):
        assert not uses(name), name
    assert not any("model" in a + b or "train" in a + b for n in ("render", "language", "vit", "decoder", "expert")
                   for a, b in uses(n))


def test_no_socket_is_opened():
    code = ("import socket\n"
            "def no(*a, **k): raise AssertionError('a socket was opened')\n"
            "socket.socket.connect = socket.socket.bind = no\n"
            "from nano_ki import config, train, evaluate, pretrain, probe\n"
            "from nano_ki.episodes import Data\n"
            "Data(config.make(device='cpu', episodes=50, vlm='')).batch()\n")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_every_file_demonstrates_itself(tmp_path):
    for name in ("world", "render", "language", "fast", "episodes", "vit", "decoder", "flow", "expert", "draw"):
        args = [str(tmp_path / f"{name}.png")] if name in ("render", "draw") else []
        done = subprocess.run([sys.executable, "-m", f"nano_ki.{name}", *args], cwd=ROOT, text=True,
                              capture_output=True, timeout=120)
        assert done.returncode == 0 and done.stdout.strip() or name == "draw", (name, done.stderr)


def test_size():
    lines = {p.stem: len(p.read_text().splitlines()) for p in CODE}
    assert lines["train"] < 500
    assert sum(lines[n] for n in ("decoder", "flow", "expert", "model", "probe")) < 600
