"""Data: demonstrations of the expert, and batches that mix robot samples with questions.

A demonstration is executed with an offset on its waypoints, for 4 to 16 steps before the next plan; at
each planning moment the pair (what is seen, the *clean* stroke from there) is one sample. Noise in the
states and none in the labels is what teaches recovery. Demonstrations that fail are dropped: their
strokes are fine one by one, but they come from states that lead nowhere.

Try it: python -m nano_ki.episodes          Read next: vit.py
"""
import time

import numpy as np
import torch

from nano_ki import language, render, world
from nano_ki.fast import FAST
from nano_ki.language import BLANK, END, FIRST_FAST, GOAL, PAD
from nano_ki.model import Batch


def demonstrate(rng, episodes, kind_set, goals="sides", wobble=.06):
    """Run the expert. Returns tables (one per planning moment) and their clean strokes [n, H, 3].

    rng: numpy Generator; kind_set [k, 2] objects that occur; wobble: standard deviation of the constant
    offset on the waypoints of each stroke. Failed episodes are dropped.
    """
    tables = world.sample(rng, episodes, kind_set, goals)
    ids = np.arange(episodes)                              # episodes still running
    plan = np.zeros((episodes, world.STEPS, 3), np.float32)
    at, until = np.zeros(episodes, int), np.zeros(episodes, int)
    moments, strokes, owner, finished = [], [], [], []
    for _ in range(world.HORIZON):
        new = np.flatnonzero(at == until)
        if len(new):
            moment = tables.take(new)
            clean = world.stroke(moment)
            moments.append(moment)
            strokes.append(clean)
            owner.append(ids[new])
            plan[new] = clean
            plan[new, :, :2] += rng.normal(0, wobble, (len(new), 1, 2))
            at[new], until[new] = 0, rng.choice((4, 8, 12, 16), len(new))
        world.step(tables, plan[np.arange(len(ids)), at])
        at += 1
        done = world.success(tables)
        finished.append(ids[done])
        ids, plan, at, until = ids[~done], plan[~done], at[~done], until[~done]
        tables = tables.take(~done)
        if not len(ids):
            break
    good = np.isin(np.concatenate(owner), np.concatenate(finished))
    return world.join(moments).take(good), np.concatenate(strokes)[good]


def fit_fast(strokes, config):
    """The FAST tokenizer of the toy's chunks. x and y are known to lie in +-1.2, so no percentiles; press
    (-1 or 1) becomes +-.25: as a jump it would otherwise cost most of the tokens. With three dimensions all at work the
    paper's order is as short as any other (7.6 against 7.7 tokens)."""
    limit = np.array((world.HALF, world.HALF, 4))
    return FAST.fit(strokes, config.gamma, config.fast_vocab, -limit, limit, reach=1.2, order="frequency")


class Data:
    """Demonstrations as an endless stream of mixed batches.

    fast: the tokenizer to use (default: one fitted to these demonstrations). Deterministic from
    config.seed. `rng.bit_generator.state` is its whole position in the stream.
    """

    def __init__(self, config, fast=None):
        self.config = config
        self.rng = np.random.default_rng((config.seed, 1))
        self.tables, strokes = demonstrate(self.rng, config.episodes, world.KINDS[config.kinds],
                                           config.goals, config.wobble)
        self.fast = fast or fit_fast(strokes, config)
        self.chunks = self.fast.normalise(strokes).astype(np.float32)
        tokens = self.fast.encode(strokes)
        self.tokens_per_chunk = float(np.mean([len(t) for t in tokens]))
        self.answers = np.full((len(tokens), max(map(len, tokens)) + 1), PAD)
        for row, ids in zip(self.answers, tokens, strict=True):
            row[:len(ids)] = ids + FIRST_FAST
            row[len(ids)] = END

    def batch(self):
        """The next Batch: config.batch robot samples, then config.vlm_samples questions. A share of the
        questions is about robot pictures of the demonstrations, the rest about new picture-book pages."""
        c, rng = self.config, self.rng
        pick = rng.integers(len(self.tables), size=c.batch)
        tables = self.tables.take(pick)
        image, prompt, answer = look(tables, c), say(tables, c), self.answers[pick]
        if c.vlm_samples:
            on_robot = round(c.vlm_samples * c.robot_questions)
            book = world.sample(rng, c.vlm_samples - on_robot)
            shown = self.tables.take(rng.integers(len(self.tables), size=on_robot))
            image = np.concatenate((image, look(shown, c), render.picture_book(book, rng, c.image)))
            questions, answers = language.lesson(world.join((shown, book)), rng)
            prompt = np.concatenate((prompt, questions))
            wide = max(answer.shape[1], answers.shape[1])
            answer = np.concatenate([np.pad(a, ((0, 0), (0, wide - a.shape[1])), constant_values=PAD)
                                     for a in (answer, answers)])
        # Trailing columns that are padding for everybody cost time and teach nothing.
        answer = answer[:, :(answer != PAD).any(0).sum()]
        return Batch(*map(torch.from_numpy, (image, prompt, answer, self.chunks[pick])))


def look(tables, config):
    """What the policy sees: uint8 [B, S, S, 3]."""
    return render.robot_camera(tables, config.image)


def say(tables, config):
    """What the policy is told: prompt ids [B, 7]; with config.blind the object and the goal are blank."""
    prompt = language.command(tables)
    if config.blind:
        prompt[:, GOAL:] = BLANK
    return prompt


def main():
    from nano_ki.config import Config
    start = time.perf_counter()
    data = Data(Config())
    print(f"{len(data.tables)} samples in {time.perf_counter() - start:.1f} s, {data.fast.vocab} tokens, "
          f"{data.tokens_per_chunk:.1f} per chunk of {data.chunks[0].size} numbers, at most "
          f"{data.answers.shape[1] - 1}")
    start = time.perf_counter()
    for _ in range(20):
        batch = data.batch()
    print({k: tuple(v.shape) for k, v in batch._asdict().items()},
          f"{(time.perf_counter() - start) * 50:.1f} ms a batch")


if __name__ == "__main__":
    main()
