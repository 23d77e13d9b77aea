"""The command of lm-evaluation-harness with the model `lmjax`.

Usage: python -m lmjax.lm_eval --model lmjax ...
"""

from argparse import Namespace

from lmjax.cli.entry import finish, start_jax


def main() -> None:
    """Run with the arguments of `lm_eval`; a user's mistake is one line."""
    finish(Namespace(function=_evaluate))


def _evaluate(options: Namespace) -> int:
    start_jax()
    from lmjax.serve import harness

    return harness.command()


if __name__ == "__main__":
    main()
