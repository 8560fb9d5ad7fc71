"""Training as nano_ki.train does it, and what either loss would do to the VLM, measured in each check on the way.

    python -m tutorials.studies.watched [flags of nano_ki.train]          # "pull" in the lines of metrics.jsonl
"""
import torch

from nano_ki import config as configuration
from nano_ki import probe, program, train


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
                           for name, group in probe.parts(model).items() if name != "expert"}
    model.zero_grad(set_to_none=True)
    model.insulate = insulate
    for name in ("vision encoder", *(f"layer {i} " for i in range(len(model.vlm.blocks))), ""):
        flow, ce = (torch.cat([g for part, g in gradients[loss].items() if part.startswith(name)]) for loss in ("flow", "ce"))
        norms = flow.norm().item(), ce.norm().item()
        cosine = (flow @ ce).item() / (norms[0] * norms[1]) if min(norms) > 0 else 0.
        out[name.strip() or "VLM"] = {"flow": round(norms[0], 6), "ce": round(norms[1], 6), "cosine": round(cosine, 4)}
    return out


def watch(model, data):
    """For nano_ki.train.train: the pull on one batch, the same in every check."""
    return {"pull": pull(model, train.to_device(data.batch(model.config.steps), model.config.device))}


def main():
    train.train(configuration.parse(description=__doc__), watch=watch)


if __name__ == "__main__":
    program.run(main, files=True)
