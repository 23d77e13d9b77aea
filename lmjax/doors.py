"""What every door does: words become options, a user's mistake one line, and JAX starts with its settings."""

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lmjax.config import RuntimeConfig, UserError
from lmjax.typed import RunError


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Like `parse_args`, but changes may also stand behind and between options."""
    options, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or not hasattr(options, "words")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.words = [*options.words, *rest]
    return options


def finish(options: argparse.Namespace) -> NoReturn:
    """Runs the command; a user's mistake is one line on stderr and exit status 2."""
    try:
        status = options.function(options) or 0
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:  # `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        where = f" {error.filename}:" if error.filename else ""
        print(f"error:{where} {error.strerror or error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        status = 1
    except Exception as error:
        if not _has_peers():
            raise
        print(f"error: this process or another of the run failed ({error}); resume the run", file=sys.stderr)
        status = 1
    if status and _has_peers():
        sys.stdout.flush()
        os._exit(status)  # a farewell to the others would wait for them
    sys.exit(status)


def _has_peers() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def with_jax(call: Callable[[Any], int], config: RuntimeConfig | None = None) -> int:
    """Calls with `lmjax.launch`, imported only now, after the settings that must stand before JAX starts: those of a
    run, or the defaults."""
    from lmjax import faults, runtime

    runtime.prepare(config)
    gc.disable()  # of the many objects that imports make nearly all stay: there is no garbage to look for
    from lmjax import launch

    gc.freeze()
    gc.enable()
    faults.arm(os.environ.get(faults.VARIABLE, ""))
    return call(launch)
