"""What every command here owes the person who runs it: whole files, errors of one line, a way to stop.

A file is written under a temporary name, flushed to the disk and renamed. Whoever kills the program finds the
old file or the new one, never half of one. A stream that is closed, a signal, a module that a system lacks:
none of them may cost work that is done.

Read next: world.py
"""
import argparse
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
BEAT, STALE = 10, 60        # seconds between signs of life of a claim; after so many without one it is stale
NO_MEMORY = re.compile("alloc|out of memory|not enough memory|overflow|storage size", re.I)


def write_whole(path, write):
    """write(file) into path.part, flush, rename to path. OSError says what to do where that fails."""
    part = Path(f"{path}.part")
    try:
        with open(part, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if not isinstance(error, (OSError, RuntimeError)):      # (torch says RuntimeError where a write fails)
            raise
        cause = error if isinstance(error, OSError) else error.__context__ or error
        full = getattr(cause, "errno", None) in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        raise OSError(f"cannot write {path} ({first_line(cause)}); "
                      f"{'free some space' if full else 'choose a folder that can be written to'}") from None


def write_json(path, data):
    write_whole(path, lambda f: f.write(json.dumps(data, indent=1).encode()))


def first_line(error):
    return (str(error).splitlines() or ["no message"])[0]


@contextmanager
def claimed(path, what):
    """Hold the file `path` while this process works on `what`. OSError if another living process holds it.

    The file is made exclusively, which network disks can do, too. Its owner touches it every BEAT seconds. On the
    owner's machine the claim of a process that is gone is void at once; on another machine, after STALE seconds.
    """
    path, over = Path(path), threading.Event()
    while True:
        try:
            with open(path, "x") as f:
                json.dump([_place(), os.getpid(), _born(os.getpid())], f)
            break
        except FileExistsError:
            if holder := _holder(path):
                raise OSError(f"{what} is in use by {holder}; choose another one, or wait until it ends (if you know "
                              f"that it is gone, delete {path})") from None
            path.unlink(missing_ok=True)

    def beat():
        while not over.wait(BEAT):
            with suppress(OSError):
                os.utime(path)
    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        path.unlink(missing_ok=True)


def _holder(path):
    """Who holds a claim, in words; None if nobody alive does."""
    try:
        place, pid, born = json.loads(path.read_bytes())
        if place == _place() and born:
            return f"process {pid}" if _born(pid) == born else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        place, pid = "", "unknown"
    clock = path.with_name(f"{path.name}.clock")               # (a network disk has a clock of its own)
    clock.touch()
    age = clock.stat().st_mtime - path.stat().st_mtime
    clock.unlink()
    return f"process {pid} on {(place or 'another machine').split()[0]}" if age < STALE else None


def _place():
    """This machine, since it was started, and this container: where a process number means something."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _born(pid):
    """When a process started (its number is used again later); None if it is gone, or the system does not say."""
    with suppress(OSError, IndexError, ValueError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return rest[18] if state not in "ZX" else None


def commit():
    """The commit of this code; "unknown" without git."""
    with suppress(OSError):
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() or "unknown"
    return "unknown"


def memory_mib():
    """MiB of memory that this process holds now; None where the system does not say."""
    with suppress(OSError, ValueError, AttributeError):
        return round(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2 ** 20, 1)


def peak_memory_mib():
    """The most that it ever held; None where the system does not say (Windows)."""
    with suppress(ImportError):
        import resource
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10))


class Lenient:
    """A text stream whose failures do not matter: training needs no terminal."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        with suppress(OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def flush(self):
        with suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name):
        return getattr(self.stream, name)


def say(text):
    """Print a line, above the progress bar if there is one."""
    tqdm.write(text)


def progress(total, done, name, hide=False):
    """A progress bar; a log file gets a line of it every 20 seconds."""
    return tqdm(total=total, initial=done, desc=name, dynamic_ncols=True, disable=hide or sys.stderr is None,
                mininterval=.2 if sys.stderr and sys.stderr.isatty() else 20)


def parser(doc, **options):
    """An argument parser that is described by the first line of a module's docstring."""
    return argparse.ArgumentParser(description=(doc or "").split("\n")[0], allow_abbrev=False, **options)


class AfterThisStep:
    """A block in which Ctrl-C (or SIGTERM, or a terminal that is closed) waits for the step to end: `asked()` tells
    whether somebody asked to stop. It is said at once. The second time, and inside `at_once()`, nothing waits."""

    def __enter__(self):
        self.pressed, self.waits = 0, True
        self.before = _handle(self.press)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self):
        return self.pressed > 0

    def press(self, *_):
        self.pressed += 1
        if self.pressed > 1 or not self.waits:
            raise KeyboardInterrupt
        with suppress(OSError):
            os.write(2, b"\nstopping after this step (once more: at once)\n")

    @contextmanager
    def at_once(self):
        self.waits = False
        yield
        self.waits = True


def _handle(handler):
    """Let `handler` have the signals that ask to stop, but for those that are ignored here (nohup). Returns the
    handlers before. Only the main thread may do that."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):               # (Windows has no SIGHUP)
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    return before


def run(main, files=False):
    """Run a command: what goes wrong is one line and an exit status. files: what it makes are files, so that a closed
    or full output does not matter."""
    def interrupt(*_):
        raise KeyboardInterrupt
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:         # (no file may get the number of a closed stream)
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")
        stream.reconfigure(errors="backslashreplace")              # (names of files may be no text)
        setattr(sys, name, Lenient(stream) if files or name == "stderr" else stream)
    _handle(interrupt)
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:                                        # (`... | head` has read enough)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        sys.exit(f"error: not enough memory ({first_line(error)}); lower --batch, --episodes, --flow-draws or the widths")
