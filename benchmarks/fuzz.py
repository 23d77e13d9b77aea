"""Damaged and forged files: `python benchmarks/fuzz.py [--minutes 5] [--seed 0] [--cases N] [--case K]`.

Files of small valid examples are mutated (`fuzz_mutations.py`) and read (`fuzz_targets.py`) in a worker process. The
outcome must be success or one line (UserError, RunError, exit status 1 or 2). Everything else is a finding: another
exception (also of a thread), a warning of Python, a crash, more than 60 s of processor time, more than 2 GB of memory,
a change of the example, a write elsewhere than to the output and the cache, a temporary file that is left, a process, a
connection, or code that was read from the example. A finding is printed with the command that repeats it, and its input
is kept in --out. Exit status 1 if there is a finding.
"""

import argparse
import json
import os
import random
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, ClassVar

SECONDS, MEMORY = 60, 2 << 30
ROOT = Path(__file__).resolve().parents[1]


# ---- Worker ---------------------------------------------------------------------------------------------------------


class Watch:
    """An audit hook that notes what reading a file must not do. It is active during a case."""

    #: Events that change a path, with the numbers of the arguments that are paths that change.
    WRITES: ClassVar = {"os.remove": (0,), "os.rename": (0, 1), "os.mkdir": (0,), "os.rmdir": (0,), "os.link": (1,),
              "os.symlink": (1,), "os.chmod": (0,), "os.chown": (0,), "os.truncate": (0,), "os.utime": (0,),
              "os.setxattr": (0,), "os.removexattr": (0,)}  # fmt: skip
    NEVER = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
             "socket.gethostbyname", "urllib.Request", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
             "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "os.kill", "pickle.find_class", "marshal.load",
             "webbrowser.open")  # fmt: skip

    def __init__(self, allowed: list[Path], inputs: Path):
        self.allowed = tuple(os.path.realpath(path) for path in allowed)
        self.inputs, self.active, self.noted = os.path.realpath(inputs), False, ""
        sys.addaudithook(self)
        threading.excepthook = lambda error: self.note(f"a thread raised {error.exc_value!r}")
        sys.unraisablehook = lambda error: self.note(f"an exception was ignored: {error.exc_value!r}")

    def note(self, problem: str) -> None:
        if self.active and not self.noted:
            self.noted = problem

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and not self.noted:
            self.active = False  # the checks below raise events, too
            self.noted = self.problem(event, arguments)
            self.active = True

    def problem(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event == "open" and isinstance(arguments[0], str | bytes):
            mode, flags = arguments[1] or "", arguments[2] or 0
            writes = set("wax+") & set(mode) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            return f"writes {arguments[0]!r}" if writes and not self.is_allowed(arguments[0]) else ""
        if event == "os.mkdir" and os.path.isdir(arguments[0]):
            return ""  # exist_ok
        if event in self.WRITES:
            paths = [arguments[at] for at in self.WRITES[event]]
            folder = arguments[-1] if type(arguments[-1]) is int and arguments[-1] >= 0 else None  # a dir_fd
            changed = [path for path in paths if not self.is_allowed(path, folder)]
            return f"{event} {changed}" if changed else ""
        if event in self.NEVER:
            return f"{event} {arguments[:2]!r}"[:300]
        if event in ("exec", "ctypes.dlopen"):
            name = getattr(arguments[0], "co_filename", arguments[0])
            inside = isinstance(name, str) and is_inside(os.path.realpath(name), (self.inputs,))
            return f"executes {name}" if inside else ""
        return ""

    def is_allowed(self, path: Any, folder: int | None = None) -> bool:
        if isinstance(path, int):  # an open file, whose opening was an event
            return True
        path = os.fsdecode(path)
        if folder is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        # The name itself is not followed: what replaces or removes a link does not change what it leads to.
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        places = {real, os.path.realpath(path)}
        return path == os.devnull or all(is_inside(place, self.allowed) for place in places)


def is_inside(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file of a folder, which native code can change unseen by the audit hook."""
    files = (path for path in sorted(folder.rglob("*")) if not path.is_dir())
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in files}


def run_case(seed: int, case: int, examples: Path, scratch: Path, watch: Watch) -> dict[str, Any]:
    """Mutates and reads one example; the outcome is a kind and a text."""
    import fuzz_targets

    rng = random.Random(f"{seed}:{case}")
    target = fuzz_targets.choose(rng)
    shutil.rmtree(scratch, ignore_errors=True)
    inputs = scratch / "inputs"
    inputs.mkdir(parents=True)
    for name in (target.example, *target.needs):
        source = examples / name
        shutil.copytree(source, inputs / name) if source.is_dir() else shutil.copy(source, inputs)
    example = inputs / target.example
    file = example / target.file if target.file else example
    file.write_bytes(target.edit(file.read_bytes(), rng))
    (scratch / "out").mkdir()
    name = f"{getattr(target.read, '__name__', '')} {target.example}/{target.file}"
    temporary = Path(tempfile.gettempdir())
    before = listing(inputs), listing(temporary)
    kind, text = read_watched(target.read, example, watch)
    if kind != "finding" and listing(inputs) != before[0]:
        kind, text = "finding", f"changes {sorted(set(listing(inputs).items()) ^ set(before[0].items()))[0][0]}"
    if kind != "finding" and listing(temporary) != before[1]:
        kind, text = "finding", f"leaves {sorted(set(listing(temporary)) ^ set(before[1]))[:1]}"
    return {"case": case, "target": name, "kind": kind, "text": text, "file": str(file)}


def read_watched(read: Any, example: Path, watch: Watch) -> tuple[str, str]:
    """Calls a reader under the audit hook; returns `accepted`, `refused` or `finding`, and a text."""
    from lmjax.config.errors import RunError, UserError

    watch.noted, watch.active, kind, text = "", True, "accepted", ""
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            status = read(example)
        kind = "refused" if status in (1, 2) else kind
    except (UserError, RunError) as error:
        kind, text, warned = "refused", str(error), []
        if not text or not text.isprintable() or len(text) > 5000:
            kind, text = "finding", f"message of {len(text)} characters: {text[:300]!r}"
    except BaseException as error:
        kind, text, warned = "finding", "".join(traceback.format_exception(error))[-3000:], []
    finally:
        watch.active = False
    shown = [w for w in warned if str(ROOT / "lmjax") in w.filename and not issubclass(w.category, DeprecationWarning)]
    if shown and kind != "finding":
        kind, text = "finding", f"warning at {shown[0].filename}:{shown[0].lineno}: {shown[0].message}"
    return ("finding", watch.noted) if watch.noted else (kind, text)


def work(seed: int, examples: Path, scratch: Path) -> None:
    """Reads numbers of cases from stdin and writes their outcomes to stdout, one JSON object a line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import fuzz_examples
    import fuzz_targets

    from lmjax.system import runtime

    runtime.start()
    if not (examples / "other.json").is_file():  # the last file that is made
        shutil.rmtree(examples, ignore_errors=True)
        examples.mkdir()
        fuzz_examples.make_examples(examples, fuzz_targets.command)
    scratch.mkdir(parents=True, exist_ok=True)
    warm = scratch / "inputs"
    shutil.copytree(examples, warm)
    fuzz_targets.warm_up(warm)
    case = scratch / "case"
    cache, temporary = os.environ["XDG_CACHE_HOME"], os.environ["TMPDIR"]
    watch = Watch([Path(cache), Path(temporary), case / "out"], case / "inputs")
    size = int(re.findall(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[0]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(run_case(seed, int(line), examples, case, watch)) + "\n")


# ---- Supervisor -----------------------------------------------------------------------------------------------------


class Worker:
    """A worker process, started again after a crash or a time limit."""

    def __init__(self, seed: int, folder: Path):
        environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
        environment |= {"PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(folder / "cache")}
        environment |= {"TMPDIR": str(folder / "temporary"), "PYTHONDONTWRITEBYTECODE": "1"}
        for name in ("cache", "temporary"):
            (folder / name).mkdir(exist_ok=True)
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        self.errors = open(folder / "worker.txt", "ab")  # noqa: SIM115
        words = [sys.executable, __file__, "--work", str(folder), "--seed", str(seed)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=environment, text=True
        )
        assert "ready" in self.answer(1800), f"the examples are not valid: see {folder / 'worker.txt'}"
        self.begun_with = self.size()

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next outcome; a finding if the process ended or takes too long."""
        begun, waited, ready = self.processor_time(), 0.0, []
        # Of a busy machine only the time of the processor counts, unless the process waits for something.
        while not ready and waited < 10 * seconds and self.processor_time() - begun < seconds:
            ready, _, _ = select.select([self.process.stdout], [], [], min(seconds, 5.0))
            waited += min(seconds, 5.0)
        line = self.process.stdout.readline() if ready and self.process.stdout else ""
        if line:
            return json.loads(line)
        self.process.kill()
        status = self.process.wait()
        return {"kind": "finding", "text": f"crash, status {status}" if ready else f"more than {seconds} s"}

    def processor_time(self) -> float:
        """Seconds of processor time that the process has used."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def size(self) -> int:
        """Bytes of address space of the process."""
        return int(re.findall(r"VmSize:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[0]) << 10

    def grown(self) -> int:
        """Bytes by which the process has grown since it began to answer; the rest of MEMORY is for the next case."""
        return self.size() - self.begun_with

    def ask(self, case: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{case}\n")
        self.process.stdin.flush()
        return {"case": case, "target": "", "file": ""} | self.answer(SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()


def signature(outcome: dict[str, Any]) -> str:
    """What equal findings share: the target, the last line and the last place in lmjax."""
    lines = outcome["text"].strip().splitlines() or [""]
    places = re.findall(r'lmjax/(\S+\.py)", line (\d+)', outcome["text"])
    last = re.sub(r"[\d.]+|'[^']*'", "#", lines[-1])[:80]
    return f"{outcome['target']} {places[-1:]} {last}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help="stop after this number of cases")
    parser.add_argument("--case", type=int, help="only this case, with the complete text")
    parser.add_argument("--out", type=Path, default=Path("findings"), help="folder of the inputs of findings")
    parser.add_argument("--folder", type=Path, help="folder of examples and cache, to keep them for the next start")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.seed, options.work / "examples", options.work / f"scratch-{os.getpid()}")
        return 0
    folder = options.folder or Path(tempfile.mkdtemp(prefix="lmjax-fuzz-"))
    (folder / "examples").mkdir(parents=True, exist_ok=True)
    try:
        return supervise(options, folder)
    finally:
        if not options.folder:
            shutil.rmtree(folder, ignore_errors=True)


def supervise(options: argparse.Namespace, folder: Path) -> int:
    worker, counts, seen = Worker(options.seed, folder), {"accepted": 0, "refused": 0, "finding": 0}, set()
    end, begun, case = time.monotonic() + 60 * options.minutes, time.monotonic(), options.case or 0
    while time.monotonic() < end and (options.cases is None or case < options.cases):
        outcome = worker.ask(case)
        counts[outcome["kind"]] += 1
        if outcome["kind"] == "finding" and signature(outcome) not in seen:
            seen.add(signature(outcome))
            keep(outcome, options, folder)
        if worker.process.poll() is not None or worker.grown() > MEMORY / 2:  # caches grow with the cases
            worker.close()
            worker = Worker(options.seed, folder)
        case += 1
        if options.case is not None:
            print(outcome["kind"], outcome["target"], outcome["text"], sep="\n")
            break
    worker.close()
    seconds = time.monotonic() - begun
    cases = sum(counts.values())
    print(f"seed {options.seed}: {cases:,} cases in {seconds:.0f} s ({cases / seconds:.1f} a second): "
          f"{counts['accepted']:,} accepted, {counts['refused']:,} refused, {len(seen)} findings")  # fmt: skip
    return 1 if seen else 0


def keep(outcome: dict[str, Any], options: argparse.Namespace, folder: Path) -> None:
    """Prints a finding, and keeps its input and its text."""
    kept = options.out / f"{options.seed}-{outcome['case']}"
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "finding.txt").write_text(f"{outcome['target']}\n{outcome['text']}\n")
    if outcome["file"] and Path(outcome["file"]).is_file():
        shutil.copy(outcome["file"], kept)
    last = (outcome["text"].strip().splitlines() or [""])[-1]
    print(f"FINDING {outcome['target']}: {last[:200]}\n  python benchmarks/fuzz.py --seed {options.seed} "
          f"--case {outcome['case']}   (input in {kept})", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
