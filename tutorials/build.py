"""Checks the pieces of tutorials/my_vla.py, and trains a policy with them.

    python -m tutorials.build            # which pieces are right, and what is wrong with the others
    python -m tutorials.build train      # when all are: trains with them (two minutes on two idle cores). Does it reach .8?

Each piece takes the place of the library's own: the VLA below is nano_ki's, but its path, target, detach, attention, cross-entropy and
training step are yours.          Read next: 04_flow_matching.md
"""
import sys
from pathlib import Path
from unittest.mock import patch

import torch

from nano_ki import config, expert, flow, model, optim, program, ranks, train, vit
from nano_ki.decoder import alternate
from nano_ki.language import FIRST_FAST, PAD
from tutorials import check
from tutorials.checks import CHECKS, demand, like, random

FILE = Path(__file__).with_name("my_vla.py")
STEPS, REACH = 300, .8
# One draw an update: so the expert's attention needs no mask.
SETTINGS = dict(flow_draws=4, expert_updates=4, check_every=0, scenes=200)


def check_target(f):
    for shape, kind in (((4, 16, 3), torch.float), ((2, 5, 7, 2), torch.float), ((3, 16, 3), torch.double), ((16, 3), torch.float)):
        action, noise = random(*shape).to(kind), random(*shape, seed=1).to(kind)
        like(f(action, noise), action - noise, "the velocity",
             mistakes=[("the sign is the papers' other one: here the velocity leads from noise to action", noise - action),
                       ("that is the action; the velocity is what leads to it from the noise", action)])


def check_training_step(f):
    """Two small parts, and losses of which one reaches only the expert, as with insulation."""
    def case(old=True):
        weights = {name: [torch.nn.Parameter(random(3, 2, seed=k + i)) for i in range(3 - k)] for k, name in enumerate(("vlm", "expert"))}
        parts = {name: (w, [torch.optim.SGD([p], .1 + .1 * i) for i, p in enumerate(w)]) for name, w in weights.items()}
        for p in (p for w in weights.values() for p in w if old):
            p.grad = torch.full_like(p, 9.)
        return weights, parts, {"ce": sum(p.pow(2).sum() for p in weights["vlm"]), "flow": sum(p.pow(3).sum() for p in weights["expert"])}

    def wanted(alpha, limit, both=False, old=False, names=("vlm", "expert"), other=1., first=False):
        weights, parts, losses = case(old)
        (other * losses["ce"] + alpha * losses["flow"]).backward()
        if both:
            torch.nn.utils.clip_grad_norm_([p for w in weights.values() for p in w], limit)
        norms = {n: float(torch.nn.utils.clip_grad_norm_(weights[n], torch.inf if both else limit)) for n in names}
        for n in names:
            for optimiser in parts[n][1][:1 if first else None]:
                optimiser.step()
        return torch.cat([p.detach().flatten() for w in weights.values() for p in w]), norms
    told = []
    for alpha, limit, names, old in ((.1, 100., ("vlm", "expert"), True), (1., .5, ("vlm", "expert"), True),
                                     (10., 1., ("vlm", "expert"), True), (1., 5., ("vlm", "expert"), True),
                                     (1., 9., ("vlm", "expert"), True), (2., .5, ("expert",), True),
                                     (2., .5, ("vlm", "expert"), False)):          # (a new weight has no gradient yet)
        weights, parts, losses = case(old)
        if names == ("expert",):                                     # (an update of the expert alone: the cross-entropy is a plain 0)
            losses["ce"] = torch.zeros(())
        given, before, now = losses.copy(), {n: x.item() for n, x in losses.items()}, {n: parts[n] for n in names}
        norms = f(losses, now, alpha, limit)
        demand(losses == given and {n: x.item() for n, x in losses.items()} == before and list(now) == list(names),
               "it changes the losses, or the parts, that it was given: "
               "whoever called it may need them again (a += b changes the tensor a)")
        after = torch.cat([p.detach().flatten() for w in weights.values() for p in w])
        right, its = wanted(alpha, limit, names=names)
        like(after, right, "a weight after the step", mistakes=[
            ("the gradients of the step before are still in it: set them to None first", wanted(alpha, limit, old=True, names=names)[0]),
            ("one norm over both parts: the expert's large gradient shrinks the VLM's step. Clip each part alone",
             wanted(alpha, limit, both=True, names=names)[0]),
            ("nothing is clipped, or only after the optimisers' steps", wanted(alpha, torch.inf, names=names)[0]),
            ("alpha weighs the cross-entropy; it is the weight of the flow loss", wanted(1., limit, other=alpha, names=names)[0]),
            ("only the first optimiser of each part has made a step", wanted(alpha, limit, first=True, names=names)[0]),
            ("alpha is not used: it is the weight of the flow loss", wanted(1., limit, names=names)[0]),
            ("no weight has moved: no optimiser has made a step, or the gradients were gone by then", wanted(alpha, limit, names=())[0])])
        told.append((norms, its))
    for norms, its in told:
        demand(isinstance(norms, dict) and set(norms) == set(its)
               and all(isinstance(norms[n], float) and abs(norms[n] - its[n]) < 1e-3 * its[n] for n in its),
               f"it returned {norms}; wanted the norms before clipping, as floats: {its}")


PIECES = {           # name: (the exercise whose hints help, its check: that exercise's own, where it asks for the same)
    "path": ("04.2", CHECKS["04.2"][2]), "target": ("04.2", check_target), "memory_for_expert": ("06.1", CHECKS["06.1"][2]),
    "expert_attention": ("06.2", CHECKS["06.2"][2]), "cross_entropy": ("08.1", CHECKS["08.1"][2]),
    "training_step": ("08.2", check_training_step)}


class Block(expert.ExpertBlock):
    """The expert's layer, with your attention."""

    def forward(self, x, modulation, memory, mask):
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation.unbind(-3)
        q, k, v = vit.queries_keys_values((vit.norm(x) * scale1 + shift1).flatten(1, 2), self.q, self.k, self.v)
        x = x + gate1 * self.o(self.mine.expert_attention(q, k, v, memory).transpose(1, 2).flatten(2)).view_as(x)
        return x + gate2 * self.down(vit.squared_relu(self.up(vit.norm(x) * scale2 + shift2)))


class MyVLA(model.VLA):
    """The policy, with your losses."""

    def __init__(self, *args):
        super().__init__(*args)
        for block in self.expert.blocks:
            block.__class__ = Block

    def losses(self, batch, generator=None):
        robots = len(batch.chunk)
        logits, memory = self.vlm(self.vlm.prefix(batch.image, batch.prompt), batch.answer[:, :-1], keep=self.said)
        pages = self.vlm(self.vlm.prefix(*alternate(batch.pages, batch.words)), batch.reply[:, :-1])[0]
        logits, ids = (torch.cat((logits.flatten(0, 1), pages.flatten(0, 1)))[None],
                       torch.cat((batch.answer.flatten(), batch.reply.flatten()))[None])
        with torch.no_grad():                            # (both parts of the cross-entropy, to be shown)
            shown = {name: self.mine.cross_entropy(logits, torch.where(mask, ids, PAD), PAD)
                     for name, mask in (("fast", ids >= FIRST_FAST), ("text", ids < FIRST_FAST))}
        memory = self.mine.memory_for_expert([(k[:robots], v[:robots]) for k, v in memory], self.insulate)
        return {**shown, "ce": self.mine.cross_entropy(logits, ids, PAD),
                "flow": self.flow_loss(batch, memory, generator), "memory": memory}


def step_of(mine):
    """train.train_step, with your training_step in it (and without shards)."""
    def train_step(policy, parts, batches, generators, config, step):
        values, norms, memories = {}, {}, None
        for number in range(config.updates):                # both parts, then the expert alone on the same memory
            optim.set_rates([o for _, both in parts.values() for o in both], step, config.steps, config.warmup)
            now = {name: ([*part.parameters()], both) for name, (part, both) in parts.items() if number == 0 or name == "expert"}
            for losses, memory in ranks.forward_each(policy, batches, generators, PAD, config.shards, memories):
                values, memories = {name: value.item() for name, value in losses.items()} if number == 0 else values, [memory]
                norms |= mine.training_step({name: losses[name] for name in ("ce", "flow")}, now, config.alpha, config.clip)
        return values, norms
    return train_step


def train_with(mine, out, **options):
    """A run of nano_ki.train with the pieces of the module `mine` in place of the library's; its summary."""
    Block.mine = MyVLA.mine = mine
    with patch.object(flow, "path", mine.path), patch.object(flow, "target", mine.target), patch.object(train, "train_step", step_of(mine)):
        return train.train(config.make(out=str(out), **{**SETTINGS, "steps": STEPS, **options}), policy=MyVLA)


def main():
    parser = program.parser(__doc__)
    parser.add_argument("what", nargs="?", choices=("check", "train"), default="check")
    parser.add_argument("--file", default=FILE, help="check this file instead of tutorials/my_vla.py")
    args = parser.parse_args()
    torch.manual_seed(0)
    found = {name: check.answer(args.file, name, test, careful=name != "training_step") for name, (_, test) in PIECES.items()}
    for name, (exercise, _) in PIECES.items():
        print(f"{'[x]' if found[name]['passed'] else '[ ]'} {name:18s} page {exercise[:2]}   "
              f"{'' if found[name]['passed'] else found[name]['says']}")
    if missing := [name for name in PIECES if not found[name]["passed"]]:
        sys.exit(f"{len(PIECES) - len(missing)} of {len(PIECES)} pieces; next: {missing[0]}, "
                 f"page {PIECES[missing[0]][0][:2]}; hints: python -m tutorials.check {PIECES[missing[0]][0]} --hint")
    if args.what == "check":
        print("all pieces are right; now: python -m tutorials.build train")
        return
    summary = train_with(check.load(args.file), program.ROOT / "runs" / "my_vla", overwrite=True)
    if summary:
        rate = summary["success"]["seen"]["rate"]
        print(f"\nyour file reaches {rate:.2f} on seen objects and {summary['success']['new_both']['rate']:.2f} on new ones, "
              f"in {summary['train_seconds']:.0f} seconds"
              + (": it is knowledge insulation, and you wrote it" if rate >= REACH
                 else f"; wanted {REACH}: is this machine's clock or a setting changed?"))


if __name__ == "__main__":
    program.run(main)
