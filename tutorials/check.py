"""Checks your answer to an exercise, and names the likely mistake.

    python -m tutorials.check 04.1            # tutorials/exercises/ex_04_1.py
    python -m tutorials.check 04.1 --hint     # the next hint, one at a time          --solution: a worked one
    python -m tutorials.check --all           # the ladder                            --json: a record

The check itself is in checks.py. It tries properties that must hold, so that it can name a mistake, then compares your function
with the worked solution on many inputs. Your file may use the standard library and torch.
"""
import ast
import faulthandler
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import random
import re
import signal
import sys
import time
import tokenize
import traceback
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import torch

from nano_ki import program
from tutorials import checks
from tutorials.checks import CHECKS, Wrong, demand, tensors
from tutorials.key import KEY

FOLDER = Path(__file__).parent / "exercises"
SECONDS = 30                              # for one check
# Bug hunts as they are shipped: the check does not name the bug before anybody has hunted.
HUNTS = {"05.1": "87b0a35048ffa892", "06.1": "0e598a0e3cc72dfa", "07.2": "fa3d021257e49434",
         "08.1": "eb74ae9328898404", "08.2": "6859cf56aa22ee19", "10.1": "ef215e1de1f9e2ea"}


def guarded(f, careful=True, grads=True):
    """f, but Wrong if a call changes what it was given (if `careful`) or its .grad (if `grads`), what the call before returned, or a
    global random generator."""
    last = []                                 # what the call before returned, and copies

    def call(*given):
        before = tensors(given) if careful else []
        copies = [x.detach().clone() for x in before]
        owned = [(x, x.grad, None if x.grad is None else x.grad.clone()) for x in before if grads and x.is_leaf]
        torch.rand(1), random.random()                                  # (so that no seed's first state is here)
        state, pythons = torch.get_rng_state(), random.getstate()
        out = f(*given)
        demand(torch.equal(state, torch.get_rng_state()) and pythons == random.getstate(),
               "it seeds or uses the global generator: everything random after the call would change. Make a torch.Generator")
        after = tensors(given) if careful else []
        demand(len(after) == len(before) and all(a is b for a, b in zip(after, before, strict=True))
               and all(map(torch.equal, before, copies)),
               "it changes what it was given: whoever called it may need that again. Work on new tensors")
        demand(all(x.grad is None or x.grad is grad and torch.equal(grad, copy) for x, grad, copy in owned),
               "it writes into the .grad of what it was given: an optimiser may still use that")
        demand(all(torch.equal(x, copy) for x, copy in last), "a call changes what the call before returned: make new tensors")
        last[:] = [(x, x.detach().clone()) for x in tensors([out]) if not any(x is y for y in before)]
        return out
    return call


def path_of(number):
    return FOLDER / f"ex_{number.replace('.', '_')}.py"


def print_of(source):
    """A hash of the code in a file, without its docstring and spaces."""
    return hashlib.sha256("".join(source.split('"""', 2)[-1].split()).encode()).hexdigest()[:16]


# They reach nano_ki, or end the process.
CLOSED = ("builtins", "ctypes", "gc", "importlib", "inspect", "marshal",
          "os", "pickle", "pkgutil", "runpy", "shelve", "subprocess")
BEHIND = ("modules", "_getframe", "_current_frames", "f_globals", "f_locals", "f_back", "tb_frame",
          "__globals__", "__builtins__", "__subclasses__", "__loader__", "import_module", "__import__", "builtins")


def looks_behind(node):
    """Whether this is an attribute, or a getattr, of what BEHIND names."""
    if isinstance(node, ast.Attribute):
        of = getattr(node.value, "id", getattr(node.value, "attr", ""))
        return node.attr in BEHIND and (node.attr != "modules" or of == "sys")               # (a Module has modules(), too)
    return (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr"
            and any(isinstance(x, ast.Constant) and x.value in BEHIND for x in node.args[1:2]))


def obeys(source):
    """Wrong if a file imports more than the standard library and torch, or looks behind the check."""
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}          # (a function may be called eval)
    for node in ast.walk(tree):
        names = ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or "."]
                 if isinstance(node, ast.ImportFrom) else [])
        called = (isinstance(node, ast.Call)
                  and getattr(node.func, "id", "") in {"__import__", "import_module", "exec", "eval"} - own
                  or looks_behind(node))
        names += [f"{node.module}.{a.name}" for a in node.names if a.name in BEHIND] if isinstance(node, ast.ImportFrom) else []
        hashed = (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "hash"
                  and any(isinstance(x, ast.JoinedStr) or isinstance(x, ast.Constant) and isinstance(x.value, str)
                          for x in ast.walk(node)))
        demand(not hashed, "hash() of a text is another number in each start of Python: a seed made of it gives other draws every time")
        bad = [n for n in names if n.split(".")[0] not in ("torch", *sys.stdlib_module_names)
               or n.split(".")[0] in CLOSED or n.split(".")[-1] in BEHIND]
        demand(not bad and not called, f"it imports {bad[0] if bad else 'by a function call, or looks behind the check'}; "
               "the rule is: standard library and torch")


class Late(BaseException):
    """The time of a check is over. (No error that an answer may catch by `except Exception`.)"""


@contextmanager
def limited(seconds):
    """Late after so many seconds, again and again (where the system has an alarm clock); the end of the process after twice as
    many: a loop inside a C function hears no alarm."""
    def late(*_):
        raise Late
    if not hasattr(signal, "SIGALRM"):
        yield
        return
    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, old)


@contextmanager
def intact():
    """Wrong if this check, or what it compares with, is another afterwards; it is put back."""
    # torch itself puts others in place.
    spaces = [(vars(checks), tuple(vars(checks))), (vars(np), tuple(vars(np))), (vars(torch), ("allclose", "equal", "isclose"))]
    before = [(space, {name: space[name] for name in names}) for space, names in spaces]
    try:
        yield
    finally:
        changed = [name for space, was in before for name, value in was.items() if space.get(name) is not value]
        for space, was in before:
            space.update(was)
        if changed:
            raise Wrong(f"it changes {changed[0]} for everybody")


def answer_key(key):
    """"nano_ki/flow.py, lines 14-23": where the library's own answer stands; "" if it is not ours."""
    if isinstance(key, str):
        name, _, attribute = key.partition(":")
        key = getattr(importlib.import_module(name), attribute)
    if not getattr(key, "__module__", "").startswith(("nano_ki", "tutorials")):
        return f"{key.__module__}.{key.__qualname__}"
    lines, first = inspect.getsourcelines(key)
    return f"{key.__module__.replace('.', '/')}.py, lines {first}-{first + len(lines) - 1}"


def text_of(path):
    """The source in a file, as Python itself would read it."""
    with tokenize.open(path) as f:
        return f.read()


def load(path):
    """The file as a module, newly executed. Wrong if it imports what it may not."""
    demand(str(path).endswith(".py"), f"{path} is no Python file; its name must end in .py")
    obeys(text_of(path))
    name = f"answer_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)          # (dataclasses look there)
    spec.loader.exec_module(module)
    return module


def answer(path, name, check, right="right", hunt=None, careful=True, grads=True):
    """{"passed", "says", "seconds"} for the function `name` of a file. hunt: the hash of a file in which nobody has hunted yet;
    careful: what the function is given must stay as it is; grads: its .grad, too."""
    start, kind = time.perf_counter(), torch.get_default_dtype()
    try:
        demand(hunt is None or hunt != print_of(text_of(path)),
               "a bug hunt, and the file is as it came: read it, find the bug, mend it. Then ask again")
        with intact(), limited(SECONDS), redirect_stdout(sys.stderr):           # (--json prints JSON alone)
            module = load(path)
            demand(hasattr(module, name), f"there is no function {name} in it")
            check(guarded(getattr(module, name), careful, grads))
            demand(torch.get_default_dtype() == kind, "it leaves torch's default dtype changed, for everybody (set_default_dtype)")
        passed, says = True, right
    except Wrong as wrong:
        passed, says = False, str(wrong)
    except Late:
        passed, says = False, f"it takes more than {SECONDS} seconds: does it ever end?"
    except (OSError, SyntaxError) as error:
        passed, says = False, f"cannot read it: {error}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:                      # the student's bug, whatever it is
        # torch raises it, too.
        unwritten = (isinstance(error, NotImplementedError)
                     and traceback.extract_tb(error.__traceback__)[-1].filename == os.path.abspath(path))
        passed, says = False, "not written yet" if unwritten else f"it raised {type(error).__name__}: {program.first_line(error)}"
    finally:                                            # (what one answer switches off must not fail the next)
        torch.set_default_dtype(kind)
        torch.set_grad_enabled(True)
    return {"passed": passed, "says": says, "seconds": round(time.perf_counter() - start, 2)}


def run(number, path=None):
    """{"number", "passed", "says", "seconds"} for the answer in `path` (default: the exercise's own file)."""
    name, key, check = CHECKS[number]
    return {"number": number,
            **answer(path or path_of(number), name, check, f"right. The library's own: {answer_key(key)}", HUNTS.get(number),
                     careful=number not in ("07.2", "08.2"), grads=number != "07.1")}       # (there what is given, or its .grad, may be changed)


def next_hint(number, opened):
    """The next hint of an exercise. opened: the file that remembers how many were asked for."""
    counts = json.loads(opened.read_text()) if opened.exists() else {}
    hints, shown = KEY[number].hints, counts.get(number, 0)
    if shown == len(hints):
        return "\n".join([*hints, f"there are no more hints; a worked solution: python -m tutorials.check {number} --solution"])
    program.write_json(opened, {**counts, number: shown + 1})
    return f"hint {shown + 1} of {len(hints)}: {hints[shown]}"


def main():
    parser = program.parser(__doc__)
    parser.add_argument("numbers", nargs="*", help="exercises, such as 04.1")
    parser.add_argument("--hint", action="store_true", help="the next hint")
    parser.add_argument("--solution", action="store_true", help="a worked solution, and why")
    parser.add_argument("--all", action="store_true", help="all of them, as a ladder")
    parser.add_argument("--file", help="check this file instead of the exercise's own")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    numbers = (list(CHECKS) if args.all
               else [f"{page.zfill(2)}{dot}{number}" for page, dot, number in (n.partition(".") for n in args.numbers)])
    unknown = [n for n in numbers if n not in CHECKS]
    if unknown or not numbers or args.file and len(numbers) != 1:
        sys.exit(f"error: {'no exercise ' + unknown[0] if unknown else 'name one exercise'}; there are {', '.join(CHECKS)} (or --all)")
    if args.hint or args.solution:
        if len(numbers) != 1:
            sys.exit("error: name one exercise")
        key = KEY[numbers[0]]
        print(f"{key.solution}\n\n{key.why}" if args.solution else next_hint(numbers[0], program.ROOT / "runs" / "hints.json"))
        return
    titles = dict(re.findall(r"^\"\"\"Exercise (\S+)\. (.*)$", "\n".join(path_of(n).read_text() for n in numbers), re.M))
    titles = {n: titles.get(n, CHECKS[n][0]) for n in numbers}                 # (a file may have lost its docstring)
    torch.manual_seed(0)
    results = [run(n, args.file) for n in numbers]
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        for r in results:
            title = titles[r["number"]]
            key = KEY[r["number"]]
            print(f"{'[x]' if r['passed'] else '[ ]'} {r['number']}  {title} ({key.difficulty}, {key.minutes} minutes)\n"
                  f"         {r['says']}")
        if args.all:
            print(f"{sum(r['passed'] for r in results)} of {len(results)}")
    sys.exit(0 if all(r["passed"] for r in results) else 1)


if __name__ == "__main__":
    program.run(main)
