"""How fast is this machine at each part of the job, and what would a larger job need?

Each figure is measured on the code that training and acting use, and set against the machine's own matrix
peak. The work of a step is counted by a formula (`step_flops`; a test holds it against PyTorch's counter),
and so are the memory and the traffic of jobs that are too large to try (`plan`).

Try it: python -m tutorials.studies.bench [--preset gpu] [--json]      python -m tutorials.studies.bench --plan
Read next: ../11_scaling.md
"""
import json
import os
import platform
import sys
import tempfile
import time
import timeit
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nano_ki import checkpoint, evaluate, language, program, render, train, world
from nano_ki import config as configuration
from nano_ki.decoder import PAGES
from nano_ki.episodes import Data
from nano_ki.expert import PATCH
from nano_ki.vit import FEATURES

HALVED = .62         # activations with bfloat16 products against float32: the residual stream stays float32 (measured)
REPLY = 2            # tokens of the answer to a question about two pages: a side, <end>
STEPS = 60           # training steps to measure; the first 20 are not counted


# -- counted ------------------------------------------------------------------------------------------


def sizes(c, vocabulary, columns, dims=3):
    """The lengths and widths that the formulas need, by name. vocabulary V: words and FAST tokens; columns:
    answer tokens (with <end> and padding) that a batch holds, F."""
    P = (c.image // 8) ** 2                                  # picture tokens
    T = P + language.SLOTS                                   # prefix tokens
    said = language.LANDING * c.subtask                      # words of an answer that the expert reads
    hidden = c.batch // 2 * c.subtask                        # samples of whose memory the expert reads goal, finger and subtask alone
    pairs = round(c.two_pages * c.vlm_samples)               # questions about two pages, answered by REPLY tokens
    return {"D": c.vlm_width, "E": c.expert_width, "V": vocabulary, "A": PATCH * dims, "P": P, "T": T,
            "L": T + (columns - 1 if c.cross_entropy else said), "F": columns if c.cross_entropy else 1 + said, "M": T + said,
            "L2": PAGES * T + REPLY - 1, "pairs": pairs, "samples": c.batch + c.vlm_samples - pairs, "robots": c.batch,
            "n": c.flow_draws * c.rate * world.STEPS // PATCH,     # action tokens of a sample, all draws
            "R": c.flow_draws, "U": c.updates,
            "read": T + said - hidden / c.batch * (T - 4)}                     # of it, by the expert: the mean over samples


def step_flops(c, data):
    """Floating-point operations of all matrix products in one training step, forward and backward, over all
    shards. Nothing is counted twice where a kernel computes it again; Muon's products are not in it."""
    batch = data.batch()
    return c.shards * flops(replace(c, batch=c.batch // c.shards, vlm_samples=c.vlm_samples // c.shards),
                            language.FIRST_FAST + data.fast.vocab, batch.answer.shape[1])


def flops(c, vocabulary, columns):
    """step_flops of one shard, from sizes alone. A product of [a, b] by [b, c] is 2 a b c."""
    s = sizes(c, vocabulary, columns)
    D, E, M, L, P, n = (s[k] for k in "DEMLPn")

    def block(tokens):
        return 24 * D * D * tokens + 4 * tokens * tokens * D         # q k v o and the MLP; q k^T and (.) v
    windows = 2 * (4 * P) * FEATURES * 192
    vit = 2 * P * D * 16 * FEATURES + c.vit_depth * block(P)
    vlm, head = vit + c.depth * block(L), 2 * D * s["V"] * s["F"]
    pair = PAGES * vit + c.depth * block(s["L2"]) + 2 * D * s["V"] * REPLY
    seen = (s["samples"] + PAGES * s["pairs"]) * windows
    forward = seen + s["samples"] * (vlm + head) + s["pairs"] * pair
    # Backward: as much again for the inputs and for the weights; a picture needs no gradient. Without a loss
    # on answers (pi0) the last layer matters by its K and V alone, which one product makes together with its Q.
    backward = seen + 2 * (s["samples"] * (vlm + head) + s["pairs"] * pair)
    if not c.cross_entropy:
        backward = seen + 2 * s["samples"] * (vlm - block(L) + 6 * D * D * M)
    if not c.vlm_learns:
        backward = 0
    # The draws are dealt out to U updates, and those of one update are in one product, masked.
    layer = 2 * n * (4 * E * D + 8 * E * E) + 2 * s["R"] * 6 * E * E + 4 * n * (s["read"] + n // s["U"]) * D
    inner = c.depth * layer + 2 * n * E * s["A"] + 2 * s["R"] * E * E
    outer = 2 * n * s["A"] * E + 2 * s["R"] * 32 * E                 # first maps: their inputs need no gradient
    expert = s["robots"] * (3 * inner + 2 * outer) if c.flow_loss else 0
    return forward + backward + round(expert)


def parameters(c, vocabulary, longest, dims=3):
    """{"vlm": hidden, "vlm rest", "expert", "expert rest"}: numbers of weights; hidden ones are Muon's.
    longest: answer tokens at most."""
    D, E, V, A = c.vlm_width, c.expert_width, vocabulary, PATCH * dims
    return {"vlm": (c.vit_depth + c.depth) * 12 * D * D + FEATURES * 192 + 16 * FEATURES * D,
            "vlm rest": 2 * V * D + (language.SLOTS + longest + PAGES) * D + FEATURES,
            "expert": c.depth * (4 * E * D + 8 * E * E + 6 * E * E),
            "expert rest": (2 * A + 1) * E + A + c.rate * world.STEPS // PATCH * E + 32 * E + E + E * E + E
            + c.depth * 6 * E}


def state_bytes(p, c):
    """Bytes of weights, gradients and optimiser states in float32: Muon keeps one number a weight, AdamW two."""
    trained = [p["vlm"] * c.vlm_learns + p["expert"], p["vlm rest"] * c.vlm_learns + p["expert rest"]]
    return 4 * (sum(p.values()) + 2 * trained[0] + 3 * trained[1])


def activation_bytes(c, vocabulary, columns):
    """What the forward pass keeps for the backward pass of one shard, in bytes, counted per token and layer:
    the inputs of each product, normalisation and activation. Rough by design: within 15 % (tested)."""
    s = sizes(c, vocabulary, columns)
    D, E, L, P, n = (s[k] for k in "DELPn")
    # The norm of x; q, k before and after their norms, v; attention out; a norm; MLP after relu, squared.
    # An expert layer has its scales and gates besides, and a copy of the memory that it reads. Only the draws of one
    # update are there at a time. Each layer's q, k and v are joined to one matrix.
    block = (1 + 5 + 1 + 1 + 8) * D
    pictures = s["samples"] + PAGES * s["pairs"]
    tokens = pictures * c.vit_depth * P + c.depth * (s["samples"] * L + s["pairs"] * s["L2"])
    answers = s["samples"] * s["F"] + s["pairs"] * REPLY
    vlm = tokens * block + answers * (s["V"] + 2 * D) + (c.vit_depth + c.depth) * 3 * D * D
    pixels = pictures * (4 * P * FEATURES * 2 + 192 * P)
    layer = (n * (14 * E + 6 * D) + s["R"] * 9 * E) // s["U"] + 2 * s["read"] * D
    expert = c.depth * (s["robots"] * layer + 3 * D * E) if c.flow_loss else 0
    return 4 * ((vlm + pixels) * c.vlm_learns + expert)


def plan(c, gpus, vocabulary, columns, longest):
    """What one step of a job on `gpus` GPUs would take, per GPU, in float32 states and bfloat16 products:
    a dict of numbers. c.batch and c.vlm_samples are those of one GPU here."""
    p, s = parameters(c, vocabulary, longest), sizes(c, vocabulary, columns)
    weights, share = sum(p.values()), (gpus - 1) / gpus
    return {"gpus": gpus, "samples": gpus * (s["samples"] + s["pairs"]),
            "tokens": gpus * (s["samples"] * s["L"] + s["pairs"] * s["L2"] + s["robots"] * s["n"]),
            "states_gb": state_bytes(p, c) / gpus / 1e9,
            "activations_gb": HALVED * activation_bytes(c, vocabulary, columns) / 1e9,
            # FSDP2: each weight is gathered for forward and backward, its gradient is scattered: 4 bytes each.
            "fsdp_gb": 12 * weights * share / 1e9, "ddp_gb": 8 * weights * share / 1e9,
            "petaflop": flops(c, vocabulary, columns) / 1e15}


PLANNED = dict(vlm_width=2560, vit_depth=4, depth=34, expert_width=512, batch=12, vlm_samples=4, image=192, rate=3,
               execute=48, pucks=4)
PLANNED_VOCABULARY, PLANNED_COLUMNS, PLANNED_LONGEST = 2048, 42, 147


def plan_table(peak=1e15, reach=.4, link=50e9):
    """Markdown: three sizes of a job with 3 billion parameters. peak: a GPU's bfloat16 FLOP/s; reach: the share
    of it that training gets; link: bytes per second into one GPU from other machines."""
    c = configuration.make(device="cpu", preset="laptop", **PLANNED)
    p = parameters(c, PLANNED_VOCABULARY, PLANNED_LONGEST)
    out = [f"{sum(p.values()) / 1e9:.2f} B parameters (VLM {(p['vlm'] + p['vlm rest']) / 1e9:.2f} B, width "
           f"{c.vlm_width}, {c.vit_depth} vision + {c.depth} VLM layers; expert {(p['expert'] + p['expert rest']) / 1e9:.2f} B), "
           f"{c.batch} robot and {c.vlm_samples} question samples on each GPU, {c.image} x {c.image} pixels, "
           f"{c.rate * world.STEPS} waypoints a chunk.", "",
           "| GPUs | samples a step | tokens a step | states, GB a GPU | activations, GB a GPU | traffic, GB a GPU: FSDP2 (DDP) | "
           "compute, s | traffic, s |", "|---" * 8 + "|"]
    for gpus in (8, 64, 512):
        r = plan(c, gpus, PLANNED_VOCABULARY, PLANNED_COLUMNS, PLANNED_LONGEST)
        out.append(f"| {gpus} | {r['samples']:,} | {r['tokens']:,} | {r['states_gb']:.1f} | {r['activations_gb']:.1f} | "
                   f"{r['fsdp_gb']:.1f} ({r['ddp_gb']:.1f}) | {1e15 * r['petaflop'] / peak / reach:.2f} | "
                   f"{1e9 * r['fsdp_gb'] / link:.2f} |")
    return "\n".join(out)


# -- measured -----------------------------------------------------------------------------------------


def matrix_peak(c):
    """FLOP/s that a large matrix product reaches here, in the precision of c's training step: best of 5."""
    # (A CPU without bfloat16 units takes minutes for a large product in it.)
    size = 8192 if c.device == "cuda" else 512 if c.bfloat16 else 2048
    a = torch.randn(size, size, device=c.device, dtype=torch.bfloat16 if c.bfloat16 else torch.float32)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size ** 3 / best


def seconds(function, times=5):
    """Median of `times` runs, after one that is not counted."""
    return float(np.median(timeit.repeat(function, number=1, repeat=times + 1)[1:]))


def latency(model):
    """evaluate.latency, and on a GPU the flow as one CUDA graph."""
    c, ms = model.config, evaluate.latency(model)
    if c.device == "cuda" and c.flow_loss:
        one = evaluate.inputs(model, evaluate.test_scenes("seen", 1, pucks=c.pucks))
        with torch.autocast("cuda", torch.bfloat16, enabled=c.bfloat16, cache_enabled=False):
            act = graphed(model.act, *one)
            ms["flow"] = 1000 * seconds(lambda: act(*one).cpu(), 10)
    return ms


def graphed(act, *inputs):
    """act(*inputs), recorded as one CUDA graph -> a function that copies new inputs in and replays it. (Acting is
    some thousand small kernels: to launch them one by one takes longer than to run them.)"""
    held, side = [x.clone() for x in inputs], torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):                                 # a recording may not set anything up
            act(*held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = act(*held)

    def replay(*inputs):
        for old, new in zip(held, inputs, strict=True):
            old.copy_(new)
        graph.replay()
        return out
    return replay


def measure(c):
    """Everything, as a flat dict of numbers (units are in the names)."""
    rng = np.random.default_rng(0)
    tables = world.sample(rng, 2000, pucks=c.pucks)
    action = world.stroke(tables, c.rate)[:, 0]
    some = tables.take(slice(0, 256))
    out = {"matrix_peak_gflops": matrix_peak(c) / 1e9,
           "world_steps_per_s": 2000 / seconds(lambda: world.step(tables, action, c.rate), 20),
           "robot_pictures_per_s": 256 / seconds(lambda: render.robot_camera(some, c.image)),
           "book_pictures_per_s": 256 / seconds(lambda: render.picture_book(some, rng, c.image))}
    with tempfile.TemporaryDirectory() as folder:
        run = replace(c, steps=STEPS + 1, check_every=0, scenes=2, out=str(Path(folder) / "run"))
        train.train(run, stop=lambda step: step == STEPS)          # the real loop, without what comes after it
        lines = checkpoint.read_metrics(Path(run.out) / "metrics.jsonl")
        model = checkpoint.load_model(run.out, c.device)
    data = Data(c, model.fast)
    first, last = lines[0], lines[-1]
    steps, spent = last["step"] - first["step"], last["seconds"] - first["seconds"]
    work = step_flops(c, data)
    out |= {"step_ms": 1000 * spent / steps, "step_gflop": work / 1e9,
            "share_of_peak": work * steps / spent / (1e9 * out["matrix_peak_gflops"]),
            "data_wait_share": (last["waited"] - first["waited"]) / spent,
            "batch_ms": 1000 * seconds(data.batch), "samples_per_s": (c.batch + c.vlm_samples) * steps / spent}
    chunks = model.fast.restore(data.chunks[:2000])
    ids = model.fast.encode(chunks)
    out |= {"encode_ms": 1000 * seconds(lambda: model.fast.encode(chunks)) / len(chunks),
            "decode_ms": 1000 * seconds(lambda: model.fast.decode(ids)) / len(chunks)}
    for name, ms in latency(model).items():
        if ms is not None:
            out[f"act_{name}_ms"] = ms
    out["parameters"] = sum(p.numel() for p in model.parameters())
    out["peak_memory_mib"] = program.peak_memory_mib()
    if c.device == "cuda":
        out["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2 ** 20
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in out.items()}


def machine(c):
    """What it was measured on."""
    return {"device": torch.cuda.get_device_name() if c.device == "cuda" else f"{c.device}, {platform.machine()}",
            "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__,
            "preset": c.preset, "recipe": c.recipe}


NAMES = {"matrix_peak_gflops": "matrix peak, GFLOP/s", "step_ms": "training step, ms",
         "step_gflop": "its matrix work, GFLOP", "share_of_peak": "share of the matrix peak",
         "data_wait_share": "share of the time spent waiting for data", "samples_per_s": "samples trained on, /s",
         "batch_ms": "drawing a batch in one process, ms", "world_steps_per_s": "world, steps/s",
         "robot_pictures_per_s": "robot pictures, /s", "book_pictures_per_s": "book pages, /s",
         "encode_ms": "FAST encode, many chunks at once: ms for each", "decode_ms": "FAST decode, many chunks at once: ms for each",
         "act_flow_ms": "acting by flow, ms a chunk", "act_autoregressive_ms": "acting by FAST tokens, ms a chunk",
         "parameters": "parameters", "peak_memory_mib": "peak memory, MiB", "peak_gpu_mib": "peak GPU memory, MiB"}


def table(result):
    """Markdown of what `measure` returned."""
    lines = [f"| {name} | {result[key]:,.10g} |" for key, name in NAMES.items() if result.get(key) is not None]
    return "\n".join(["| what | measured |", "|---|---|", *lines])


def main():
    parser = program.parser(__doc__)
    parser.add_argument("--plan", action="store_true", help="print what a job of 3 B parameters would take, and end")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--save", help="write the JSON to this file too")
    configuration.add_flags(parser)
    given = vars(parser.parse_args())
    own = {k: given.pop(k) for k in ("plan", "json", "save")}
    if own["plan"]:
        print(plan_table())
        return
    c = configuration.make(**given)
    with redirect_stdout(sys.stderr):                          # (training has things to say)
        result = {**machine(c), **measure(c)}
    if own["save"]:
        program.write_json(own["save"], result)
    print(json.dumps(result, indent=1) if own["json"] else
          f"{result['device']}, {result['cores']} cores, preset {c.preset}, recipe {c.recipe}\n\n{table(result)}")


if __name__ == "__main__":
    program.run(main)
