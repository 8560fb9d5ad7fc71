"""Several processes, one run: who am I, what is the sum over all, and one model in all of them.

`torchrun --nproc-per-node N -m nano_ki.train` starts N copies of the program, one for each GPU (or, with
the gloo back end, on CPU cores). The batch of a step is cut into `shards`; each rank takes its share, DDP
adds the gradients up. FSDP2 (--fsdp) also shares out weights, gradients and optimisers: each rank keeps
1/N of each matrix and gathers the rest layer by layer. Without torchrun there is one rank, and everything
here does nothing.

Read next: train.py, tutorials/11_scaling.md
"""
import os
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DistributedDataParallel

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@contextmanager
def started(device):
    """Join the processes that torchrun started, if it did, and leave them at the end. Yields (rank, size)."""
    if "LOCAL_RANK" not in os.environ or dist.is_initialized():
        yield who()
        return
    if device == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(f"process {local} of this machine has no GPU of its own ({torch.cuda.device_count()} "
                             f"here); lower --nproc-per-node, or add --device cpu")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield who()
    finally:
        dist.destroy_process_group()


def who():
    """(rank, how many ranks there are)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shares(shards):
    """The shards of this rank. ValueError if they cannot be dealt out evenly."""
    rank, size = who()
    if shards % size:
        raise ValueError(f"--shards {shards} cannot be dealt out evenly to {size} processes; make it a multiple of {size}")
    return range(rank, shards, size)


def total(value, device):
    """The sum of a number over all ranks."""
    if not dist.is_initialized():
        return value
    value = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(value)
    return value.item()


def plain(value):
    """A tensor in one piece (FSDP2 keeps them cut up)."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def cut_like(value, p):
    """A tensor that every rank holds whole, cut up as p is: the inverse of `plain`."""
    if not hasattr(p, "full_tensor"):
        return value
    return distribute_tensor(value.to(p.dtype), p.device_mesh, p.placements, src_data_rank=None)


def agree(value):
    """What rank 0 has here, on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def spread(model, fsdp, unused=False):
    """The model to call in training: `model` itself, in DDP, or cut up in place by FSDP2. unused: a step does not
    reach every weight (pi0 uses no head, pi0_fast no expert)."""
    if fsdp and not dist.is_initialized():
        raise ValueError("--fsdp needs several processes: torchrun --nproc-per-node N -m nano_ki.train --fsdp ...")
    if not dist.is_initialized():
        return model
    if not fsdp:
        return DistributedDataParallel(model, find_unused_parameters=unused)
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    for block in (*model.vlm.vit.blocks, *model.vlm.blocks, *model.expert.blocks):
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@contextmanager
def exchange(spread_model, now):
    """Whether the backward pass in here adds gradients up over the ranks (the last one of a step does)."""
    if isinstance(spread_model, DistributedDataParallel) and not now:
        with spread_model.no_sync():
            yield
    else:
        if hasattr(spread_model, "set_requires_gradient_sync"):      # (FSDP2)
            spread_model.set_requires_gradient_sync(now)
        yield


def gather(model, optimisers):
    """(weights, optimiser states), whole. Where FSDP cut them up every rank must call it, and rank 0 gets them."""
    if not any(hasattr(p, "full_tensor") for p in model.parameters()):
        return model.state_dict(), [o.state_dict() for o in optimisers]
    return get_model_state_dict(model, options=WHOLE), [get_optimizer_state_dict(model, o, options=WHOLE)
                                                        for o in optimisers]


def scatter(model, optimisers, weights, states):
    """The inverse of `gather`, in place."""
    if not any(hasattr(p, "full_tensor") for p in model.parameters()):
        model.load_state_dict(weights)
        for optimiser, state in zip(optimisers, states, strict=True):
            optimiser.load_state_dict(state)
        return
    set_model_state_dict(model, weights, options=WHOLE)
    for optimiser, state in zip(optimisers, states, strict=True):
        set_optimizer_state_dict(model, optimiser, state, options=WHOLE)
