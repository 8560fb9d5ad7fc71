"""Data: demonstrations of the expert, and batches that mix robot samples with questions.

A demonstration is executed with an offset on its waypoints, for 4 to 16 steps before the next plan; at
each planning moment the pair (what is seen, the *clean* stroke from there) is one sample. Noise in the
states and none in the labels is what teaches recovery. Demonstrations that fail are dropped: their
strokes are fine one by one, but they come from states that lead nowhere.

Try it: python -m nano_ki.episodes          Read next: vit.py
"""
import re
import signal

import numpy as np
import torch
from torch.utils.data import DataLoader

from nano_ki import language, render, world
from nano_ki.fast import FAST
from nano_ki.language import BLANK, END, FIRST_FAST, GOAL, HEIGHT, PAD, X
from nano_ki.model import Batch


def demonstrate(rng, episodes, kind_set, goals="sides", wobble=.06, pucks=3, rate=1):
    """Run the expert. Returns tables (one per planning moment) and their clean strokes [n, H, 3].

    rng: numpy Generator; kind_set [k, 2] objects that occur; wobble: standard deviation of the constant
    offset on the waypoints of each stroke; rate: control rate (world.step). Failed episodes are dropped.
    """
    tables = world.sample(rng, episodes, kind_set, goals, pucks)
    ids = np.arange(episodes)                              # episodes still running
    plan = np.zeros((episodes, rate * world.STEPS, 3), np.float32)
    at, until = np.zeros(episodes, int), np.zeros(episodes, int)
    moments, strokes, owner, finished = [], [], [], []
    for _ in range(rate * world.HORIZON):
        new = np.flatnonzero(at == until)
        if len(new):
            moment = tables.take(new)
            clean = world.stroke(moment, rate)
            moments.append(moment)
            strokes.append(clean)
            owner.append(ids[new])
            plan[new] = clean
            plan[new, :, :2] += rng.normal(0, wobble, (len(new), 1, 2))
            at[new], until[new] = 0, rate * rng.choice((4, 8, 12, 16), len(new))
        world.step(tables, plan[np.arange(len(ids)), at], rate)
        at += 1
        done = world.success(tables)
        finished.append(ids[done])
        ids, plan, at, until = ids[~done], plan[~done], at[~done], until[~done]
        tables = tables.take(~done)
        if not len(ids):
            break
    good = np.isin(np.concatenate(owner), np.concatenate(finished))
    if not good.any():
        raise ValueError(f"none of {episodes} demonstrations succeeded; lower --wobble (it is {wobble:g}), or ask for more "
                         "--episodes")
    return world.join(moments).take(good), np.concatenate(strokes)[good]


def fit_fast(strokes, config):
    """The FAST tokenizer of the toy's chunks. x and y are known to lie in +-1.2, so no percentiles; press
    (-1 or 1) becomes +-.25: as a jump it would otherwise cost most of the tokens. With three dimensions all at work the
    paper's order is as short as any other (7.6 against 7.7 tokens)."""
    limit = np.array((world.HALF, world.HALF, 4))
    if config.tokens == "binned":
        return FAST.fit(strokes, config.gamma, 2 * int(np.ceil(1.2 * config.gamma)) + 1, -limit, limit, reach=1.2,
                        order="frequency", transform="none")
    return FAST.fit(strokes, config.gamma, config.fast_vocab, -limit, limit, reach=1.2, order="frequency")


class Data:
    """Demonstrations as an endless stream of mixed batches.

    fast: the tokenizer to use (default: one fitted to these demonstrations). Each batch is drawn from a
    generator of its own, seeded by (config.seed, step, shard): so the step number is the whole position in
    the stream, any process can draw any batch, and stopping and going on changes nothing.
    """

    def __init__(self, config, fast=None):
        c = self.config = config
        self.tables, strokes = demonstrate(np.random.default_rng((c.seed, 1)), c.episodes, world.KINDS[c.kinds],
                                           c.goals, c.wobble, c.pucks, c.rate)
        self.fast = fast or fit_fast(strokes, config)
        self.chunks = self.fast.normalise(strokes).astype(np.float32)
        tokens = self.fast.encode(strokes)
        self.tokens_per_chunk = float(np.mean([len(t) for t in tokens]))
        self.answers = np.full((len(tokens), max(map(len, tokens)) + 1), PAD)
        for row, ids in zip(self.answers, tokens, strict=True):
            row[:len(ids)] = ids + FIRST_FAST
            row[len(ids)] = END

    def __getitem__(self, place):
        return self.batch(*place)

    def batch(self, step=0, shard=0):
        """The Batch of one step and shard: robot samples, then questions, config.batch and config.vlm_samples
        of them over all config.shards. A share of the questions is about robot pictures of the
        demonstrations, the rest about new picture-book pages."""
        c, rng = self.config, np.random.default_rng((self.config.seed, 2, step, shard))
        robots, questions = c.batch // c.shards, c.vlm_samples // c.shards
        pick = rng.integers(len(self.tables), size=robots)
        tables = self.tables.take(pick)
        image, prompt, answer = look(tables, c), say(tables, c), self.answers[pick]
        if questions:
            if not c.fast_loss:
                answer = np.full_like(answer, PAD)
            on_robot = round(questions * c.robot_questions)
            book = world.sample(rng, questions - on_robot, pucks=c.pucks)
            shown = self.tables.take(rng.integers(len(self.tables), size=on_robot))
            image = np.concatenate((image, look(shown, c), render.picture_book(book, rng, c.image)))
            asked, answers = language.lesson(world.join((shown, book)), rng)
            prompt = np.concatenate((prompt, asked))
            wide = max(answer.shape[1], answers.shape[1])
            answer = np.concatenate([np.pad(a, ((0, 0), (0, wide - a.shape[1])), constant_values=PAD)
                                     for a in (answer, answers)])
        if not c.compile:      # Columns that are padding for everybody cost time and teach nothing. (But a
            answer = answer[:, :(answer != PAD).any(0).sum()]             # compiled step wants equal shapes.)
        return Batch(*map(torch.from_numpy, (image, prompt, answer, self.chunks[pick])))


def drawn_ahead(batches, places, workers=0, pin=False):
    """Iterate over batches[p] for p in places, drawn ahead by `workers` processes (0: when asked for).

    pin: in page-locked memory, for copies to a GPU. How many workers there are changes no bit. OSError with
    what to do when they have no shared memory.
    """
    loader = DataLoader(batches, sampler=places, batch_size=None, num_workers=workers, pin_memory=pin,
                        worker_init_fn=_quiet, prefetch_factor=4 if workers else None,
                        timeout=60 if workers else 0)         # (a full /dev/shm can lose a batch without a word)
    try:
        yield from loader
    except (RuntimeError, OSError) as error:
        if not workers or not re.search("shared memory|shm|worker|No space|timed out", str(error)):
            raise
        last = str(error).strip().splitlines()[-1]
        raise OSError(f"a process that draws batches failed ({last}). They hand batches over in shared memory "
                      "(/dev/shm): make that larger, or use --workers 0") from None


def _quiet(worker):
    """In a worker: leave Ctrl-C to the main process, end when that says so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def look(tables, config):
    """What the policy sees: uint8 [B, S, S, 3]."""
    return render.robot_camera(tables, config.image, config.grain)


def say(tables, config):
    """What the policy is told: prompt ids [B, 7]; with config.blind the object and the goal are blank,
    without config.state the finger's place and height are."""
    prompt = language.command(tables)
    if not config.state:
        prompt[:, X:HEIGHT + 1] = BLANK
    if config.blind:
        prompt[:, GOAL:] = BLANK
    return prompt


def main():
    from nano_ki.config import Config
    data = Data(Config(episodes=1000))
    print(f"{len(data.tables)} samples, {data.tokens_per_chunk:.1f} FAST tokens per chunk of {data.chunks[0].size} numbers")
    print({name: tuple(value.shape) for name, value in data.batch()._asdict().items()})


if __name__ == "__main__":
    main()
