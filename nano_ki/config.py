"""Every setting, in one frozen dataclass: defaults < preset < recipe < flags on the command line.

Each field is a flag (--steps 500, --insulate / --no-insulate); its comment is the flag's help text. A recipe
says which losses there are and whether the flow loss reaches the VLM. A preset says how large everything is.

Try it: python -m nano_ki.train --help          Read next: world.py
"""
import argparse
import inspect
import re
from dataclasses import dataclass, fields

import torch

from nano_ki import program
from nano_ki.language import MOST_PUCKS
from nano_ki.world import KINDS, STEPS


@dataclass(frozen=True)
class Config:
    # -- The method
    recipe: str = "ki"              # ki | joint | pi0 | pi0_fast | frozen: sets the next five fields
    insulate: bool = True           # stop the flow loss at the memory: the one .detach() of the method
    fast_loss: bool = True          # train the VLM on FAST action tokens (cross-entropy)
    vlm_samples: int = 24           # questions and captions in each batch, for the VLM (0: no co-training)
    flow_loss: bool = True          # train the action expert by flow matching
    freeze: bool = False            # train the expert only
    alpha: float = 1.               # weight of the flow loss
    flow_draws: int = 4             # noises and times per sample that share one pass of the VLM
    robot_questions: float = .5     # share of the questions that is about pictures of the demonstrations
    # -- The world and its demonstrations
    kinds: str = "seen"             # objects shown: seen | recombined | new_colour | new_shape | new_both | all, or 3 | 8 | 16 of them
    goals: str = "sides"            # where pucks go: sides (by name) | pads (only the camera shows) | mixed
    episodes: int = 12000           # demonstrations (failed ones are dropped)
    wobble: float = .06             # offset of the waypoints that are executed, standard deviation
    pucks: int = 3                  # on each table
    rate: int = 1                   # control rate: a chunk has 16 x so many waypoints, each so much finer
    grain: float = .16              # noise of the robot's camera, standard deviation (pixels run from 0 to 1)
    image: int = 48                 # picture side in pixels, a multiple of 8
    # -- The model
    gamma: float = 6.               # FAST: coefficients are rounded to 1 / gamma
    fast_vocab: int = 320           # FAST: tokens in all
    vlm: str = "data/vlm.pt"        # pre-trained VLM to start from ("": none); the next three sizes must be its own
    vlm_width: int = 64             # width of the VLM, a multiple of 32 (one head)
    vit_depth: int = 2              # layers of the vision transformer
    depth: int = 4                  # layers of the decoder, and of the expert
    vlm_steps: int = 0              # where --vlm is not there: pre-train it for so many steps (0: an error)
    expert_width: int = 96          # width of the action expert
    # -- Training
    steps: int = 1200               # training steps
    batch: int = 64                 # robot samples in each step
    vlm_rate: float = .01           # Muon learning rate of the VLM's hidden matrices
    vlm_adam: float = .01           # AdamW learning rate of the VLM's embeddings and head
    expert_rate: float = .03        # Muon learning rate of the expert's hidden matrices
    expert_adam: float = .0045      # AdamW learning rate of the rest of the expert
    warmup: int = 100               # steps of linear warm-up; the second half decays linearly to 0
    clip: float = 1.                # gradient norm limit, for the VLM and for the expert each
    seed: int = 0                   # of everything random
    # -- Acting and evaluation
    euler_steps: int = 10           # integration steps per chunk
    execute: int = 8                # waypoints executed before the next plan
    scenes: int = 400               # evaluation scenes in each test set
    check_every: int = 400          # steps between short evaluations during training (0: none)
    # -- The run's folder
    out: str = ""                   # folder of the run ("": a new one under runs/)
    resume: bool = False            # go on with the run that --out holds
    overwrite: bool = False         # replace the run that --out already holds
    save_every: int = 200           # steps between checkpoints
    # -- The machine
    preset: str = "auto"            # auto | laptop | gpu | big: sizes for the machine
    device: str = "auto"            # auto | cpu | cuda | mps
    threads: int = 0                # CPU threads of training (0: measured at the start; the same number gives the same bits)
    workers: int = 0                # processes that draw batches ahead (0: none)
    shards: int = 1                 # parts of a step's batch, shared out over the processes; else one by one
    fsdp: bool = False              # with torchrun: share weights and optimisers out too (FSDP2), not only data
    bfloat16: bool = False          # matrix products in bfloat16 (weights and optimisers stay float32)
    compile: bool = False           # compile the transformer blocks (one minute at the start)
    # -- Studies: what only comparisons change
    tokens: str = "fast"            # fast | binned: one token for each number, in order of time
    expert_from: float = 0.         # share of the steps after which the expert joins (before: tokens alone)
    state: bool = True              # tell the policy where its finger is (as words); else only the camera does
    blind: bool = False             # hide the command's words from the policy (a control)
    validate: bool = False          # evaluate in other scenes than the test's, to choose settings in

    @property
    def cross_entropy(self):
        """Whether the VLM has a loss of its own: action tokens, text or both."""
        return self.fast_loss or self.vlm_samples > 0


RECIPES = {
    "ki": dict(),
    "joint": dict(insulate=False),
    "pi0": dict(insulate=False, fast_loss=False, vlm_samples=0),
    "pi0_fast": dict(insulate=False, flow_loss=False, vlm_samples=0),
    "frozen": dict(fast_loss=False, vlm_samples=0, freeze=True),
}
# One GPU wants larger pictures, finer motion and a wider model to be kept busy. Its VLM (22 M) is made by the first
# run. `big` (408 M) is there to measure speed: it starts from nothing and is not meant to learn the toy.
GPU = dict(image=96, pucks=4, rate=2, execute=16, fast_vocab=512, vlm_width=384, vit_depth=4, depth=8, expert_width=192,
           vlm="runs/vlm-gpu.pt", vlm_steps=6000, batch=256, vlm_samples=96, episodes=40000, steps=3000,
           scenes=1000, check_every=1000, bfloat16=True, compile=True, workers=12)
PRESETS = {
    "laptop": dict(),
    "gpu": GPU,
    "big": {**GPU, **dict(vlm_width=1024, vit_depth=6, depth=18, expert_width=512, vlm="", vlm_steps=0,
                          batch=128, vlm_samples=48, episodes=4000, steps=100, warmup=10, scenes=16, check_every=0)},
}
CHOICES = {"recipe": tuple(RECIPES), "preset": ("auto", *PRESETS), "goals": ("sides", "pads", "mixed"),
           "kinds": tuple(KINDS), "tokens": ("fast", "binned"), "device": ("auto", "cpu", "cuda", "mps")}
BOUNDS = {          # of every number, both included; --help shows them
    "vlm_samples": (0, 65536), "alpha": (0, 1e6), "flow_draws": (1, 4096), "robot_questions": (0, 1),
    "episodes": (1, 10 ** 7), "wobble": (0, .5), "pucks": (1, MOST_PUCKS), "rate": (1, 8), "grain": (0, 1), "image": (16, 192),
    "gamma": (1, 100), "fast_vocab": (16, 30000), "vlm_width": (32, 8192), "vit_depth": (0, 128), "depth": (1, 128),
    "vlm_steps": (0, 10 ** 8), "expert_width": (1, 8192), "steps": (1, 10 ** 8), "batch": (1, 65536), "vlm_rate": (1e-9, 10),
    "vlm_adam": (1e-9, 10), "expert_rate": (1e-9, 10), "expert_adam": (1e-9, 10), "warmup": (1, 10 ** 8), "clip": (1e-6, 1e9),
    "seed": (0, 2 ** 31 - 1), "euler_steps": (1, 1000), "execute": (1, 8 * STEPS), "scenes": (1, 10 ** 6),
    "check_every": (0, 10 ** 8), "save_every": (1, 10 ** 8), "threads": (0, 1024), "workers": (0, 256), "shards": (1, 65536),
    "expert_from": (0, .999)}
ELSEWHERE = ("device", "threads", "workers")     # may change when a run goes on, on another machine


def helps():
    """{field: its trailing comment in the source above}, and the headings, {field: the heading it stands under}."""
    notes, under, heading = {}, {}, ""
    for line in inspect.getsource(Config).splitlines():
        if title := re.match(r"    # -- (.*)", line):
            heading = title[1]
        elif field := re.match(r"    (\w+): \w+ = .*?  # (.*)$", line):
            notes[field[1]], under[field[1]] = field[2], heading
    return notes, under


def add_flags(parser, names=()):
    """One flag a field (or a flag for each of `names`), under the headings above. Flags not given stay absent, so that
    a preset or recipe is not overridden."""
    (notes, under), groups = helps(), {}
    for field in fields(Config):
        if names and field.name not in names:
            continue
        heading = under[field.name]
        group = groups[heading] = groups.get(heading) or parser.add_argument_group(heading)
        low, high = BOUNDS.get(field.name, (None, None))
        bounds = "" if low is None else f"{low:g} to {high:g}; "
        options = dict(help=f"{notes[field.name]} ({bounds}default {field.default!r})".replace("%", "%%"),
                       default=argparse.SUPPRESS)
        if field.type is bool:
            group.add_argument(flag(field.name), action=argparse.BooleanOptionalAction, **options)
        else:
            group.add_argument(flag(field.name), type=field.type, choices=CHOICES.get(field.name), **options)


def flag(name):
    return f"--{name.replace('_', '-')}"


def parse(argv=None, description=None):
    """Command line -> Config. Unknown flags and values end the program with a message."""
    parser = program.parser(description)
    add_flags(parser)
    given = vars(parser.parse_args(argv))
    fixed = sorted(set(given) - {"resume", "out", *ELSEWHERE})
    if given.get("resume") and fixed:
        parser.error(f"--resume goes on with the run's own settings; drop {', '.join(fixed)}")
    try:
        return make(**given)
    except ValueError as error:
        parser.error(str(error))


def make(**given):
    """Config from the fields given; device, preset and recipe decide the rest. ValueError if they clash, or if this
    machine has no such device. (A run that goes on has its own device, until train.py reads it.)"""
    device = given.get("device", "auto")
    if device != "auto" or not given.get("resume"):
        device = this_device(device)
    preset = given.get("preset", "auto")
    if preset == "auto":
        preset = "gpu" if device == "cuda" else "laptop"
    for name, value in (("recipe", given.get("recipe", "ki")), ("preset", preset)):
        if value not in CHOICES[name]:
            raise ValueError(f"{name} is {value!r}; choose from {', '.join(CHOICES[name])}")
    chosen = {**PRESETS[preset], **RECIPES[given.get("recipe", "ki")], **given}
    config = Config(**{**chosen, "device": device, "preset": preset})
    check(config)
    return config


def this_device(name):
    """"auto" -> the best device here. ValueError for one that is not here."""
    here = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name not in (*here, "auto"):
        raise ValueError(f"--device is {name}, and PyTorch finds none on this machine; choose from auto, {', '.join(here)}")
    return here[0] if name == "auto" else name


def in_bounds(values, names):
    """ValueError for the first of these {name: number} that is out of its BOUNDS."""
    for name in names:
        low, high = BOUNDS[name]
        if not low <= values[name] <= high:
            raise ValueError(f"{flag(name)} is {values[name]}; it must be {'above 0' if low else '0 or more'}: {low:g} to {high:g}")


def check(c):
    """ValueError if a value is out of bounds or two of them clash."""
    if c.expert_from >= 1:
        raise ValueError(f"--expert-from is {c.expert_from}; it is a share of the steps, below 1")
    if not 0 <= c.robot_questions <= 1:
        raise ValueError(f"--robot-questions is {c.robot_questions}; it is a share, 0 to 1")
    in_bounds(vars(c), BOUNDS)
    for name, choices in CHOICES.items():
        if getattr(c, name) not in choices:
            raise ValueError(f"{flag(name)} is {getattr(c, name)!r}; choose from {', '.join(choices)}")
    if c.image % 8:
        raise ValueError(f"--image is {c.image}; it must be a multiple of 8")
    if c.vlm_width % 32:
        raise ValueError(f"--vlm-width is {c.vlm_width}; it must be a multiple of 32")
    if c.execute > c.rate * STEPS:
        raise ValueError(f"--execute is {c.execute}; a chunk has {c.rate * STEPS} waypoints")
    most = min(MOST_PUCKS, *(len(KINDS[k]) for k in (c.kinds, "seen")))
    if c.pucks > most:
        raise ValueError(f"--pucks is {c.pucks}; with these --kinds it must be 1 to {most}")
    if c.batch % c.shards or c.vlm_samples % c.shards:
        raise ValueError(f"--shards is {c.shards}; it must divide --batch {c.batch} and --vlm-samples {c.vlm_samples}")
    if not (c.fast_loss or c.flow_loss):
        raise ValueError("neither --fast-loss nor --flow-loss: nothing to train")
    if c.expert_from and not (c.flow_loss and c.cross_entropy and not c.freeze):
        raise ValueError("--expert-from needs a VLM that learns before (--fast-loss or --vlm-samples), and --flow-loss")
    if c.freeze and not c.flow_loss:
        raise ValueError("--freeze without --flow-loss: nothing to train")
    if c.resume and not c.out:
        raise ValueError("--resume needs --out: which run?")
