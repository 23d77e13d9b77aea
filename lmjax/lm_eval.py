"""The command of lm-evaluation-harness with the model `lmjax`.

Usage: python -m lmjax.lm_eval [--allow-extensions] --model lmjax ...
"""

import sys
from argparse import Namespace

from lmjax.cli.entry import finish, start_jax

_ALLOW = "--allow-extensions"


def main() -> None:
    """Run with the arguments of `lm_eval`; a user's mistake is one line.

    The argument `--allow-extensions` is that of the other commands: it executes the Python files that a run lists.
    """
    allowed = _ALLOW in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != _ALLOW]
    finish(Namespace(function=_evaluate, allow_extensions=allowed))


def _evaluate(options: Namespace) -> int:
    start_jax()
    from lmjax.serve import harness

    return harness.command()


if __name__ == "__main__":
    main()
