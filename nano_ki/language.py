"""Words: one small vocabulary, instructions, questions, captions, and both ways between text and ids.

Every prompt has the same seven slots, whatever is said, so that what the VLM learns from questions is
found in the same place when a command comes:

    [verb] [x] [y] [up/down] [goal] [shape] [colour]          "_" where a slot is empty

The object's words come last, because an answer is read off the last token: what it names is then one
attention away. (With up/down last, the VLM learned to find *a* puck, but not the right one.) x and y are
location words <0>..<31>, one set for both axes. In a command they say where the finger is (the robot's
state as text, as in pi0.5), in a question which place is meant. Ids from FIRST_FAST on
belong to FAST action tokens, a block of their own from the start, so they never collide with words.

Try it: python -m nano_ki.language          Read next: fast.py
"""
import difflib
import re

import numpy as np

from nano_ki import world

BINS = 32
SPECIAL = ("<pad>", "<end>", "_")
VERBS = ("push", "where", "find", "colour", "shape", "describe")
HEIGHTS = ("up", "down")
NUMBERS = tuple(f"<{i}>" for i in range(BINS))
WORDS = SPECIAL + VERBS + world.COLOURS + world.SHAPES + world.GOALS + HEIGHTS + NUMBERS
ID = {word: i for i, word in enumerate(WORDS)}
PAD, END, BLANK = (ID[w] for w in SPECIAL)
COLOUR0, SHAPE0, GOAL0 = ID[world.COLOURS[0]], ID[world.SHAPES[0]], ID[world.GOALS[0]]
UP, NUMBER0 = ID["up"], ID["<0>"]
FIRST_FAST = len(WORDS)                # FAST token i has id FIRST_FAST + i
SLOTS = 7
VERB, X, Y, HEIGHT, GOAL, SHAPE, COLOUR = range(SLOTS)
MOST_PUCKS = 4                         # on one picture
ANSWER = 4 * MOST_PUCKS + 1            # longest text answer: four words for each puck, <end>

SENTENCES = {"push": "push the {COLOUR} {SHAPE} to the {GOAL}", "where": "where is the {COLOUR} {SHAPE}?",
             "find": "find the {COLOUR} {SHAPE}", "colour": "what colour is at {X} {Y}?",
             "shape": "what shape is at {X} {Y}?", "describe": "describe the picture"}
SLOT_NAMES = ("VERB", "X", "Y", "HEIGHT", "GOAL", "SHAPE", "COLOUR")
SAID = {verb: re.findall(r"\{(\w+)\}", s) for verb, s in SENTENCES.items()}   # slots that a verb needs
FILLERS = {"the", "to", "is", "at", "what", "picture", "finger", "a", "please"}


def to_bin(xy):
    """Table coordinates (any shape) -> location bins 0..31, clipped at the table's edge."""
    return np.clip(((np.asarray(xy) + world.HALF) * (BINS / (2 * world.HALF))).astype(int), 0, BINS - 1)


def prompt_text(ids):
    """One prompt [7] of ids -> a sentence, with the words its verb does not use behind ';'."""
    words = dict(zip(SLOT_NAMES, (WORDS[i].strip("<>") for i in ids), strict=True))
    rest = [w for name, w in words.items() if name not in ("VERB", *SAID[words["VERB"]]) and w != "_"]
    return SENTENCES[words["VERB"]].format(**words) + (f"; {' '.join(rest)}" if rest else "")


def parse(text):
    """A sentence -> prompt ids [7]. The inverse of prompt_text.

    ValueError for an unknown word (it names the nearest known ones), for two words in one slot, and
    for a missing verb or a word that the verb needs.
    """
    ids = np.full(SLOTS, BLANK)
    for word in re.findall(r"[^\W_]+", text.lower()):
        if word in FILLERS:
            continue
        if word.isdigit() and int(word) < BINS:
            slot, word = (X if ids[X] == BLANK else Y), f"<{word}>"
        elif (slot := _slot(word)) is None:
            known = [w for w in WORDS if w[0].isalpha()]
            near = difflib.get_close_matches(word, known, 3, .5) or known
            raise ValueError(f"unknown word {word!r} in {text!r}; nearest known: {', '.join(near)}")
        if ids[slot] != BLANK:
            raise ValueError(f"both {WORDS[ids[slot]]!r} and {word!r} in {text!r}; say one of them")
        ids[slot] = ID[word]
    if ids[VERB] == BLANK:
        raise ValueError(f"no verb in {text!r}; say one of {', '.join(VERBS)}")
    verb = WORDS[ids[VERB]]
    missing = [name for name in SAID[verb] if ids[SLOT_NAMES.index(name)] == BLANK]
    if missing:
        choice = {"COLOUR": world.COLOURS, "SHAPE": world.SHAPES, "GOAL": world.GOALS}.get(missing[0], ("X", "Y"))
        raise ValueError(f"{text!r} does not say {' or '.join(choice)}; the form is "
                         f"{SENTENCES[verb].replace('{', '').replace('}', '')!r}")
    return ids


def _slot(word):
    for slot, names in ((VERB, VERBS), (COLOUR, world.COLOURS), (SHAPE, world.SHAPES),
                        (GOAL, world.GOALS), (HEIGHT, HEIGHTS)):
        if word in names:
            return slot
    return None


def answer_text(ids):
    """Answer ids -> text up to <end>, without padding."""
    words = []
    for i in ids:
        if i in (END, PAD):
            break
        words.append(WORDS[i].strip("<>") if i < FIRST_FAST else f"<action {i - FIRST_FAST}>")
    return " ".join(words)


def command(tables):
    """[B, 7] prompts: what the robot is told, and its state (finger place, raised or pressed)."""
    rows = np.arange(len(tables))
    kind = tables.kind[rows, tables.target]
    place = NUMBER0 + to_bin(tables.finger)
    return np.stack((np.full(len(rows), ID["push"]), place[:, 0], place[:, 1], UP + tables.pressed,
                     GOAL0 + tables.goal, SHAPE0 + kind[:, 1], COLOUR0 + kind[:, 0]), 1)


def instruction(tables):
    """The commands in plain words, without the state: a list of B strings."""
    prompts = command(tables)
    prompts[:, X:HEIGHT + 1] = BLANK
    return [prompt_text(p) for p in prompts]


LESSONS = {"describe": .35, "where": .20, "find": .20, "colour": .10, "shape": .15}


def lesson(tables, rng, kind=None):
    """Questions about pictures of `tables`, with answers. rng: numpy Generator.

    kind: one name in LESSONS for all, or None for a mixture. "where" is answered x y, "find" y x: asked
    both ways, x and y must both be known in the prompt, and the prompt is all that the expert reads.
    In 70 % of these two the slots that only commands use hold words that do not matter.
    Returns prompts [B, 7] and answers [B, ANSWER] (PAD after <end>).
    """
    batch, pucks = tables.puck.shape[:2]
    rows = np.arange(batch)
    names = list(LESSONS)
    which = (rng.choice(len(names), batch, p=list(LESSONS.values())) if kind is None
             else np.full(batch, names.index(kind)))
    verb = np.array([ID[n] for n in names])[which]
    about = rng.integers(pucks, size=batch)
    colour, shape = (tables.kind[rows, about] + (COLOUR0, SHAPE0)).T
    place = NUMBER0 + to_bin(tables.puck[rows, about])
    prompts = np.full((batch, SLOTS), BLANK)
    prompts[:, VERB] = verb
    answers = np.full((batch, ANSWER), PAD)

    named = (verb == ID["where"]) | (verb == ID["find"])
    prompts[:, COLOUR] = np.where(named, colour, BLANK)
    prompts[:, SHAPE] = np.where(named, shape, BLANK)
    idle = np.stack((*(NUMBER0 + rng.integers(BINS, size=(2, batch))), UP + rng.integers(2, size=batch),
                     GOAL0 + rng.integers(len(world.GOALS), size=batch)), 1)
    prompts[:, X:GOAL + 1] = np.where((named & (rng.random(batch) < .7))[:, None], idle, BLANK)
    answers[named, :2] = place[named]
    found = verb == ID["find"]
    answers[found, :2] = place[found, ::-1]
    answers[named, 2] = END

    placed = (verb == ID["colour"]) | (verb == ID["shape"])
    prompts[placed, X:Y + 1] = place[placed]
    answers[placed, 0] = np.where(verb == ID["colour"], colour, shape)[placed]
    answers[placed, 1] = END

    told = verb == ID["describe"]
    order = tables.puck[:, :, 0].argsort(1)[..., None]
    caption = np.concatenate((tables.kind + (COLOUR0, SHAPE0), NUMBER0 + to_bin(tables.puck)), -1)
    answers[told, :4 * pucks] = np.take_along_axis(caption, order, 1).reshape(batch, -1)[told]
    answers[told, 4 * pucks] = END
    return prompts, answers


def main():
    rng = np.random.default_rng(0)
    tables = world.sample(rng, 8)
    print(f"{FIRST_FAST} words")
    for prompt, answer in zip(*lesson(tables, rng), strict=True):
        print(f"  {prompt_text(prompt):48s} -> {answer_text(answer)}")
    print(instruction(tables)[0], parse(instruction(tables)[0]))


if __name__ == "__main__":
    main()
