"""The command of lm-evaluation-harness with the model `lmjax`: python -m lmjax.lm_eval --model lmjax ..."""

from argparse import Namespace
from typing import Any

from lmjax.cli.entry import finish, with_jax


def main() -> None:
    """Run with the arguments of `lm_eval`; a user's mistake is one line."""

    def run(_: Any) -> int:
        from lmjax.serve import harness

        return harness.command()

    finish(Namespace(function=lambda _: with_jax(run)))


if __name__ == "__main__":
    main()
