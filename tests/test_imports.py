"""One way up: which file may know of which. Import statements inside functions count, too."""
import ast
import re

import pytest
from conftest import ROOT

PACKAGE = {p.stem: p for p in (ROOT / "nano_ki").glob("*.py")}
# README's map: a file imports only from its own row or from rows above it.
FLOORS = [re.findall(r"\(nano_ki/(\w+)\.py\)", row) for row in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
          if row.startswith("| [")]


def imports_of(source, package="nano_ki"):
    """The files of `package` that a source text imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or "" if not node.level else ".".join(filter(None, (package, node.module)))
            names = [base, *(f"{base}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__"):
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith(f"{package}.")}
        found |= {"TUTORIALS"} & {n.split(".")[0].upper() for n in names}
    return found


def circle(graph):
    """A list of names that lead back to the first, or None. graph: {name: names it imports}."""
    def walk(name, path):
        if name in path:
            return path[path.index(name):]
        return next((c for n in sorted(graph.get(name, ())) if (c := walk(n, [*path, name]))), None)
    return next((c for name in sorted(graph) if (c := walk(name, []))), None)


def test_no_circle_and_nothing_of_the_tutorials():
    graph = {name: imports_of(path.read_text(encoding="utf-8")) for name, path in PACKAGE.items()}
    assert circle(graph) is None
    assert not [name for name, uses in graph.items() if "TUTORIALS" in uses]
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    assert set(floor) == set(graph) - {"__init__"} and len(FLOORS) >= 8
    assert [(name, used) for name, uses in graph.items() for used in uses & set(floor) if floor[used] > floor[name]] == []


@pytest.mark.parametrize("source, uses", [
    ("from nano_ki import a, b", {"a", "b"}), ("import nano_ki.a", {"a"}), ("from nano_ki.a import x", {"a"}), ("from . import a", {"a"}),
    ("from .a import x", {"a"}), ("def f():\n    from nano_ki import a", {"a"}),
    ("import importlib\nimportlib.import_module('nano_ki.a')", {"a"}),
    ("if 1:\n    import tutorials.run", {"TUTORIALS"}), ("import numpy", set())])
def test_every_kind_of_import_is_found(source, uses):
    assert imports_of(source) & {"a", "b", "TUTORIALS"} == uses


def test_a_planted_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
