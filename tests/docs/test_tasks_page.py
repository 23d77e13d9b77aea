"""The page on tasks: its example is a task with the prompt that it shows, and it lists every setting and metric."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from lmjax.config.codec import from_json
from lmjax.evaluation import task_metrics
from lmjax.tasks import catalog, shots, template
from lmjax.tasks.spec import TaskConfig
from tests import ROOT

PAGE = (ROOT / "docs" / "guide" / "tasks.md").read_text()
BLOCKS = re.findall(r"```(?:json|text)\n(.*?)\n```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The complete example, in files."""
    names = re.findall(r"^`capitals/(\S+)`:$", PAGE, re.MULTILINE)
    for name, content in zip(names, BLOCKS, strict=False):
        (tmp_path / name).write_text(content)
    return tmp_path


def test_the_complete_example_has_the_prompt_that_the_page_shows(folder: Path) -> None:
    task = catalog.load(str(folder))
    assert shots.render_prompt(task, task.documents[0], 2, described=True) == BLOCKS[3]
    assert [document.answers for document in task.documents] == [("Paris",), ("Amsterdam", "The Hague")]
    measures = task_metrics.generate(
        " the hague. It is", task.documents[1].answers, filters=task.config.filters, ignore_punctuation=True
    )
    assert measures["exact_match"] == 1


def test_the_example_has_every_setting_that_fits_its_kind(folder: Path) -> None:
    config = json.loads((folder / "task.json").read_text())
    from_json(json.dumps(config), TaskConfig)
    assert {field.name for field in dataclasses.fields(TaskConfig)} - set(config) == {"choices", "chance", "grades"}


def test_the_table_has_every_setting_with_its_default() -> None:
    rows = dict(
        re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE[PAGE.index("## Fields") : PAGE.index("## Templates")], re.M)
    )
    assert set(rows) == {field.name for field in dataclasses.fields(TaskConfig)}
    for name, default in (("kind", "`choose`"), ("prompt", "`{input}`"), ("max_tokens", "32"), ("ignore_case", "true")):
        assert rows[name] == default


def test_functions_and_metrics_are_listed() -> None:
    assert all(f"`{name}`" in PAGE for name in template.FUNCTIONS)
    assert all(f"`{name}`" in PAGE for name in task_metrics.UNITS)
