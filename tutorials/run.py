"""Runs a tutorial page: its Python blocks in order, in one fresh namespace, and checks what it says.

    python -m tutorials.run 04                        # page 04: it stops at each **Predict** until you have answered
    python -m tutorials.run 04 --yes                  # without stopping
    python -m tutorials.run 04 --notebook page.ipynb  # the page as a notebook
    python -m tutorials.run --all

A ```python block is executed. A ```text block behind it must be what it printed (numbers within 2 %). A block that
begins ```python quote=nano_ki/flow.py is not executed: these lines must stand in that file. Pictures that a page makes
go to tutorials/pictures/, from where it shows them.
"""
import ast
import contextlib
import io
import os
import re
import sys
import textwrap
import time
from pathlib import Path

from nano_ki import program

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.M | re.S)
HEADING = re.compile(r"^## (.*)$", re.M)
PREDICT = re.compile(r"^\*\*Predict.*?(?=\n\n)", re.M | re.S)
LINK = re.compile(r"\]\(((?!https?:)[^)#\s]+)\)")       # to a file
NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?")
CLOSE = .02                     # numbers may differ by this share


def pages():
    """{"00": path, ...} of the pages that there are."""
    return {p.name.split("_")[0]: p for p in sorted(HERE.glob("[0-9][0-9]*_*.md"))}


def blocks(text):
    """[(language, options, code, line)] of a page's fenced blocks."""
    return [(m[1], m[2].strip(), m[3], text[:m.start()].count("\n") + 1) for m in BLOCK.finditer(text)]


def differs(printed, wanted):
    """None if two texts agree (numbers within CLOSE, spaces do not count), else what is different."""
    def parts(text):
        text = " ".join(text.split())
        return NUMBER.split(text), [float(n.replace(",", "")) for n in NUMBER.findall(text)]
    (words, numbers), (wanted_words, wanted_numbers) = parts(printed), parts(wanted)
    if [w.strip() for w in words] != [w.strip() for w in wanted_words]:
        return "other words"
    for a, b in zip(numbers, wanted_numbers, strict=True):
        if abs(a - b) > CLOSE * abs(b) + 1e-9:
            return f"{a:g} where the page says {b:g}"
    return None


def quoted(code, source):
    """Whether these lines stand in that source, one after the other, whatever their indentation."""
    def lines(text):
        return [line for line in (raw.strip() for raw in text.splitlines()) if line]
    code, source = lines(code), lines(source)
    return any(source[i:i + len(code)] == code for i in range(len(source) - len(code) + 1))


class Told(io.StringIO):
    """Keeps what is printed into it, and says each line at once: some blocks train for a while."""

    def __init__(self, say):
        super().__init__()
        self.say, self.stdout, self.line = say, sys.stdout, ""

    def write(self, text):
        *lines, self.line = (self.line + text).split("\n")
        with contextlib.redirect_stdout(self.stdout):
            for line in lines:
                self.say(f"    {line}".rstrip())
        return super().write(text)


def execute(code, namespace, name, line, say):
    """Run one block and say what it prints; returns that. A last line that is an expression is printed, as in a notebook."""
    tree, printed = ast.parse(code), Told(say)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    ast.increment_lineno(tree, line)
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), namespace)
        if last is not None:
            ast.increment_lineno(last, line)
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
            if value is not None:
                print(value)
    out = printed.getvalue()
    if printed.line:
        printed.write("\n")
    return out


def questions(text):
    """[(paragraph, line)] of what a page asks its reader to predict."""
    return [(" ".join(m[0].split()).replace("**", "").replace("`", ""), text[:m.start()].count("\n") + 1) for m in PREDICT.finditer(text)]


def answer(text):
    try:
        return input(text)
    except EOFError:
        raise ValueError("the answers end here; with --yes a page does not stop for them") from None


def run(path, say=print, ask=None):
    """Execute and check a page. Returns the list of what is wrong with it; empty if nothing is. ask(text): stops at each question
    until it is answered (None: does not stop)."""
    wrong, namespace, printed, text = [], {"__name__": "page"}, "", path.read_text()
    asked, heads = questions(text) if ask else [], [(m[1], text[:m.start()].count("\n") + 1) for m in HEADING.finditer(text)]

    def put(question):
        said = ask(f"\n{textwrap.fill(question, 100)}\n> ")
        say(f"    (you said: {said.strip() or 'nothing'})")
    for language, options, code, line in blocks(text):
        while ask and heads and heads[0][1] < line:
            say(f"\n== {heads.pop(0)[0]}")
        while asked and asked[0][1] < line:
            put(asked.pop(0)[0])
        where = f"{path.name}:{line}"
        if language == "python" and options.startswith("quote="):
            source = ROOT / options.removeprefix("quote=")
            if not source.exists() or not quoted(code, source.read_text()):
                wrong.append(f"{where}: these lines do not stand in {options.removeprefix('quote=')}")
        elif language == "python":
            try:
                printed = execute(code, namespace, path.name, line, say)
            except Exception as error:           # (a page may raise anything; say where)
                wrong.append(f"{where}: {type(error).__name__}: {error}")
                break
            if not printed:
                say(f"    ({where} prints nothing)")
        elif language == "text":
            if (difference := differs(printed, code)) is not None:
                wrong.append(f"{where}: {difference}; printed:\n{textwrap.indent(printed, '    ')}")
            printed = ""
    for question, _ in asked:                    # (about what comes behind the last block)
        put(question)
    return wrong


FIRST_CELL = f"""import os, sys
os.chdir({str(ROOT)!r})          # the project; change this if it lies elsewhere
sys.path.insert(0, os.getcwd())"""


def notebook(path, folder=HERE):
    """The page as a Jupyter notebook for this folder, as a dict: a cell that finds the project, then text and code cells. Links and
    figures lead from the folder. Printed text blocks are left out."""
    text, cells, at = LINK.sub(lambda m: f"]({os.path.relpath(path.parent / m[1], folder)})", path.read_text()), [], 0

    def add(kind, source):
        if source.strip():
            cell = {"cell_type": kind, "metadata": {}, "source": source.strip("\n").splitlines(True)}
            cells.append({**cell, "execution_count": None, "outputs": []} if kind == "code" else cell)

    def add_text(source):
        """Text cells, and one to write into behind each question."""
        done = 0
        for m in PREDICT.finditer(source):
            add("markdown", source[done:m.end()])
            add("markdown", "*Your prediction* (double-click here and write it, before you go on):")
            done = m.end()
        add("markdown", source[done:])
    add("code", FIRST_CELL)
    for m in BLOCK.finditer(text):
        runs = m[1] == "python" and not m[2].strip()
        if runs or m[1] == "text":
            add_text(text[at:m.start()])
            if runs:
                add("code", m[3])
            at = m.end()
    add_text(text[at:])
    return {"cells": cells, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 4}


def main():
    parser = program.parser(__doc__)
    parser.add_argument("pages", nargs="*", help="page numbers, such as 04")
    parser.add_argument("--all", action="store_true", help="all pages")
    parser.add_argument("--yes", action="store_true", help="do not stop at what is to be predicted")
    parser.add_argument("--notebook", help="write the page as a notebook instead")
    args = parser.parse_args()
    known = pages()
    chosen = list(known) if args.all else [n.zfill(3 if n[-1:].isalpha() else 2) for n in args.pages]
    bad = [n for n in chosen if n not in known]
    if bad or not chosen or args.notebook and len(chosen) != 1:
        sys.exit(f"error: {'no page ' + bad[0] if bad else 'name a page'}; there are {', '.join(known)} (or --all)")
    if args.notebook:
        program.write_json(args.notebook, notebook(known[chosen[0]], Path(args.notebook).resolve().parent))
        return
    os.chdir(ROOT)                     # (where a reader pastes the blocks)
    failed = 0
    for number in chosen:
        start = time.perf_counter()
        print(known[number].name if args.yes or args.all
              else f"{known[number].name}: read it beside this; here come its questions, and what its blocks print")
        wrong = run(known[number], ask=None if args.yes or args.all else answer)
        failed += bool(wrong)
        print("\n".join(wrong) or f"  all as the page says, {time.perf_counter() - start:.0f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    program.run(main)
