"""Several processes, one run: who am I, what is the sum over all, and one model in all of them.

`torchrun --nproc-per-node N -m -- nano_ki.train` starts N processes (ranks), one for each GPU or CPU core. A step's batch is
cut into `shards`, dealt out to the ranks. DDP adds the gradients up. With FSDP2 (--fsdp) each rank keeps 1/N of each
matrix and its optimiser, and gathers the rest layer by layer. Without torchrun there is one rank.
"""
import gc
import os
import timeit
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def several():
    """Whether this process is one of several. (Some builds of PyTorch lack torch.distributed.)"""
    return dist.is_available() and dist.is_initialized()

@contextmanager
def started(device):
    """Join the processes that torchrun started, if it did, and leave them at the end. Yields (rank, size)."""
    local = int(os.environ.get("LOCAL_RANK", -1))
    if local < 0 or several():
        yield who()
        return
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(f"process {local} has no GPU of its own; lower --nproc-per-node, or add --device cpu")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield who()
        together(device)                     # (a rank that leaves early can abort in the middle of another's message)
    finally:
        gc.collect()                         # (DDP holds itself in circles, and must be gone by now)
        dist.destroy_process_group()

def who():
    """(rank, how many ranks there are)."""
    return (dist.get_rank(), dist.get_world_size()) if several() else (0, 1)

def shares(shards):
    """The shards of this rank. ValueError if they cannot be dealt out evenly."""
    rank, size = who()
    if shards % size:
        raise ValueError(f"--shards is {shards} for {size} processes; make it a multiple of {size}")
    return range(rank, shards, size)

def total(value, device):
    """The sum of a number over all ranks, in float64 where the device has it (counts of tokens must be exact)."""
    if not several():
        return value
    value = torch.tensor(value, dtype=torch.float32 if device == "mps" else torch.float64, device=device)
    dist.all_reduce(value)
    return value.item()

def together(device):
    """Nobody goes on before all are here."""
    total(0., device)

def plain(value):
    """A tensor in one piece (FSDP2 keeps them cut up)."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value

def cut_like(value, p):
    """A tensor that every rank holds whole, cut up as p is: the inverse of `plain`."""
    if not hasattr(p, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(value.to(p.dtype), p.device_mesh, p.placements, src_data_rank=None)

def agree(value):
    """What rank 0 has here, on every rank."""
    values = [value]
    if several():
        dist.broadcast_object_list(values)
    return values[0]

def spread(model, fsdp, unused=False):
    """The model to call in training: itself, in DDP, or cut up in place by FSDP2. unused: a step skips some weights."""
    if not several():
        if fsdp:
            raise ValueError("--fsdp needs several processes: torchrun --nproc-per-node N -m -- nano_ki.train --fsdp ...")
        return model
    if not fsdp:
        return DistributedDataParallel(model, find_unused_parameters=unused)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    for block in (*model.vlm.vit.blocks, *model.vlm.blocks, *model.expert.blocks):
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)

@contextmanager
def threads_kept(meanwhile=None):
    """A block after which PyTorch has as many CPU threads as before. meanwhile: so many in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(meanwhile or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

def fastest_threads(work, tries=3):
    """How many CPU threads do work() fastest now: on a busy machine two of them wait for each other. Each of 1, 2, 4, ...
    threads, up to those that PyTorch has, does it a few times, or once, if that is slow. Rank 0's answer, on all ranks."""
    most, took = torch.get_num_threads(), {}
    with threads_kept():
        for threads in sorted({most, *(2 ** k for k in range(most.bit_length()))}) if most > 1 else ():
            torch.set_num_threads(threads)
            for _ in range(tries):
                seconds = timeit.timeit(work, number=1)
                took[threads] = min(seconds, took.get(threads, seconds))
                if seconds > 1.5 * took[1]:
                    break
    return agree(min(took, key=took.get, default=1))

def forward_each(spread_model, batches, generators, pad, shards, memories=None):
    """Run the model on each of this rank's batches. Yields (losses, memory), with losses scaled so that their sum over
    all batches of all ranks is that of one process with one large batch: "ce" was averaged over real answer tokens (not
    `pad`), the others over equally large shards. Call `backward` on each before asking for the next. memories: what the
    expert shall read of each batch (None: what the VLM makes of it)."""
    tokens = [sum(int((ids != pad).sum()) for ids in (batch.answer, batch.reply)) for batch in batches]
    everywhere = max(1, total(sum(tokens), batches[0].image.device.type))
    for i, (batch, generator) in enumerate(zip(batches, generators, strict=True)):
        now = i + 1 == len(batches)                          # ranks exchange gradients in a step's last pass only
        if hasattr(spread_model, "set_requires_gradient_sync"):          # (FSDP2)
            spread_model.set_requires_gradient_sync(now)
        later = isinstance(spread_model, DistributedDataParallel) and not now
        with spread_model.no_sync() if later else nullcontext():
            losses = spread_model(batch, generator, memories and memories[i])
            memory = losses.pop("memory", None)
            yield {k: v * (tokens[i] / everywhere if k == "ce" else 1 / shards) for k, v in losses.items()}, memory

def backward(loss):
    """Backward pass; gradients of all ranks are added up. (DDP and FSDP average them, hence the factor.)"""
    (who()[1] * loss).backward()

def gather(model, optimisers):
    """(weights, optimiser states), whole. Where FSDP cut them up every rank must call it, and rank 0 gets them."""
    if not _cut(model):
        return model.state_dict(), [o.state_dict() for o in optimisers]
    from torch.distributed.checkpoint import state_dict as dcp
    whole = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
    return (dcp.get_model_state_dict(model, options=whole), [dcp.get_optimizer_state_dict(model, o, options=whole) for o in optimisers])

def scatter(model, optimisers, weights, states):
    """The inverse of `gather`, in place."""
    if not _cut(model):
        model.load_state_dict(weights)
        for optimiser, state in zip(optimisers, states, strict=True):
            optimiser.load_state_dict(state)
        return
    from torch.distributed.checkpoint import state_dict as dcp
    whole = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
    dcp.set_model_state_dict(model, weights, options=whole)
    for optimiser, state in zip(optimisers, states, strict=True):
        dcp.set_optimizer_state_dict(model, optimiser, state, options=whole)

def _cut(model):
    return any(hasattr(p, "full_tensor") for p in model.parameters())
