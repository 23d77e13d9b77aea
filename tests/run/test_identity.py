"""What a run records to resume from any folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from lmjax.config import Config, DataConfig, EvaluateConfig, InContextConfig
from lmjax.run.identity import absolute, allowed_changes, located_tasks


def test_tasks_are_recorded_by_their_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are rendered; a run of an older version, which has them as given, resumes as well."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    in_context = InContextConfig(tasks=("copying", "mine"), held_out=("./mine",))
    given = Config(
        data=DataConfig(source="in_context", in_context=in_context), evaluate=EvaluateConfig(tasks=("mine", "copying"))
    )
    recorded = absolute(given)
    assert isinstance(recorded.data, DataConfig)
    mine = str(tmp_path / "mine")
    assert recorded.evaluate.tasks == (mine, "copying")
    assert (recorded.data.in_context.tasks, recorded.data.in_context.held_out) == (("copying", mine), (mine,))
    older = replace(recorded, data=given.data, evaluate=given.evaluate)
    assert [line.partition(":")[0] for line in allowed_changes(located_tasks(older), recorded, [])] == []
    monkeypatch.chdir(tmp_path.parent)
    assert absolute(recorded) == recorded
