"""Between detach and no detach: three ways to let some of the flow gradient into the VLM. Each is a few lines.

    python -m tutorials.studies.between tenth --recipe post --no-insulate --threads 1      # the gradient scaled by .1
    python -m tutorials.studies.between late --recipe post --no-insulate --threads 1       # stopped for half of the steps
    python -m tutorials.studies.between held --recipe post --no-insulate --threads 1       # features held to a frozen copy's

What to expect of the first: where flow is the VLM's only loss, Muon and AdamW give a step its size whatever the gradient's, so
that a tenth of it does what all of it does. What came out: the map (tutorials/results, question 9).

Read next: map.py
"""
import copy
import sys

import torch

from nano_ki import config as configuration
from nano_ki import program, train
from nano_ki.model import VLA
from tutorials.studies.watched import watch

SHARE, HOLD = .1, 10.       # of the gradient; weight of the features' squared error


class Tenth(VLA):
    """The forward values are the same; of the gradient a share goes through."""

    def memory_for_expert(self, memory):
        return [tuple(SHARE * x + (1 - SHARE) * x.detach() for x in kv) for kv in memory]


class Late(VLA):
    """The new expert first learns on a VLM that stays; then both learn."""

    calls = 0

    def losses(self, batch, generator=None):
        self.insulate = self.calls < self.config.steps // 2
        self.calls += torch.is_grad_enabled() and self.training
        return super().losses(batch, generator)


class Held(VLA):
    """Holds the memory near what it was when training began. ("flow" in the log includes this penalty.)"""

    first = ()

    def losses(self, batch, generator=None):
        out = super().losses(batch, generator)
        if not self.first:
            self.first = (copy.deepcopy(self.vlm).requires_grad_(False),)                # (a tuple, so that it is no part of the policy)
        with torch.no_grad():
            vlm = self.first[0]
            _, then = vlm(vlm.prefix(batch.image, batch.prompt), batch.answer[:, :self.said] if self.said else None, keep=self.said)
        apart = [(x - y).square().mean() for now, before in zip(out["memory"], then, strict=True) for x, y in zip(now, before, strict=True)]
        return {**out, "flow": out["flow"] + HOLD * sum(apart) / len(apart)}


WAYS = {"tenth": Tenth, "late": Late, "held": Held}


def checked(config):
    """config itself. ValueError if these ways cannot train with it: they count calls, and hold a VLM that no checkpoint has."""
    if config.insulate or config.cross_entropy or config.resume or config.shards > 1 or not config.threads:
        raise ValueError("these ways want flow alone, in one process and in one go: --recipe post --no-insulate --threads 1")
    return config


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in WAYS:
        raise ValueError(f"say which way first: {', '.join(WAYS)}; then flags of nano_ki.train")
    train.train(checked(configuration.parse(sys.argv[2:])), policy=WAYS[sys.argv[1]], watch=watch)


if __name__ == "__main__":
    program.run(main, files=True)
