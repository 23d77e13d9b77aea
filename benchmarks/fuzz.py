"""Damaged and forged files: `python benchmarks/fuzz.py [--minutes 5] [--seed 0] [--cases N] [--case K]`.

Files of small valid examples are mutated (`fuzz_mutations.py`) and read (`fuzz_targets.py`) in a worker process. The
outcome must be success or one line (UserError, RunError, exit status 1 or 2). Everything else is a finding: another
exception, a crash, more than 60 s, more than 2 GB of memory, a write outside the example and the cache, a process, a
connection, or code that was read from the example. A finding is printed with the command that repeats it, and its
input is kept in --out. Exit status 1 if there is a finding.
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
import time
import traceback
from pathlib import Path
from typing import Any

SECONDS, MEMORY = 60, 2 << 30
ROOT = Path(__file__).resolve().parents[1]


# ---- Worker ---------------------------------------------------------------------------------------------------------


class Watch:
    """An audit hook that notes what reading a file must not do. It is active during a case."""

    WRITES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
    NEVER = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
             "os.fork", "pickle.find_class", "webbrowser.open")  # fmt: skip

    def __init__(self, allowed: list[Path], inputs: Path, *, writes_inputs: bool = True):
        self.allowed = tuple(os.path.realpath(path) for path in (*allowed, *([inputs] if writes_inputs else [])))
        self.inputs, self.active, self.noted = os.path.realpath(inputs), False, ""
        sys.addaudithook(self)

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
            paths = [value for value in arguments if isinstance(value, str | bytes | os.PathLike)]
            return f"{event} {paths}" if not all(map(self.is_allowed, paths[-1:])) else ""
        if event in self.NEVER:
            return f"{event} {arguments[:2]!r}"[:300]
        if event in ("exec", "ctypes.dlopen"):
            name = getattr(arguments[0], "co_filename", arguments[0])
            inside = isinstance(name, str) and os.path.realpath(name).startswith(self.inputs)
            return f"executes {name}" if inside else ""
        return ""

    def is_allowed(self, path: Any) -> bool:
        path = os.fsdecode(path)
        return path == os.devnull or os.path.realpath(path).startswith(self.allowed)


def run_case(seed: int, case: int, examples: Path, scratch: Path, watch: Watch) -> dict[str, Any]:
    """Mutates and reads one example; the outcome is a kind and a text."""
    import fuzz_targets

    from lmjax.config.errors import RunError, UserError

    rng = random.Random(f"{seed}:{case}")
    target = fuzz_targets.choose(rng)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    example = scratch / target.example
    source = examples / target.example
    shutil.copytree(source, example) if source.is_dir() else shutil.copy(source, example)
    if target.read is fuzz_targets.evaluate_task:
        shutil.copytree(examples / "run", scratch / "run")
    file = example / target.file if target.file else example
    file.write_bytes(target.edit(file.read_bytes(), rng))
    name = f"{getattr(target.read, '__name__', '')} {target.example}/{target.file}"
    watch.noted, watch.active, kind, text = "", True, "accepted", ""
    try:
        target.read(example)
    except (UserError, RunError) as error:
        kind, text = "refused", str(error)
        if not text or "\n" in text or len(text) > 5000:
            kind, text = "finding", f"message of {len(text)} characters: {text[:300]!r}"
    except BaseException as error:
        kind, text = "finding", "".join(traceback.format_exception(error))[-3000:]
    finally:
        watch.active = False
    if watch.noted:
        kind, text = "finding", watch.noted
    return {"case": case, "target": name, "kind": kind, "text": text, "file": str(file)}


def work(seed: int, examples: Path, scratch: Path) -> None:
    """Reads numbers of cases from stdin and writes their outcomes to stdout, one JSON object a line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import fuzz_targets

    from lmjax.system import runtime

    runtime.start()
    if not (examples / "result.json").is_file():  # the last file that is made
        shutil.rmtree(examples, ignore_errors=True)
        examples.mkdir()
        fuzz_targets.make_examples(examples)
    scratch.mkdir(parents=True, exist_ok=True)
    warm = scratch / "warm"
    shutil.copytree(examples, warm)
    fuzz_targets.warm_up(warm)
    watch = Watch([Path(os.environ["XDG_CACHE_HOME"])], scratch)
    size = int(re.findall(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[0]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(run_case(seed, int(line), examples, scratch / "case", watch)) + "\n")


# ---- Supervisor -----------------------------------------------------------------------------------------------------


class Worker:
    """A worker process, started again after a crash or a time limit."""

    def __init__(self, seed: int, folder: Path):
        environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
        environment |= {"PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(folder / "cache"), "TMPDIR": str(folder / "cache")}
        (folder / "cache").mkdir(exist_ok=True)
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        self.errors = open(folder / "worker.txt", "ab")  # noqa: SIM115
        words = [sys.executable, __file__, "--work", str(folder), "--seed", str(seed)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=environment, text=True
        )
        assert "ready" in self.answer(1800), f"the examples are not valid: see {folder / 'worker.txt'}"

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next outcome; a finding if the process ended or takes too long."""
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready and self.process.stdout else ""
        if line:
            return json.loads(line)
        self.process.kill()
        status = self.process.wait()
        return {"kind": "finding", "text": f"crash, status {status}" if ready else f"more than {seconds} s"}

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
    parser.add_argument("--cases", type=int, help="stop after so many cases")
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
        if worker.process.poll() is not None:
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
