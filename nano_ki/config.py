"""Every setting, in one frozen dataclass: defaults < preset < recipe < flags on the command line.

Each field is a flag (--steps 500, --insulate / --no-insulate), and its comment is the help text of that flag. A
recipe says which losses there are and whether the flow loss reaches the VLM. A preset says how large the model is.

Try it: python -m nano_ki.train --help          Read next: vit.py
"""
import argparse
import inspect
import math
import os
import re
from dataclasses import dataclass

import torch

from nano_ki import program
from nano_ki.world import KINDS, STEPS


@dataclass(frozen=True)
class Config:
    # -- The method
    recipe: str = "ki"              # ki: all losses, insulated | joint: not insulated | pi0: flow only, no subtask | frozen: the same, insulated | pi0_fast: FAST only | generalist: FAST and text | post: flow only, insulated, on a generalist and three kinds
    insulate: bool = True           # stop the flow loss at the memory: the one .detach() of the method
    subtask: bool = True            # the robot's answer begins with the place behind the puck, where a finger lands, in words; the expert reads them
    fast_loss: bool = True          # train the VLM on FAST action tokens (cross-entropy)
    vlm_samples: int = 24           # questions and captions in each batch; 0: no co-training (0 to 65536)
    flow_loss: bool = True          # train the action expert by flow matching
    alpha: float = 1.               # weight of the flow loss (0 to 1e6)
    flow_draws: int = 8             # noises and times per sample that share one pass of the VLM (1 to 4096)
    expert_updates: int = 0         # updates of the expert in a step, which share its draws; more than one needs a memory that the flow loss cannot change: --insulate; 0: 4 there (2 or 1 of few draws), else 1 (0 to 4096)
    two_pages: float = .125         # a share of the questions is about two book pages (0 to 1)
    robot_questions: float = .375   # a share of the other questions is about robot pictures, the rest about book pages (0 to 1)
    # -- The world and its demonstrations
    kinds: str = "seen"             # objects in the demonstrations: a set of kinds that world.py names
    holes: bool = True              # leave a part of the table, and one goal of each kind, out of the demonstrations
    episodes: int = 12000           # demonstrations; failed ones are dropped (1 to 1e7)
    wobble: float = .06             # standard deviation of a random offset on each executed stroke (0 to .5)
    pucks: int = 3                  # pucks on each table (1 to 4)
    rate: int = 1                   # control rate r: a chunk has 16 r waypoints, r times as dense (1 to 8)
    cloth: float = .42              # contrast of the chequered cloth on the robot's table (0 to .5)
    image: int = 48                 # picture side in pixels, a multiple of 8 (16 to 192)
    # -- The model
    gamma: float = 6.               # FAST: coefficients are rounded to 1 / gamma (1 to 100)
    fast_vocab: int = 320           # FAST: tokens in all (16 to 30000)
    start: str = "data/vlm.pt"      # what training starts from ("": nothing): the file of a VLM or of a generalist, or a run's folder, of the same sizes; the expert is always new
    vlm_width: int = 64             # width of the VLM, a multiple of 32, which is one head (32 to 8192)
    vit_depth: int = 2              # layers of the vision transformer (0 to 128)
    depth: int = 4                  # layers of the decoder, and of the expert (1 to 128)
    vlm_steps: int = 0              # steps of pre-training where --start is not there; 0: an error (0 to 1e8)
    expert_width: int = 64          # width of the action expert (1 to 8192)
    # -- Training
    steps: int = 600                # training steps (1 to 1e8)
    batch: int = 64                 # samples in each step, besides those of --vlm-samples (1 to 65536)
    vlm_rate: float = .003          # Muon learning rate of the VLM's hidden matrices (1e-9 to 10)
    vlm_adam: float = .003          # AdamW learning rate of the VLM's embeddings and head (1e-9 to 10)
    expert_rate: float = .03        # Muon learning rate of the expert's hidden matrices; AdamW's, for the rest: x .15 (1e-9 to 10)
    warmup: int = 20                # steps of linear warm-up; then the rates fall linearly to 0 (1 to 1e8)
    clip: float = 1.                # gradient norm limit, for the VLM and for the expert each (1e-6 to 1e9)
    seed: int = 0                   # seed of everything random (0 to 2147483647)
    # -- Acting and evaluation
    euler_steps: int = 2            # integration steps per chunk, each shorter than the one before (1 to 1000)
    execute: int = 8                # waypoints executed before the next plan (1 to 128)
    scenes: int = 400               # evaluation scenes in each test set (1 to 1e6)
    check_every: int = 200          # steps between short evaluations during training; 0: none (0 to 1e8)
    # -- The run's folder
    out: str = ""                   # folder of the run ("": a new one under runs/)
    resume: bool = False            # go on with the run that --out holds
    overwrite: bool = False         # replace the run that --out already holds
    ship: str = ""                  # also write what was trained to this file: the policy, or where it has no expert the VLM and its tokenizer
    save_every: int = 200           # steps between checkpoints (1 to 1e8)
    # -- The machine
    preset: str = "auto"            # auto | laptop | gpu | big: sizes for the machine
    device: str = "auto"            # auto | cpu | cuda | mps
    threads: int = 0                # CPU threads; the same number gives the same bits; 0: measured (0 to 1024)
    workers: int = 0                # processes that draw batches ahead; 0: none (0 to 256)
    shards: int = 1                 # parts of a step's batch, which the processes share or do in turn (1 to 65536)
    fsdp: bool = False              # with torchrun: share weights and optimisers out too (FSDP2), not only data
    bfloat16: bool = False          # matrix products in bfloat16 (weights and optimisers stay float32)
    compile: bool = False           # compile the transformer blocks (one minute at the start)
    # -- Studies: what only comparisons change
    tokens: str = "fast"            # fast | binned: one token for each number, in order of time
    blind: bool = False             # hide the command's words from the policy (a control)
    validate: bool = False          # evaluate in other scenes than the test's, to choose settings in

    @property
    def cross_entropy(self):
        """Whether the VLM has a loss of its own: action tokens, text or both."""
        return self.fast_loss or self.vlm_samples > 0

    @property
    def vlm_learns(self):
        """Whether any loss reaches the VLM."""
        return self.cross_entropy or not self.insulate

    @property
    def updates(self):
        """Updates of the expert in one step. More than one share a pass of the VLM, which the first must not change."""
        return self.expert_updates or (math.gcd(4, self.flow_draws) if self.insulate else 1)

def helps():
    """Read the source of Config. Returns {field: its comment} and {field: the heading above it}."""
    notes, headings = {}, {}
    for block in inspect.getsource(Config).split("    # -- ")[1:]:
        found = dict(re.findall(r"^    (\w+): \w+ = .*?  # (.*)$", block, re.M))
        notes.update(found)
        headings.update(dict.fromkeys(found, block.splitlines()[0]))
    return notes, headings

NOTES, HEADINGS = helps()
BOUNDS = {name: (float(found[1]), float(found[2])) for name, note in NOTES.items()         # both are allowed
          if (found := re.search(r"\((\S+) to (\S+)\)$", note))}
FLOW = dict(subtask=False, fast_loss=False, vlm_samples=0)
RECIPES = {"ki": {}, "joint": dict(insulate=False), "pi0": dict(FLOW, insulate=False), "frozen": FLOW,
           "pi0_fast": dict(subtask=False, flow_loss=False, vlm_samples=0), "generalist": dict(flow_loss=False, vlm_rate=.01, vlm_adam=.01),
           "post": dict(fast_loss=False, vlm_samples=0, steps=600, start="data/generalist.pt", kinds="3", vlm_rate=.01, vlm_adam=.01, flow_draws=2, expert_updates=1)}
# `gpu` is large enough to keep one GPU busy, and its first run makes its VLM (22 M). `big` (408 M) measures speed.
GPU = dict(image=96, pucks=4, rate=2, execute=16, fast_vocab=512, vlm_width=384, vit_depth=4, depth=8,
           expert_width=192, start="runs/vlm-gpu.pt", vlm_steps=6000, batch=256, vlm_samples=96, episodes=40000,
           steps=3000, scenes=1000, check_every=1000, bfloat16=True, compile=True, workers=12)
BIG = dict(GPU, vlm_width=1024, vit_depth=6, depth=18, expert_width=512, start="", vlm_steps=0, batch=128,
           vlm_samples=48, episodes=4000, steps=100, warmup=10, scenes=16, check_every=0)
PRESETS = {"laptop": {}, "gpu": GPU, "big": BIG}
CHOICES = {"recipe": tuple(RECIPES), "preset": ("auto", *PRESETS), "kinds": tuple(KINDS), "tokens": ("fast", "binned"), "device": ("auto", "cpu", "cuda", "mps")}
ELSEWHERE = ("device", "threads", "workers")     # may change when a run goes on, on another machine

def flag(name):
    return f"--{name.replace('_', '-')}"

def add_flags(parser, names=tuple(NOTES)):
    """Add flags for these fields. A flag that is not given leaves no value, so that presets and recipes decide."""
    groups = {heading: parser.add_argument_group(heading) for heading in dict.fromkeys(HEADINGS.values())}
    for name in names:
        default, add = getattr(Config, name), groups[HEADINGS[name]].add_argument
        options = {"help": f"{NOTES[name]}; default {default!r}", "default": argparse.SUPPRESS}
        if isinstance(default, bool):
            add(flag(name), action=argparse.BooleanOptionalAction, **options)
        else:
            add(flag(name), type=type(default), choices=CHOICES.get(name), **options)

def parse(argv=None, description=None):
    """Command line -> Config. Unknown flags and values end the program with a message."""
    parser = program.parser(description)
    add_flags(parser)
    given = vars(parser.parse_args(argv))
    fixed = ", ".join(sorted(set(given) - {"resume", "out", *ELSEWHERE}))
    try:
        refuse(given.get("resume") and fixed, f"--resume goes on with the run's own settings; drop {fixed}")
        return make(**given)
    except ValueError as error:
        parser.error(str(error))

def make(**given):
    """Config from the fields given; device, preset and recipe decide the rest. ValueError as in `check`."""
    device, preset, recipe = given.get("device", "auto"), given.get("preset", "auto"), given.get("recipe", "ki")
    best, *others = devices()
    refuse(device not in ("auto", best, *others), f"--device is {device}, but there is none on this machine; use {best}")
    if device == "auto" and not given.get("resume"):                # (a run that goes on has a device of its own)
        device = best
    preset = ("gpu" if device == "cuda" and recipe != "post" else "laptop") if preset == "auto" else preset    # (data/generalist.pt is small)
    refuse(given.get("threads", 0) > (most := os.cpu_count() or 1), f"--threads is {given.get('threads')}; this machine has {most} cores")
    refuse(os.path.isdir(ship := given.get("ship", "")), f"--ship is {ship}, a folder; name a file, such as {os.path.join(ship, 'generalist.pt')}")
    chosen = {"steps": 800 if recipe == "generalist" else Config.steps, **PRESETS.get(preset, {}), **RECIPES.get(recipe, {}), **given, "device": device, "preset": preset}
    return check(Config(**chosen))                                  # (it refuses unknown presets and recipes)

def devices():
    """The devices of this machine, the best one first."""
    return ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]

def refuse(wrong, message):
    if wrong:
        raise ValueError(message)

def in_bounds(values, names):
    """ValueError for the first of these {name: number} that is out of its BOUNDS."""
    for name in names:
        low, high = BOUNDS[name]
        refuse(not low <= values[name] <= high, f"{flag(name)} is {values[name]}; it must be "
               f"{'above 0' if low > 0 else '0 or more'} and within its bounds: {NOTES[name]}")

def check(c):
    """c itself. ValueError if a value is out of bounds or two of them clash."""
    in_bounds(vars(c), BOUNDS)
    for name, words in CHOICES.items():
        refuse(vars(c)[name] not in words, f"{flag(name)} is {vars(c)[name]!r}; choose from {', '.join(words)}")
    refuse(c.image % 8, f"--image is {c.image}; it must be a multiple of 8")
    refuse(c.vlm_width % 32, f"--vlm-width is {c.vlm_width}; it must be a multiple of 32")
    refuse(c.execute > c.rate * STEPS, f"--execute is {c.execute}; a chunk has {c.rate * STEPS} waypoints")
    refuse(c.pucks > len(KINDS[c.kinds]), f"--pucks is {c.pucks}, more than --kinds {c.kinds} has; lower it")
    refuse(c.batch % c.shards or c.vlm_samples % c.shards, f"--shards is {c.shards}; it must divide --batch {c.batch} and --vlm-samples {c.vlm_samples}")
    refuse(not c.flow_loss and not c.fast_loss, "nothing that could act is trained; add --flow-loss")
    refuse(c.expert_updates > 1 and not c.insulate, f"--expert-updates is {c.expert_updates}, but the flow loss "
           "changes the memory that they would share; use --insulate, or 1")
    refuse(c.flow_draws % c.updates, f"--flow-draws is {c.flow_draws}; it must be a multiple of --expert-updates {c.updates}")
    refuse(c.blind and c.subtask, "--blind hides the command, and --subtask tells where it leads; add --no-subtask")
    refuse(c.resume and not c.out, "--resume needs --out: which run?")
    refuse(c.out and c.start and os.path.abspath(c.out) == os.path.abspath(c.start), f"--out and --start are both {c.out}; choose another --out")
    return c
