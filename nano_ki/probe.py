"""The leak meter: how large is the gradient of each loss on each part?

With insulation, the flow loss must reach no weight of the VLM, and the cross-entropy must still reach all of them. A
`.detach()` in the wrong place can pass the first half of this test and fail the second.

Try it: python -m nano_ki.probe          Read next: train.py
"""
import json
from dataclasses import replace

import torch

from nano_ki import checkpoint, config, episodes, program

LOSSES = ("flow", "fast", "text")

def parts(model):
    """{part: its parameters}, each in one part: vision encoder, embeddings, layers' q k v o mlp, head, expert."""
    vlm = model.vlm
    groups = {"vision encoder": list(vlm.vit.parameters()), "embeddings": [vlm.embed.weight, vlm.position, vlm.page]}
    for i, block in enumerate(vlm.blocks):
        groups |= {f"layer {i} {name}": [getattr(block, name).weight] for name in "qkvo"}
        groups[f"layer {i} mlp"] = [block.up.weight, block.down.weight]
    return {**groups, "head": [vlm.head.weight], "expert": list(model.expert.parameters())}

@torch.no_grad()
def open_gates(model, seed=0):
    """Draw the expert's gates, scales and output map at random, in place. (In a new one they are 0: nothing leaks.)"""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.expert.adapt:
        layer.bias.normal_(0, .5, generator=generator)
    model.expert.leave.weight.normal_(0, .1, generator=generator)

def gradient_norms(model, batch, seed=0):
    """{loss: {part: gradient norm}} for each of LOSSES, on one batch. (In float32: some devices have nothing wider.)"""
    table = {}
    for loss in LOSSES:
        model.zero_grad(set_to_none=True)
        value = model.losses(batch, torch.Generator(batch.chunk.device).manual_seed(seed))[loss]
        if value.requires_grad:
            value.backward()
        table[loss] = {part: sum(p.grad.norm().item() ** 2 for p in group if p.grad is not None) ** .5
                       for part, group in parts(model).items()}
    model.zero_grad(set_to_none=True)
    return table

def main():
    parser = program.parser(__doc__)
    parser.add_argument("--run", help="folder of a run (default: the shipped VLM with a new expert)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if args.run:
        model = checkpoint.load_model(args.run)
        data = episodes.Data(replace(model.config, episodes=200), model.fast)
    else:
        data = episodes.Data(config.make(device="cpu", preset="laptop", episodes=200))
        torch.manual_seed(0)
        model = checkpoint.new_model(data.config, data.fast)
        open_gates(model)
    batch, result = data.batch(), {}
    for way, model.insulate in (("insulated", True), ("joint", False)):
        result[way] = gradient_norms(model, batch)
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{'gradient norm on':18s}" + "".join(f"{f'{way}: {loss}':>18s}" for way in result for loss in LOSSES))
    for part in parts(model):
        print(f"{part:18s}" + "".join(f"{result[way][loss][part]:18.4g}" for way in result for loss in LOSSES))
    print("""0 under `insulated: flow` means that nothing leaks. The expert reads only K and V, so the head and the last layer's
q, o and mlp are 0 under `joint: flow` too. The gates of a new expert are random here: compare zeros, not sizes.""")

if __name__ == "__main__":
    program.run(main)
