"""Common parts of all commands: parse arguments, report errors, and start JAX with its settings."""

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lmjax.config import RuntimeConfig, UserError
from lmjax.config.errors import RunError


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments like `parse_args`, but accept configuration changes between and after options."""
    options, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or not hasattr(options, "words")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.words = [*options.words, *rest]
    return options


def finish(options: argparse.Namespace) -> NoReturn:
    """Run the command and exit; a user's mistake is one line on stderr and exit status 2."""
    try:
        status = options.function(options) or 0
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        where = f" {error.filename}:" if error.filename else ""
        print(f"error:{where} {error.strerror or error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        status = 1
    except Exception as error:
        if not _has_peers():
            raise
        print(f"error: this process or another of the run failed ({error}); resume the run", file=sys.stderr)
        status = 1
    if status and _has_peers():
        sys.stdout.flush()
        os._exit(status)  # a regular exit would wait for the other processes
    sys.exit(status)


def _has_peers() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def with_jax(call: Callable[[Any], int], config: RuntimeConfig | None = None) -> int:
    """Call with `lmjax.run.launch`, imported after the settings that must precede the start of JAX."""
    from lmjax.system import faults, runtime

    runtime.prepare(config)
    gc.disable()  # nearly all objects that imports create stay alive: a collection would find no garbage
    from lmjax.run import launch

    gc.freeze()
    gc.enable()
    faults.arm(os.environ.get(faults.VARIABLE, ""))
    return call(launch)
