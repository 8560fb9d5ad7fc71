"""Data: demonstrations of the expert, and batches that mix robot samples with questions.

The expert's waypoints are executed with an offset, for 4 to 16 steps before the next plan. Each planning
moment gives one sample: what is seen, and the *clean* stroke from there. Noise in the states and none in the
labels is what teaches recovery. Demonstrations that fail are dropped, because their states lead nowhere.

Try it: python -m nano_ki.episodes          Read next: evaluate.py
"""
import re
import signal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from nano_ki import language, program, render, world
from nano_ki.fast import FAST
from nano_ki.language import BLANK, COLOUR, END, FIRST_FAST, GOAL, LANDING, PAD, SHAPE
from nano_ki.model import Batch


def demonstrate(rng, episodes, kind_set, holes=True, wobble=.06, pucks=3, rate=1):
    """Run the expert. Returns Tables (one for each planning moment) and their clean strokes [n, H, 3].
    rng: numpy Generator; kind_set: int [k, 2], the objects that occur; holes: whether places and goals are left out
    (world.sample); wobble: standard deviation of each stroke's constant offset; rate: see world.step. ValueError if all fail."""
    tables = world.sample(rng, episodes, kind_set, pucks, "left out" if holes else None)
    plan = np.zeros((episodes, rate * world.STEPS, 3), np.float32)
    at, until = np.zeros((2, episodes), int)        # steps of the plan: executed so far, and to execute
    done, samples = np.zeros(episodes, bool), []
    for _ in range(rate * world.HORIZON):
        new = np.flatnonzero(~done & (at == until))
        moment = tables.take(new)
        clean = world.stroke(moment, rate)
        samples.append((new, moment, clean))
        plan[new] = clean
        plan[new, :, :2] += rng.normal(0, wobble, (len(new), 1, 2))
        at[new], until[new] = 0, rate * rng.choice((4, 8, 12, 16), len(new))
        world.step(tables, plan[np.arange(episodes), at], rate)
        done |= world.success(tables)
        at += ~done
    owner, moments, strokes = zip(*samples, strict=True)
    good = done[np.concatenate(owner)]
    if not good.any():
        raise ValueError(f"all {episodes} episodes failed; lower --wobble ({wobble}) or raise --episodes")
    moments, strokes = world.join(moments).take(good), np.concatenate(strokes)[good]
    shown = ~(world.in_hole(moments.puck).any(1) & holes)                # (pucks are pushed through the hole, too)
    return moments.take(shown), strokes[shown]

def fit_fast(strokes, config):
    """The FAST tokenizer of the toy's chunks. x and y are known to lie in +-1.2, so it needs no percentiles.
    Press (-1 or 1) becomes +-.25, because as a larger jump it would cost most of the tokens."""
    high, bins = np.array((world.HALF, world.HALF, 4)), 2 * int(np.ceil(1.2 * config.gamma)) + 1
    vocab, way = (bins, "none") if config.tokens == "binned" else (config.fast_vocab, "dct")
    return FAST.fit(strokes, config.gamma, vocab, -high, high, reach=1.2, order="frequency", transform=way)

class Data:
    """Demonstrations as an endless stream of mixed batches. fast: a tokenizer to use instead of a new one.
    Each batch has a generator of its own, seeded by (config.seed, step, shard). So the step is the place in
    the stream, any process can draw any batch, and a run that stops and goes on sees the same batches."""

    def __init__(self, config, fast=None):
        c = self.config = config
        rng, kinds = np.random.default_rng((c.seed, 1)), world.KINDS[c.kinds]
        self.tables, strokes = demonstrate(rng, c.episodes, kinds, c.holes, c.wobble, c.pucks, c.rate)
        self.fast = fast or fit_fast(strokes, config)
        self.chunks = self.fast.normalise(strokes).astype(np.float32)
        tokens = self.fast.encode(strokes)
        self.tokens_per_chunk = float(np.mean([len(t) for t in tokens]))
        words = language.landing(self.tables.target_xy(), self.tables.goal_xy())[:, :LANDING * c.subtask]
        rows = [np.concatenate((said, *[ids + FIRST_FAST] * c.fast_loss, [END if c.subtask or c.fast_loss else PAD])) for said, ids in zip(words, tokens, strict=True)]
        self.answers = pad_sequence([*map(torch.from_numpy, rows)], batch_first=True, padding_value=PAD).numpy()

    def __getitem__(self, place):
        return self.batch(*place)

    def batch(self, step=0, shard=0):
        """The Batch of one step and shard: its part of config.batch robot samples, then of config.vlm_samples
        questions. A share of these, config.two_pages, is about two book pages; of the others a share,
        config.robot_questions, is about demonstrations, not book pages."""
        c, rng = self.config, np.random.default_rng((self.config.seed, 2, step, shard))
        pick = rng.integers(len(self.tables), size=c.batch // c.shards)
        tables = self.tables.take(pick)
        image, prompt, answer = look(tables, c), say(tables, c), self.answers[pick]
        double = round(c.two_pages * c.vlm_samples / c.shards)
        if c.vlm_samples:
            single = c.vlm_samples // c.shards - double
            on_robot = round(single * c.robot_questions)
            book = world.sample(rng, single - on_robot, pucks=c.pucks)
            shown = self.tables.take(rng.integers(len(self.tables), size=on_robot))
            image = np.concatenate((image, look(shown, c), render.picture_book(book, rng, c.image)))
            parts = language.lesson(shown, rng, *language.QUESTIONS), language.lesson(book, rng)     # (a command's answer is a robot's)
            asked, text = map(np.concatenate, zip(*parts, strict=True))
            prompt = np.concatenate((prompt, asked))
            rows = [torch.from_numpy(row) for row in (*answer, *text)]
            answer = pad_sequence(rows, batch_first=True, padding_value=PAD).numpy()
        if not c.compile:     # columns of padding alone cost time (but a compiled step wants equal shapes)
            answer = answer[:, :max(1, (answer != PAD).any(0).sum())]
        pages, words, reply = two_pages(world.sample(rng, double, pucks=c.pucks), rng, c.image)
        return Batch(*map(torch.from_numpy, (image, prompt, answer, self.chunks[pick], pages, words, reply)))

def two_pages(before, rng, size):
    """Book pages before and after a push, and a question: pictures uint8 [B, 2, S, S, 3], words [B, 2, 7], answers [B, 2]."""
    after, words, answer = language.two_pages(before, rng)
    return np.stack([render.picture_book(tables, rng, size) for tables in (before, after)], 1), words, answer

def drawn_ahead(batches, places, workers=0, pin=False):
    """Iterate over batches[p] for p in places, drawn ahead by `workers` processes (0: drawn when asked for).
    The number of workers changes no bit. pin: batches lie in page-locked memory, for copies to a GPU. OSError
    says what to do if workers fail or are silent for 60 s (a full /dev/shm loses batches without a word)."""
    ahead = dict(num_workers=workers, prefetch_factor=4, timeout=60, worker_init_fn=_quiet) if workers else {}
    try:
        yield from DataLoader(batches, batch_size=None, sampler=places, pin_memory=pin, **ahead)
    except (RuntimeError, OSError) as error:
        if not workers or not re.search("shared memory|shm|worker|No space|timed out", str(error)):
            raise
        raise OSError(f"a worker failed ({str(error).strip().splitlines()[-1]}). Batches need shared memory "
                      "(/dev/shm): make that larger, or use --workers 0") from None

def _quiet(worker):
    """In a worker: leave signals to stop to the main process, which ends its workers."""
    for number in program.STOPS:
        signal.signal(number, signal.SIG_IGN)

def look(tables, config):
    """What the policy sees: uint8 [B, S, S, 3]."""
    return render.robot_camera(tables, config.image, config.cloth)

def say(tables, config):
    """What the policy is told: prompt ids [B, 7], partly blank with config.blind."""
    prompt = language.command(tables)
    if config.blind:
        prompt[:, (GOAL, SHAPE, COLOUR)] = BLANK
    return prompt

if __name__ == "__main__":
    from nano_ki.config import Config
    data = Data(Config(episodes=1000))
    print(f"{data.tokens_per_chunk:.1f} tokens a chunk; batch:", [tuple(x.shape) for x in data.batch()])
