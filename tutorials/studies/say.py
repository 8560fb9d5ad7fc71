"""Say it: give a trained policy a command in words, and watch what it does (a GIF in the run's folder).

    python -m tutorials.studies.say runs/ki-001 "push the cyan ring to the left"
    python -m tutorials.studies.say runs/ki-001 "push the cyan ring to the left" --scene 7      # in this scene of the test set "all"

Read next: report.py
"""
from pathlib import Path

import numpy as np
import torch

from nano_ki import checkpoint, language, program, world
from nano_ki.config import in_bounds, refuse
from nano_ki.evaluate import film, test_scenes


def command(text):
    """A command in words -> (kind [2], goal index). ValueError if it is none."""
    prompt = language.parse(text)
    refuse(prompt[language.VERB] != language.ID["push"], f"{text!r} is no command; say 'push the COLOUR SHAPE to the GOAL'")
    return prompt[[language.COLOUR, language.SHAPE]] - (language.COLOUR0, language.SHAPE0), prompt[language.GOAL] - language.GOAL0


def scene_for(text, seed=0, pucks=3):
    """A random scene that fits a command, which one in about 200 does. ValueError if none is found."""
    (kind, goal), rng = command(text), np.random.default_rng((seed, 3))
    for _ in range(100):
        tables = world.sample(rng, 4096, pucks=pucks)
        fits = (tables.kind[np.arange(len(tables)), tables.target] == kind).all(1) & (tables.goal == goal)
        if fits.any():
            return tables.take([fits.argmax()])
    raise ValueError(f"no scene found for {text!r}; say another object or goal")


def aim(tables, text):
    """Give one table another command, in place. ValueError if the object is not on the table."""
    kind, goal = command(text)
    there = (tables.kind[0] == kind).all(1)
    asked, *names = (f"{world.COLOURS[c]} {world.SHAPES[s]}" for c, s in (kind, *tables.kind[0]))
    refuse(not there.any(), f"no {asked} on this table; there are: {', '.join(names)}")
    tables.target[:], tables.goal[:] = there.argmax(), goal


def main():
    parser = program.parser(__doc__)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("instruction", help='for example "push the cyan ring to the left"')
    parser.add_argument("--scene", type=int, help="a scene of the test set (0 to 1000000; default: a random one that fits)")
    parser.add_argument("--seed", type=int, default=0, help="of the random scene (0 to 2147483647; default 0)")
    args = parser.parse_args()
    in_bounds({"seed": args.seed}, ["seed"])
    refuse(not 0 <= (args.scene or 0) <= 10 ** 6, f"--scene is {args.scene}; it must be 0 or more: 0 to 1000000")
    torch.set_num_threads(1)               # (as fast on idle cores for one robot, and much faster on busy ones)
    model = checkpoint.load_model(args.run)
    pucks = model.config.pucks
    tables = (scene_for(args.instruction, args.seed, pucks) if args.scene is None
              else test_scenes("all", args.scene + 1, pucks=pucks).take([args.scene]))
    aim(tables, args.instruction)
    said = language.instruction(tables)[0]
    path = Path(args.run, f"{'-'.join(said.split())}.gif")
    print(f"{said}: {'done' if film(model, tables, path)[0] else 'not done'} -> {path}")


if __name__ == "__main__":
    program.run(main)
