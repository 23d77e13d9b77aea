"""The walk of the audit over a journal that was edited with a new chain: findings, never a traceback."""

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from lmjax.diagnose.retrace import Findings, Walk
from lmjax.diagnose.story import tell_story
from lmjax.journal import journal
from tests.journal import forged
from tests.journal.forged import Record, edited, journals


def findings(records: list[Record]) -> list[str]:
    """What the walk finds, without a configuration to compare with."""
    found = Findings()
    walk = Walk([], found)
    walk.follow(records)
    for _, text in tell_story(records[: walk.followed], 1000):
        assert text
    return found.lines()


def test_the_journals_of_recorded_runs_are_in_order() -> None:
    for records in journals():
        assert findings(json.loads(json.dumps(records))) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edited())
def test_any_edit_is_followed_or_found(tmp_path: Path, records: list[Record]) -> None:
    path = tmp_path / "journal.jsonl"
    forged.write(path, records)
    content = journal.scan(path, ordered=False)
    lines = findings(content.records)
    if not content.problem and journal.scan(path).problem:  # what a resume refuses, an audit finds
        assert any(line.startswith("journal: ") for line in lines)
    assert all(len(line) < 1000 and "\n" not in line for line in lines)


def test_a_last_record_far_away_is_found() -> None:
    for update in (10**9, 31):
        records = json.loads(json.dumps(journals()[0]))
        records[-1]["update"] = update
        assert findings(records)[0] == f"journal: record 30: end: update is {update}, but 32 updates are applied"
