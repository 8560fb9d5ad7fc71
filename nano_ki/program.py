"""What every command here owes the person who runs it: whole files, errors of one line, a way to stop.

Killed programs leave old files or new ones, never half of one. A closed stream or a signal costs no finished work.
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
import tempfile
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
BEAT, STALE = 10, 60        # seconds between signs of life of a claim; after so many without one it is stale
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
NO_MEMORY = re.compile("alloc|out of memory|not enough memory|overflow|storage size", re.I)
say = tqdm.write            # print a line, above the progress bar if there is one

def write_whole(path, write):
    """Make path's folder, call write(file) for path.part, flush it, rename it to path. OSError: what to do if that fails."""
    part = Path(f"{path}.part")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"cannot write {path}, which is no file; choose another name")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:                    # (torch raises RuntimeError where a write fails)
        cause = error if isinstance(error, OSError) else error.__context__ or error
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        full = getattr(cause, "errno", None) in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        advice = "free some space" if full else "choose a folder that can be written to"
        raise OSError(f"cannot write {path} ({first_line(cause)}); {advice}") from None
    finally:
        with suppress(OSError):
            part.unlink()

def write_json(path, data):
    write_whole(path, lambda f: f.write(json.dumps(data, indent=1).encode()))

def first_line(error):
    return (str(error).splitlines() or ["no message"])[0]

@contextmanager
def claimed(path, what):
    """Hold the file `path` while this process works on `what`. OSError if another living process holds it. If that one
    dies, others on its machine may take the file over at once, others on a network disk once it is stale."""
    path, over = Path(path), threading.Event()
    with suppress(OSError):                                        # (open says what is wrong)
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            with open(path, "x") as f:
                json.dump([_place(), os.getpid(), _born(os.getpid())], f)
            break
        except FileExistsError:
            holder = _holder(path)
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            raise OSError(f"cannot write {path} ({error}); free some space, or choose another folder") from None
        if holder:
            raise OSError(f"{what} is in use by {holder}; choose another, or wait (delete {path} if it is gone)")
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
    """Who holds a claim, in words. None if nobody alive does."""
    place, pid, born = "?", "?", None
    with suppress(OSError, ValueError, TypeError):
        place, pid, born = json.loads(path.read_bytes())
    if born and place == _place():
        return f"process {pid}" if born == _born(pid) else None
    with suppress(FileNotFoundError), tempfile.TemporaryFile(dir=path.parent) as new:
        age = os.fstat(new.fileno()).st_mtime - path.stat().st_mtime           # (a network disk has its own clock)
        return f"process {pid} on {str(place).split(' ')[0]}" if age < STALE else None

def _place():
    """This machine, since it was started, and this container: where a process number means something."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()

def _born(pid):
    """When a process started (its number is used again later). None if it is gone or the system does not say."""
    with suppress(OSError, IndexError, ValueError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return rest[18] if state not in "ZX" else None

def commit():
    """The commit of this code, "unknown" without git."""
    with suppress(OSError):
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() or "unknown"
    return "unknown"

def machine_gb():
    """GB of memory that this machine has, infinite where the system does not say."""
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return float("inf")

def peak_memory_mib():
    """The most MiB that this process ever held. None where the system does not say (Windows)."""
    with suppress(ImportError):
        import resource
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss              # (in bytes on a Mac, else in KiB)
        return round(most / 2 ** (20 if sys.platform == "darwin" else 10))

def progress(total, done, name, hide=False):
    """A progress bar. A log file gets a line of it every 20 seconds."""
    return tqdm(total=total, initial=done, desc=name, dynamic_ncols=True, disable=hide or sys.stderr is None,
                mininterval=.2 if sys.stderr and sys.stderr.isatty() else 20)

def parser(doc, **options):
    """A parser of flags, described by the first line of a module's docstring. It refuses in one line."""
    made = argparse.ArgumentParser(description=(doc or "").split("\n")[0], allow_abbrev=False, **options)
    made.error = lambda message: made.exit(2, f"error: {message}; --help lists the flags\n")
    return made

class AfterThisStep(ExitStack):
    """A block in which a signal to stop (Ctrl-C, SIGTERM, a closed terminal) waits for the end of a step.
    `asked()` tells whether one came. A second one raises KeyboardInterrupt, and so does any in `at_once()`."""
    pressed, waits = 0, True

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():              # (no other may set handlers)
            for number in STOPS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):     # (nohup ignores SIGHUP)
                    self.callback(signal.signal, number, signal.signal(number, self.press))     # (undone at the end)
        return self

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

def _lenient(function):
    """The same function, but its failure does not matter: training needs no terminal."""
    def call(*args):
        with suppress(OSError, ValueError):
            return function(*args)
    return call

def run(main, files=False):
    """Run a command. An error is one line and an exit status. files: main makes files, so its output may fail."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:        # (no file may get the number of a closed stream)
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")
        stream.reconfigure(errors="backslashreplace")              # (names of files may be no text)
        if files or name == "stderr":
            stream.write, stream.flush = _lenient(stream.write), _lenient(stream.flush)
        setattr(sys, name, stream)
    try:
        with AfterThisStep() as asked, asked.at_once():            # (a signal to stop raises KeyboardInterrupt)
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
        sys.exit(f"error: not enough memory ({first_line(error)}); lower --batch, --flow-draws or the widths")
