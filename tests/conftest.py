import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)      # small tensors: one thread is as fast, and leaves the other core alone

# Settings small enough for a test: no shipped VLM, few demonstrations, tiny networks.
TINY = dict(device="cpu", preset="laptop", vlm="", vlm_width=32, vit_depth=1, depth=2, expert_width=32,
            episodes=60, batch=8, vlm_samples=4, flow_draws=2, scenes=4, check_every=0, warmup=2)


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
