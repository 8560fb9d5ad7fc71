"""The leak meter: how large is the gradient of each loss on each part?

With insulation the flow loss must reach no weight of the VLM, and the cross-entropy must still reach all
of them. Both halves matter: a `.detach()` in the wrong place passes the first and fails the second
(README and tests list the wrong places). The expert's gates start closed, and through a closed gate
nothing leaks whatever is detached: so the probe opens them at random first.

Try it: python -m nano_ki.probe          Read next: train.py
"""
import argparse
import json
import sys
from dataclasses import replace

import torch

from nano_ki.model import Batch
from nano_ki.pretrain import load_vlm

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


def gradient_norms(model, batch, seed=0):
    """{loss: {part: gradient norm}} for each of LOSSES, one backward pass each, on one batch."""
    table = {}
    for loss in LOSSES:
        model.zero_grad(set_to_none=True)
        value = model.losses(batch, torch.Generator().manual_seed(seed))[loss]
        if value.requires_grad:
            value.backward()
        table[loss] = {name: float(sum(p.grad.double().square().sum() for p in group
                                       if p.grad is not None)) ** .5
                       for name, group in parts(model).items()}
    model.zero_grad(set_to_none=True)
    return table


def pull(model, batch, seed=0):
    """What either loss would do to the VLM, if both reached it: {part: {"flow", "ce": gradient norms, "cosine"}}, for
    the vision encoder, each layer and all of the VLM. (Nothing is trained; the stop-gradient is lifted meanwhile.)"""
    insulate, model.insulate, gradients = model.insulate, False, {}
    for loss in ("flow", "ce"):
        model.zero_grad(set_to_none=True)
        value = model(batch, torch.Generator(device=batch.chunk.device).manual_seed(seed))[loss]
        if value.requires_grad:
            value.backward()
        gradients[loss] = {name: torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).double().flatten()
                                            for p in group]) for name, group in parts(model).items() if name != "expert"}
    model.zero_grad(set_to_none=True)
    model.insulate, out = insulate, {}
    for name in ("vision encoder", *(f"layer {i}" for i in range(len(model.vlm.blocks))), ""):
        flow, ce = (torch.cat([g for part, g in gradients[loss].items() if part.startswith(name)])
                    for loss in ("flow", "ce"))
        norms = flow.norm().item(), ce.norm().item()
        cosine = (flow @ ce).item() / (norms[0] * norms[1]) if min(norms) > 0 else 0.
        out[name or "VLM"] = {"flow": round(norms[0], 6), "ce": round(norms[1], 6), "cosine": round(cosine, 4)}
    return out


def moved(model):
    """How far training took each part of the VLM: |now - start| / |start|, for the parts of `parts`."""
    from nano_ki.train import new_model
    torch.manual_seed(model.config.seed)
    then, now = parts(new_model(model.config, model.fast)), parts(model)
    out = {}
    for name in then:
        if name != "expert":
            a, b = (torch.cat([p.detach().flatten().cpu() for p in group[name]]) for group in (then, now))
            out[name] = round(((b - a).norm() / a.norm().clamp(min=1e-9)).item(), 4)
    return out


@torch.no_grad()
def readable(model, train=2000, test=1000):
    """What a linear map (ridge regression) can read off the memory, on robot pictures of all kinds of object:
    {"place", "colour", "shape"}: accuracy in new scenes.

    place of the named puck (within .15, the radius of success) from the last two words of the command; colour and
    shape of a puck from the picture token at its centre; all layers' K and V side by side.
    """
    from nano_ki import world
    from nano_ki.evaluate import inputs, test_scenes
    c, n = model.config, train + test
    tables = test_scenes("all", n, c.goals, 4000, c.pucks)
    memory = []
    for k in range(0, n, 500):
        image, prompt = inputs(model, tables.take(slice(k, k + 500)))
        layers = model.vlm(model.vlm.prefix(image, prompt))[1]
        memory.append(torch.cat([x.transpose(1, 2).flatten(2) for kv in layers for x in kv], -1).cpu())
    memory = torch.cat(memory)                                              # [n, T, layers * 2 * D]
    side = c.image // 8
    cell = ((tables.puck[:, 0] / (2 * world.HALF) + .5) * side).astype(int).clip(0, side - 1)
    at_puck = memory[torch.arange(n), torch.from_numpy(cell[:, 1] * side + cell[:, 0])]
    kind = torch.from_numpy(tables.kind[:, 0])
    place = torch.from_numpy(tables.target_xy()).double()

    def predict(features, wanted):
        x = features.double()
        x = torch.cat(((x - x[:train].mean(0)) / (x[:train].std(0) + 1e-6), torch.ones(n, 1)), 1)
        a = x[:train].T @ x[:train] + .1 * train * torch.eye(x.shape[1])
        return x[train:] @ torch.linalg.solve(a, x[:train].T @ wanted[:train])
    off = (predict(memory[:, -2:].flatten(1), place) - place[train:]).norm(dim=1)
    out = {"place": (off < world.NEAR).double().mean()}
    for i, (name, count) in enumerate((("colour", len(world.COLOURS)), ("shape", len(world.SHAPES)))):
        said = predict(at_puck, torch.eye(count, dtype=torch.double)[kind[:, i]]).argmax(1)
        out[name] = (said == kind[train:, i]).double().mean()
    return {name: round(value.item(), 4) for name, value in out.items()}


def main():
    from nano_ki import config as configuration
    from nano_ki.episodes import Data
    from nano_ki.model import VLA
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--run", help="folder of a run (default: the shipped VLM with a new expert)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    try:
        if args.run:
            from nano_ki.train import load_model
            model = load_model(args.run)
            data = Data(replace(model.config, episodes=200), model.fast)
        else:
            config = configuration.make(device="cpu", preset="laptop")
            data = Data(replace(config, episodes=200))
            torch.manual_seed(0)
            model = VLA(config, data.fast)
            load_vlm(model.vlm, config.vlm, config)
            open_gates(model)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
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
    main()
