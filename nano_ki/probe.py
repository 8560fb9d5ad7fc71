"""The leak meter: how large is the gradient of each loss on each part?

With insulation the flow loss must reach no weight of the VLM, and the cross-entropy must still reach all
of them. Both halves matter: a `.detach()` in the wrong place passes the first and fails the second
(README and tests list the wrong places). The expert's gates start closed, and through a closed gate
nothing leaks whatever is detached: so the probe opens them at random first.

Try it: python -m nano_ki.probe          Read next: train.py
"""
import json
from dataclasses import replace

import torch

from nano_ki import config as configuration
from nano_ki import program
from nano_ki.checkpoint import load_model, new_model
from nano_ki.episodes import Data
from nano_ki.model import Batch

LOSSES = ("flow", "fast", "text")


def parts(model):
    """{name of a part: its parameters}: vision encoder, embeddings, each decoder layer's q k v o mlp,
    head, expert. Every parameter of the model is in exactly one."""
    vlm = model.vlm
    groups = {"vision encoder": list(vlm.vit.parameters()),
              "embeddings": [vlm.embed.weight, vlm.position]}
    for i, block in enumerate(vlm.blocks):
        for name in ("q", "k", "v", "o"):
            groups[f"layer {i} {name}"] = [getattr(block, name).weight]
        groups[f"layer {i} mlp"] = [block.up.weight, block.down.weight]
    groups["head"] = [vlm.head.weight]
    groups["expert"] = list(model.expert.parameters())
    return groups


def expert_sees(name, depth):
    """Whether a part of the VLM can change what the expert reads: all but what comes after the last
    layer's K and V."""
    return name != "head" and name not in (f"layer {depth - 1} {p}" for p in ("q", "o", "mlp"))


def open_gates(model, seed=0):
    """Random gates, scales and output map of the expert (they are made as zeros), in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in model.expert.blocks:
            block.adapt.bias.normal_(0, .5, generator=generator)
        model.expert.leave.weight.normal_(0, .1, generator=generator)


def norm(gradients):
    """Norm of all these tensors together, a float. (float32 on the device: some have nothing wider.)"""
    return sum(g.norm().item() ** 2 for g in gradients) ** .5


def gradient_norms(model, batch, seed=0):
    """{loss: {part: gradient norm}} for each of LOSSES, one backward pass each, on one batch."""
    table = {}
    for loss in LOSSES:
        model.zero_grad(set_to_none=True)
        value = model.losses(batch, torch.Generator().manual_seed(seed))[loss]
        if value.requires_grad:
            value.backward()
        table[loss] = {name: norm(p.grad for p in group if p.grad is not None) for name, group in parts(model).items()}
    model.zero_grad(set_to_none=True)
    return table


def pull(model, batch, seed=0):
    """What either loss would do to the VLM, if both reached it: {part: {"flow", "ce": gradient norms, "cosine"}}, for
    the vision encoder, each layer and all of the VLM. (The stop-gradient is lifted meanwhile; nothing is trained.)"""
    insulate, model.insulate, gradients, out = model.insulate, False, {}, {}
    for loss in ("flow", "ce"):
        model.zero_grad(set_to_none=True)
        value = model(batch, torch.Generator(device=batch.chunk.device).manual_seed(seed))[loss]
        if value.requires_grad:
            value.backward()
        gradients[loss] = {name: torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in group])
                           for name, group in parts(model).items() if name != "expert"}
    model.zero_grad(set_to_none=True)
    model.insulate = insulate
    for name in ("vision encoder", *(f"layer {i}" for i in range(len(model.vlm.blocks))), ""):
        flow, ce = (torch.cat([g for part, g in gradients[loss].items() if part.startswith(name)]) for loss in ("flow", "ce"))
        norms = flow.norm().item(), ce.norm().item()
        cosine = (flow @ ce).item() / (norms[0] * norms[1]) if min(norms) > 0 else 0.
        out[name or "VLM"] = {"flow": round(norms[0], 6), "ce": round(norms[1], 6), "cosine": round(cosine, 4)}
    return out


def main():
    parser = program.parser(__doc__)
    parser.add_argument("--run", help="folder of a run (default: the shipped VLM with a new expert)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if args.run:
        model = load_model(args.run)
        data = Data(replace(model.config, episodes=200), model.fast)
    else:
        config = configuration.make(device="cpu", preset="laptop", episodes=200)
        data = Data(config)
        torch.manual_seed(0)
        model = new_model(config, data.fast)
        open_gates(model)
    batch, result = Batch(*data.batch()), {}
    for name, insulate in (("insulated", True), ("joint", False)):
        model.insulate = insulate
        result[name] = gradient_norms(model, batch)
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{'gradient norm on':18s}" + "".join(f"{f'{n}: {loss}':>18s}" for n in result for loss in LOSSES))
    for part in result["joint"]["flow"]:
        print(f"{part:18s}" + "".join(f"{result[n][loss][part]:18.4g}" for n in result for loss in LOSSES))


if __name__ == "__main__":
    program.run(main)
