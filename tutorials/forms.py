"""Forms of the labs: what one expects is written down, locked once, and read again.

A lock is a hash of the form. It stands in the form, and in a list of all that was locked on this machine (LOCKS), so that a
form that was unlocked, changed and locked again is refused. Whoever starts a new form says so by its new file.
"""
import hashlib
import json
import os
import secrets
import time
from pathlib import Path

from nano_ki import checkpoint, program

LOCKS = program.ROOT / "runs" / "locks.jsonl"
FREE = ("lock", "score")                  # what is not locked
CODE = 8                                 # digits of a lock that a class writes down, before anybody runs


def blank(name, **questions):
    """An empty form, as a dict."""
    return {"id": secrets.token_hex(8), "name": name, **questions, "lock": None}


def digest(form):
    return hashlib.sha256(json.dumps({k: v for k, v in form.items() if k not in FREE}, sort_keys=True).encode()).hexdigest()


def read(path, lab):
    """The form in a file. lab: the module whose form it is. ValueError if it cannot be read."""
    how = f"write one with: python -m {lab} predict {path}"
    try:
        form = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({error}); {how}") from None
    if not isinstance(form, dict) or not isinstance(form.get("id"), str) or not isinstance(form.get("name"), str) or "lock" not in form:
        raise ValueError(f"{path} is no form of the lab; {how}")
    return form


def before(form, path=None):
    """The lock that this form, or this file, got first on this machine; None if it got none."""
    lines = checkpoint.read_metrics(LOCKS) if LOCKS.exists() else []
    return next((m["lock"] for m in lines if m.get("id") == form["id"] or path and m.get("path") == os.path.abspath(path)), None)


def lock(form, path):
    """Lock a form that is complete, and write it to `path`. ValueError if it was locked with other answers, or another in this file was."""
    new, old = digest(form), before(form, path)
    if form["lock"] == new == old:
        return form
    if form["lock"] or old not in (None, new):
        raise ValueError(f"{path} was locked before{'' if old in (None, new) else ', with other answers'}; "
                         "a new try needs a new file: predict NEW.json")
    program.write_json(path, {**form, "lock": new})
    LOCKS.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.add_metrics(LOCKS, {"id": form["id"], "lock": new, "path": os.path.abspath(path), "time": time.strftime("%Y-%m-%d %H:%M")})
    return {**form, "lock": new}


def locked(form, complete, lab, here=True):
    """The form itself. ValueError if it is not complete (complete(form) raises), not locked, or was changed since.
    here: it must have been locked on this machine."""
    complete(form)
    if not form["lock"]:
        raise ValueError(f"this form is not locked; do it with: python -m {lab} lock FILE")
    first = before(form)
    if form["lock"] != digest(form) or first not in (None, form["lock"]):
        raise ValueError("this form was changed after it was locked")
    if here and not first:
        raise ValueError(f"this form was not locked here ({LOCKS} does not have it); go on where it was locked")
    return form


def of_class(paths, complete, lab):
    """All locked forms among these files, each once. Prints each one's code, and why the others are left out. ValueError if none is left.
    A form that was changed and locked again elsewhere has another code than the one that was collected."""
    forms = {}
    for path in paths:
        try:
            form = locked(read(path, lab), complete, lab, here=False)
            if form["id"] in forms:
                raise ValueError("the same form was given before")
            forms[form["id"]] = form
            print(f"code {form['lock'][:CODE]}: {path} {form['name']}")
        except ValueError as error:
            print(f"left out: {path}: {error}")
    if not forms:
        raise ValueError("no locked form is left to count")
    return list(forms.values())
