"""The command of lm-evaluation-harness: which arguments are lmjax's own."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from lmjax import lm_eval
from lmjax.config import UserError, user_files


@pytest.mark.parametrize("allowed", [True, False])
def test_the_files_of_a_run_are_executed_with_consent_only(
    allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness does not see lmjax's argument, and a run's file is imported with it only."""
    (tmp_path / "mine.py").write_text("VALUE = 1\n")
    entry = f"{tmp_path / 'mine.py'}#sha256={'0' * 64}"  # another content, so that it is never imported
    arguments = ["lm_eval", *["--allow-extensions"] * allowed, "--model", "lmjax"]
    messages: list[str] = []

    def evaluate(options: Namespace) -> int:
        assert sys.argv == ["lm_eval", "--model", "lmjax"]
        with pytest.raises(UserError) as error:
            user_files.load_saved([entry], tmp_path, exact=True)
        messages.append(str(error.value))
        return 0

    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(lm_eval, "_evaluate", evaluate)
    with pytest.raises(SystemExit) as end:
        lm_eval.main()
    assert end.value.code == 0
    assert ("--allow-extensions" in messages[0]) == (not allowed)
