"""Every setting, in one frozen dataclass: defaults < preset < recipe < flags on the command line.

Each field is a flag (--steps 500, --insulate / --no-insulate); its comment is the flag's help text.
A recipe says which losses there are and whether the flow loss reaches the VLM; a preset says how large.

Try it: python -m nano_ki.train --help          Read next: world.py
"""
import argparse
import inspect
import math
import re
from dataclasses import dataclass, fields

import torch

from nano_ki.language import MOST_PUCKS
from nano_ki.world import KINDS, STEPS


@dataclass(frozen=True)
class Config:
    # What is trained, and how the two parts meet.
    recipe: str = "ki"              # ki | joint | pi0 | pi0_fast | frozen: sets the fields down to freeze
    insulate: bool = True           # stop the flow loss at the memory: the one .detach() of the method
    fast_loss: bool = True          # cross-entropy on action tokens
    flow_loss: bool = True          # train the action expert by flow matching
    vlm_samples: int = 24           # questions with text answers in each batch (0: no co-training)
    robot_questions: float = .5     # share of these that ask about pictures of the demonstrations
    freeze: bool = False            # train the expert only
    expert_from: float = 0.         # share of the steps after which the expert joins (before: tokens alone)
    expert_sees_fast: bool = False  # a mistake to try: the expert may read the FAST tokens while it trains
    alpha: float = 1.               # weight of the flow loss
    flow_draws: int = 4             # noises and times per sample that share one pass of the VLM
    blind: bool = False             # hide the command's words from the policy (a control)
    state: bool = True              # tell the policy where its finger is (as words); else only the camera does
    # The world.
    kinds: str = "seen"             # objects in the robot data: seen | recombined | new_colour | new_shape | new_both | all, or 3 | 8 | 16 of them
    goals: str = "sides"            # where pucks go: sides (by name) | pads (only the camera shows) | mixed
    episodes: int = 12000           # demonstrations (failed ones are dropped)
    wobble: float = .06             # offset of the waypoints that are executed, standard deviation
    pucks: int = 3                  # on each table, 1 to 4
    rate: int = 1                   # control rate: a chunk has 16 x so many waypoints, each so much finer
    grain: float = .16              # noise of the robot's camera, standard deviation (pixels run from 0 to 1)
    image: int = 48                 # picture side in pixels, a multiple of 8
    # Action tokens.
    tokens: str = "fast"            # fast | binned: one token for each number, in order of time
    gamma: float = 6.               # FAST: coefficients are rounded to 1 / gamma
    fast_vocab: int = 320           # FAST: tokens in all
    # The model. The first four are those of the shipped VLM; changing one needs another VLM.
    vlm_width: int = 64             # width of the VLM, a multiple of 32 (one head)
    vit_depth: int = 2              # layers of the vision transformer
    depth: int = 4                  # layers of the decoder, and of the expert
    expert_width: int = 96          # width of the action expert
    vlm: str = "data/vlm.pt"        # pre-trained VLM to start from ("" starts from nothing)
    vlm_steps: int = 0              # if that file is not there: pre-train so many steps and write it (0: an error)
    # Training.
    steps: int = 1200               # training steps
    batch: int = 64                 # robot samples in each step
    shards: int = 1                 # parts of a step's batch, shared out over the processes; else one by one
    vlm_rate: float = .01           # Muon learning rate of the VLM's hidden matrices
    vlm_adam: float = .01           # AdamW learning rate of the VLM's embeddings and head
    expert_rate: float = .03        # Muon learning rate of the expert's hidden matrices
    expert_adam: float = .0045      # AdamW learning rate of the rest of the expert
    warmup: int = 100               # steps of linear warm-up; the second half decays linearly to 0
    clip: float = 1.                # gradient norm limit, for the VLM and for the expert each
    seed: int = 0                   # of everything random
    device: str = "auto"            # auto | cpu | cuda | mps
    preset: str = "auto"            # auto | laptop | gpu | big: sizes for the machine
    bfloat16: bool = False          # matrix products in bfloat16 (weights and optimisers stay float32)
    compile: bool = False           # compile the transformer blocks (one minute at the start)
    workers: int = 0                # processes that draw batches ahead (0: none)
    fsdp: bool = False              # with torchrun: share weights and optimisers out too (FSDP2), not only data
    # Acting and evaluation.
    euler_steps: int = 10           # integration steps per chunk
    execute: int = 8                # waypoints executed before the next plan
    scenes: int = 400               # evaluation scenes in each test set
    validate: bool = False          # evaluate in other scenes than the test's, to choose settings in
    check_every: int = 400          # steps between short evaluations during training (0: none)
    save_every: int = 200           # steps between checkpoints
    out: str = ""                   # folder of the run ("": a new one under runs/)
    overwrite: bool = False         # replace the run that --out already holds
    resume: bool = False            # go on with the run that --out holds

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
           "kinds": tuple(KINDS), "tokens": ("fast", "binned"),
           "device": ("auto", "cpu", "cuda", "mps")}


def helps():
    """{field: its trailing comment in the source above}."""
    source = inspect.getsource(Config)
    return {m[1]: m[2] for m in re.finditer(r"^    (\w+): \w+ = .*?  # (.*)$", source, re.M)}


def add_flags(parser, names=()):
    """One flag a field (or a flag for each of `names`). Flags not given stay absent, so that a preset or recipe is
    not overridden."""
    notes = helps()
    for field in fields(Config):
        if names and field.name not in names:
            continue
        flag, text = f"--{field.name.replace('_', '-')}", f"{notes[field.name]} (default {field.default!r})"
        options = dict(help=text.replace("%", "%%"), default=argparse.SUPPRESS)
        if field.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        else:
            parser.add_argument(flag, type=field.type, choices=CHOICES.get(field.name), **options)


def parse(argv=None, description=None):
    """Command line -> Config. Unknown flags and values end the program with a message."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    add_flags(parser)
    given = vars(parser.parse_args(argv))
    if given.get("resume") and set(given) - {"resume", "out"}:
        parser.error(f"--resume goes on with the run's own settings; drop {', '.join(set(given) - {'resume', 'out'})}")
    try:
        return make(**given)
    except ValueError as error:
        parser.error(str(error))


def make(**given):
    """Config from the fields given; device, preset and recipe decide the rest. ValueError if they clash."""
    device = given.get("device", "auto")
    if device == "auto":
        device = ("cuda" if torch.cuda.is_available() else
                  "mps" if torch.backends.mps.is_available() else "cpu")
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


def check(c):
    """ValueError if a value is out of range or two of them clash."""
    for field in fields(Config):
        if field.type is int and getattr(c, field.name) >= 2 ** 31:
            raise ValueError(f"--{field.name.replace('_', '-')} is {getattr(c, field.name)}; it must be below 2^31")
    for name in ("episodes", "steps", "batch", "flow_draws", "euler_steps", "scenes", "warmup", "clip",
                 "gamma", "vlm_rate", "vlm_adam", "expert_rate", "expert_adam", "expert_width", "depth",
                 "fast_vocab", "shards", "rate", "save_every"):
        if not 0 < getattr(c, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(c, name)}; it must be above 0 and finite")
    for name in ("vlm_samples", "alpha", "wobble", "seed", "check_every", "vit_depth", "vlm_steps", "workers",
                 "expert_from", "grain"):
        if not 0 <= getattr(c, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(c, name)}; it must be 0 or more, and finite")
    if not 0 <= c.robot_questions <= 1:
        raise ValueError(f"--robot-questions is {c.robot_questions}; it is a share, 0 to 1")
    if c.image % 8 or not 16 <= c.image <= 192:
        raise ValueError(f"--image is {c.image}; it must be a multiple of 8 from 16 to 192")
    if c.vlm_width % 32 or c.vlm_width < 32:
        raise ValueError(f"--vlm-width is {c.vlm_width}; it must be a multiple of 32")
    if not 1 <= c.execute <= c.rate * STEPS:
        raise ValueError(f"--execute is {c.execute}; a chunk has {c.rate * STEPS} waypoints")
    most = min(MOST_PUCKS, *(len(KINDS[k]) for k in (c.kinds, "seen")))
    if not 1 <= c.pucks <= most:
        raise ValueError(f"--pucks is {c.pucks}; it must be 1 to {most}")
    if c.batch % c.shards or c.vlm_samples % c.shards:
        raise ValueError(f"--shards is {c.shards}; it must divide --batch {c.batch} and --vlm-samples {c.vlm_samples}")
    if not (c.fast_loss or c.flow_loss):
        raise ValueError("neither --fast-loss nor --flow-loss: nothing to train")
    if c.expert_from and not (c.flow_loss and c.cross_entropy and not c.freeze):
        raise ValueError("--expert-from needs a VLM that learns before (--fast-loss or --vlm-samples), and --flow-loss")
    if c.expert_from >= 1:
        raise ValueError(f"--expert-from is {c.expert_from}; it is a share of the steps, below 1")
    if c.expert_sees_fast and not c.fast_loss:
        raise ValueError("--expert-sees-fast needs --fast-loss")
    if c.freeze and not c.flow_loss:
        raise ValueError("--freeze without --flow-loss: nothing to train")
    if c.resume and not c.out:
        raise ValueError("--resume needs --out: which run?")
