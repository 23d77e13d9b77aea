"""What is printed of tasks, without a model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lmjax.cli import task_help
from lmjax.config import UserError
from lmjax.tasks import catalog

DRAW = {"balanced": False, "described": False, "allow_hub": False}


def test_the_bundled_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert task_help.list_tasks() == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in catalog.names())


def test_a_task_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"kind": "choose", "prompt": "Q: {q|strip}\nA:", "grades": "scores", "group": "g"}
    rows = [{"q": f" {i} ", "choices": ["yes", "no"], "answer": i % 2, "scores": [1, 0.5]} for i in (0, 1, 1)]
    (tmp_path / "task.json").write_text(json.dumps(config))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert task_help.explain_task(str(tmp_path), 1, **DRAW) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["documents", "3"] in lines
    assert ["documents", "that", "equal", "an", "earlier", "one", "1"] in lines
    assert ["group", '"g"'] in lines
    assert "Q: 1\n  A: no\n  \n  Q: 0\n  A:" in printed
    assert "' yes' (right) (grade 1)" in printed
    assert "' no' (grade 0.5)" in printed


def test_what_cannot_be_answered_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.jsonl").write_text('{"input": "a", "answer": "b\\nc"}\n')
    task_help.explain_task(str(tmp_path / "t.jsonl"), 0, **DRAW)
    assert "documents whose answers all contain a stop" in capsys.readouterr().out
    with pytest.raises(UserError, match="fewer than the 3 asked for"):
        task_help.explain_task(str(tmp_path / "t.jsonl"), 3, **DRAW)


@pytest.mark.slow
def test_no_model_and_no_jax_is_needed() -> None:
    script = "import sys; from lmjax.cli import task_help; task_help.list_tasks(); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
