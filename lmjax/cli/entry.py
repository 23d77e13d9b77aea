"""Common parts of all commands: parse arguments, report errors, start JAX."""

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from lmjax.config import RuntimeConfig, UserError, synonyms, user_files
from lmjax.config.errors import RunError, one_line, printable
from lmjax.system import standard_streams


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help with the default of each option that has a value."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        has_value = isinstance(default, int | float | str) and not isinstance(default, bool) and default != ""
        if not text or not has_value or default == argparse.SUPPRESS or "default" in text:
            return text
        return f"{text} (default: %(default)s)"


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments; configuration changes may be between and after options."""
    standard_streams.repair()
    options, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or not hasattr(options, "words")]
    if unknown:
        used = synonyms.SYNONYMS.get(unknown[0].partition("=")[0].strip("-").replace("-", "_"), "")
        settings = "; settings are written key=value" if hasattr(options, "words") else ""
        hint = f"{settings}; for {unknown[0]} use {used}" if settings and used else settings
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if rest:
        options.words = [*options.words, *rest]
    return options


def extensions_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument with which the user agrees to execute the Python files of a run."""
    parser.add_argument(
        "--allow-extensions",
        action="store_true",
        help="execute the Python files that a config.json lists (extensions); use it only if you trust the run",
    )


def finish(options: argparse.Namespace) -> NoReturn:
    """Run the command and exit; a user's mistake is one line on stderr and exit status 2."""
    try:
        with user_files.consent(getattr(options, "allow_extensions", False)):
            status = options.function(options) or 0
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        where = f" {printable(str(error.filename), 500)}:" if error.filename else ""
        print(f"error:{where} {printable(str(error.strerror or error))}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        status = 1
    except MemoryError:
        print("error: not enough memory on this machine", file=sys.stderr)
        status = 1
    except Exception as error:
        if problem := _problem_of_environment(error):
            print(f"error: {problem}", file=sys.stderr)
            sys.exit(2)
        if not _has_peers():
            raise
        print(f"error: this process or another of the run failed ({error}); resume the run", file=sys.stderr)
        status = 1
    if status and _has_peers():
        sys.stdout.flush()
        os._exit(status)  # a regular exit would wait for the other processes
    sys.exit(status)


def _problem_of_environment(error: Exception) -> str:
    """Return what of the environment a library refuses at its start, or nothing."""
    texts = ("Unable to initialize backend", "for environment 'JAX_")  # only JAX's message says so
    if isinstance(error, RuntimeError | ValueError) and any(text in str(error) for text in texts):
        return f"{one_line(error)}; change or unset the environment variable"
    modules = {frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)}
    if "matplotlib" in modules and "matplotlib" not in sys.modules:  # its import failed
        return f"matplotlib cannot start: {one_line(error)}; change MPLBACKEND, or the file matplotlibrc"
    return ""


def _has_peers() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def start_jax(config: RuntimeConfig | None = None) -> None:
    """Apply the settings that must precede the start of JAX, then import JAX.

    A command calls it once, after it has checked its arguments, and then imports the modules that use JAX.

    Args:
        config: the settings; default: those of a default configuration.

    Raises:
        UserError: The environment variable LMJAX_FAULTS is malformed.
    """
    from lmjax.system import faults, runtime

    if sys.stderr is not None and sys.stderr.isatty():  # the imports take seconds
        print("starting JAX ...", file=sys.stderr, flush=True)
    gc.disable()  # nearly all objects that imports create stay alive: a collection would find no garbage
    try:
        runtime.start(config)
        import_module("lmjax.run.launch")
        gc.freeze()
    finally:
        gc.enable()
    faults.arm(os.environ.get(faults.VARIABLE, ""))
