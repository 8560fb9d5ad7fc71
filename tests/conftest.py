import io
import os
import runpy
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)      # small tensors: one thread is as fast, and leaves the other core alone
os.environ["OMP_NUM_THREADS"] = "1"                                     # (in child processes, too)

# A suite that was started in the background ignores Ctrl-C and a closed terminal, and so would the programs that it starts.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (getattr(signal, "SIGHUP", signal.SIGINT), signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# Settings small enough for a test: no shipped VLM, few demonstrations, tiny networks.
TINY = dict(device="cpu", preset="laptop", start="", vlm_width=32, vit_depth=1, depth=2, expert_width=32,
            episodes=60, batch=8, vlm_samples=6, two_pages=1 / 3, flow_draws=2, scenes=4, check_every=0, warmup=2)


def command(module, *args, text=""):
    """`python -m module args`, in this process: starting another one costs seconds. Returns returncode, stdout, stderr."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    here, code = os.getcwd(), 0
    os.chdir(ROOT)
    try:
        with patch.multiple(sys, argv=[module, *map(str, args)], stdin=io.StringIO(text), stdout=out, stderr=err):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        if isinstance(stop.code, str):
            err.write(stop.code + "\n")
    finally:
        os.chdir(here)
    return SimpleNamespace(returncode=code, stdout=out.buffer.getvalue().decode(), stderr=err.buffer.getvalue().decode())


@pytest.fixture(autouse=True)
def own_locks(tmp_path_factory, monkeypatch):
    """Forms are locked in a list of each test's own."""
    from tutorials import forms
    monkeypatch.setattr(forms, "LOCKS", tmp_path_factory.mktemp("locks") / "locks.jsonl")


@pytest.fixture(scope="session")
def tiny():
    from nano_ki import config
    return config.make(**TINY)


@pytest.fixture(scope="session")
def data(tiny):
    from nano_ki.episodes import Data
    return Data(tiny)


@pytest.fixture(scope="session")
def batch(data):
    return data.batch()


@pytest.fixture
def model(tiny, data):
    """A tiny policy whose every weight is random: no gate is closed, no output map is zero."""
    from nano_ki.model import VLA
    torch.manual_seed(0)
    vla = VLA(tiny, data.fast)
    with torch.no_grad():
        for p in vla.parameters():
            if p.abs().max() == 0:
                p.normal_(0, .1)
    return vla
