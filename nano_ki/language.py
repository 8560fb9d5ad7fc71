"""Words: one small vocabulary, instructions, questions, captions, and both ways between text and ids.

Every prompt has the seven slots [goal] [verb] [x] [y] [up/down] [shape] [colour], with "_" in an empty one. So the VLM
finds in a command what it learned from questions. The object's words come last because the answer is read off the last
token. (With up/down last, the VLM learned to find *a* puck, but not the right one.) The goal comes first because each
word also hears the one before it (decoder.py): beside the shape, a new shape bent what was read as the goal. x and y
are location words <0>..<31>, one set for both axes: the place that a question means, or in a command the finger's: the
robot's state as text, as in pi0.5. Ids from FIRST_FAST on are FAST action tokens, so they never collide with words.

Try it: python -m nano_ki.language          Read next: fast.py
"""
import difflib
import re
from itertools import takewhile

import numpy as np

from nano_ki import world

BINS = 32
SPECIAL, HEIGHTS = ("<pad>", "<end>", "_"), ("up", "down")
VERBS = ("push", "where", "find", "colour", "shape", "describe", "went")
NUMBERS = tuple(f"<{i}>" for i in range(BINS))
WORDS = SPECIAL + VERBS + world.COLOURS + world.SHAPES + world.GOALS + HEIGHTS + NUMBERS
ID = {word: i for i, word in enumerate(WORDS)}
PAD, END, BLANK = (ID[w] for w in SPECIAL)
COLOUR0, SHAPE0, GOAL0, UP, NUMBER0 = (ID[w[0]] for w in (world.COLOURS, world.SHAPES, world.GOALS, HEIGHTS, NUMBERS))
FIRST_FAST = len(WORDS)                # FAST token i has id FIRST_FAST + i
SLOT_NAMES = ("GOAL", "VERB", "X", "Y", "HEIGHT", "SHAPE", "COLOUR")
SLOTS = len(SLOT_NAMES)
GOAL, VERB, X, Y, HEIGHT, SHAPE, COLOUR = range(SLOTS)
SLOT_OF = {w: slot for slot, words in ((VERB, VERBS), (COLOUR, world.COLOURS), (SHAPE, world.SHAPES), (GOAL, world.GOALS), (HEIGHT, HEIGHTS)) for w in words}
MOST_PUCKS = 4                         # on one picture
ANSWER = 4 * MOST_PUCKS + 1            # longest text answer: four words for each puck, <end>
LANDING = 2                            # words of `landing`

SENTENCES = {"push": "push the {COLOUR} {SHAPE} to the {GOAL}", "where": "where is the {COLOUR} {SHAPE}?",
             "find": "find the {COLOUR} {SHAPE}", "colour": "what colour is at {X} {Y}?",
             "shape": "what shape is at {X} {Y}?", "describe": "describe the picture",
             "went": "the {COLOUR} {SHAPE} went to which side?"}
SAID = {verb: re.findall(r"\{(\w+)\}", s) for verb, s in SENTENCES.items()}   # slots that a verb needs
FILLERS = {"the", "to", "is", "at", "what", "picture", "finger", "a", "please", "which", "side"}
LESSONS = {"describe": .25, "where": .15, "find": .15, "colour": .10, "shape": .15, "push": .20}   # shares of them all
QUESTIONS = tuple(LESSONS)[:5]         # "push" is a question to the VLM, and a command to the robot

def to_bin(xy):
    """Table coordinates (any shape) -> location bins 0..31, clipped at the table's edge."""
    return np.clip(((np.asarray(xy) + world.HALF) * (BINS / (2 * world.HALF))).astype(int), 0, BINS - 1)

def prompt_text(ids):
    """One prompt [7] of ids -> a sentence. Words that its verb does not use follow behind ';'."""
    words = dict(zip(SLOT_NAMES, (WORDS[i].strip("<>") for i in ids), strict=True))
    rest = [w for name, w in words.items() if name not in ("VERB", *SAID[words["VERB"]]) and w != "_"]
    return SENTENCES[words["VERB"]].format(**words) + (f"; {' '.join(rest)}" if rest else "")

def parse(text):
    """A sentence -> prompt ids [7], the inverse of prompt_text. ValueError for unknown, missing or clashing words."""
    ids = np.full(SLOTS, BLANK)
    for word in (w for w in re.findall(r"[^\W_]+", text.lower()) if w not in FILLERS):
        slot = SLOT_OF.get(word)
        if f"<{word}>" in NUMBERS:
            slot, word = (X if ids[X] == BLANK else Y), f"<{word}>"
        if slot is None:
            near = difflib.get_close_matches(word, SLOT_OF, 3, .5) or SLOT_OF
            raise ValueError(f"unknown word {word!r} in {text!r}; nearest known: {', '.join(near)}")
        if ids[slot] != BLANK:
            raise ValueError(f"both {WORDS[ids[slot]]!r} and {word!r} in {text!r}; say one of them")
        ids[slot] = ID[word]
    if ids[VERB] == BLANK:
        raise ValueError(f"no verb in {text!r}; say one of {', '.join(VERBS)}")
    verb = WORDS[ids[VERB]]
    missing = [name for name in SAID[verb] if ids[SLOT_NAMES.index(name)] == BLANK]
    if missing:
        choice = [word for word in SLOT_OF if SLOT_NAMES[SLOT_OF[word]] == missing[0]] or ("X", "Y")
        form = re.sub("[{}]", "", SENTENCES[verb])
        raise ValueError(f"{text!r} does not say {' or '.join(choice)}; the form is {form!r}")
    return ids

def answer_text(ids):
    """Answer ids -> text up to <end>, without padding."""
    return " ".join(WORDS[i].strip("<>") if i < FIRST_FAST else f"<action {i - FIRST_FAST}>"
                    for i in takewhile(lambda i: i not in (END, PAD), ids))

def command(tables):
    """[B, 7] prompts: what the robot is told, and its state (the finger's place, raised or pressed)."""
    rows = np.arange(len(tables))
    colour, shape = tables.kind[rows, tables.target].T
    x, y = NUMBER0 + to_bin(tables.finger).T
    return np.stack((GOAL0 + tables.goal, np.full(len(rows), ID["push"]), x, y, UP + tables.pressed, SHAPE0 + shape, COLOUR0 + colour), 1)

def instruction(tables):
    """The commands in plain words, without the state: a list of B strings."""
    prompts = command(tables)
    prompts[:, X:HEIGHT + 1] = BLANK
    return [prompt_text(p) for p in prompts]

def landing(puck, goal):
    """Where a finger lands to push a puck to a goal (both [B, 2], table units), in words: ids [B, 2] of x and y. A robot's
    answer begins with them: a subtask, said before it acts, as in pi-0.5."""
    return NUMBER0 + to_bin(world.landing_point(puck, goal)[0])

def lesson(tables, rng, *kinds):
    """Questions about pictures of `tables`: prompts [B, 7] and answers [B, ANSWER] (PAD after <end>). kinds: names in
    LESSONS, to mix (default: all; else ValueError). "where" is answered x y, and "find" y x, so that both must be known in
    the prompt. In 70 % of these two, the slots that only commands use hold words that do not matter. "push": `landing`."""
    if not set(kinds) <= set(LESSONS):
        raise ValueError(f"kinds are {', '.join(map(str, kinds))}; choose from {', '.join(LESSONS)}")
    batch, pucks = tables.puck.shape[:2]
    kinds = kinds or tuple(LESSONS)
    share = np.array([LESSONS[name] for name in kinds])
    verb = rng.choice([ID[name] for name in kinds], batch, p=share / share.sum())
    rows, about = np.arange(batch), rng.integers(pucks, size=batch)
    things, places = tables.kind + (COLOUR0, SHAPE0), NUMBER0 + to_bin(tables.puck)
    thing, place = things[rows, about], places[rows, about]
    prompts, answers = np.full((batch, SLOTS), BLANK), np.full((batch, ANSWER), PAD)
    prompts[:, VERB] = verb
    describe, where, find, colour, shape, push = (verb == ID[name] for name in LESSONS)
    named, placed = where | find | push, colour | shape
    idle = np.stack((*(NUMBER0 + rng.integers(BINS, size=(2, batch))), UP + rng.integers(2, size=batch), GOAL0 + rng.integers(len(world.GOALS), size=batch)), 1)
    filled = push | named & (rng.random(batch) < .7)
    prompts[np.ix_(filled, (X, Y, HEIGHT, GOAL))] = idle[filled]
    prompts[named, SHAPE:] = thing[named, ::-1]
    prompts[placed, X:Y + 1] = place[placed]
    land = landing(tables.puck[rows, about], world.PLACES[idle[:, 3] - GOAL0])
    answers[where, :2], answers[find, :2], answers[push, :2] = place[where], place[find, ::-1], land[push]
    answers[colour, 0], answers[shape, 0] = thing[colour, 0], thing[shape, 1]
    order = tables.puck[:, :, :1].argsort(1)            # captions go from left to right
    caption = np.take_along_axis(np.concatenate((things, places), -1), order, 1).reshape(batch, 4 * pucks)
    answers[describe, :4 * pucks] = caption[describe]
    answers[rows, np.select([named, placed], [2, 1], 4 * pucks)] = END
    return prompts, answers

def two_pages(before, rng):
    """A command with a word missing, between two pictures: before, "push the red star to the _", after. `before`: Tables [B].
    Returns the Tables after it, the words that follow each picture, [B, 2, 7], and the missing word: answers [B, 2]. Where the
    puck stands in the end does not say where it came from, so that both pictures are needed."""
    rows, about = np.arange(len(before)), rng.integers(before.puck.shape[1], size=len(before))
    ends = before.puck[rows, about][:, None] + world.PLACES * rng.uniform(.45, .9, (len(rows), 1, 1))      # [B, 4, 2]
    gap = np.linalg.norm(ends[:, :, None] - before.puck[:, None], axis=-1)
    gap[rows, :, about] = 9
    room = (np.abs(ends) < .95).all(-1) & (gap.min(2) > 2 * world.PUCK)
    goal, after = (rng.random(room.shape) + room).argmax(1), before.take(slice(None))
    after.puck[rows, about] = ends[rows, goal].clip(-.95, .95)
    words = np.full((len(rows), 2, SLOTS), BLANK)
    words[:, :, VERB], words[:, :, SHAPE:] = (ID["push"], ID["went"]), (before.kind[rows, about] + (COLOUR0, SHAPE0))[:, None, ::-1]
    return after, words, np.column_stack((GOAL0 + goal, np.full(len(rows), END)))

if __name__ == "__main__":
    prompts, answers = lesson(world.sample(rng := np.random.default_rng(0), 8), rng)
    print(f"{FIRST_FAST} words, prompts {prompts.shape}, answers {answers.shape}")
    for prompt, answer in zip(prompts, answers, strict=True):
        print(f"  {prompt_text(prompt):48s} -> {answer_text(answer)}")
