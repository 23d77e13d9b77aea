"""The report on prepared text, against counts by hand."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmjax.cli import main
from lmjax.config import DataConfig, TokenizerConfig
from lmjax.data.store.preparation import prepare
from lmjax.data.store.store import Store
from lmjax.diagnose import data_report
from lmjax.system import runtime
from lmjax.tasks import catalog
from lmjax.tasks.spec import Document, TaskConfig

QUOTE = "to be or not to be that is the question whether tis nobler in the mind"


def store(tmp_path: Path, texts: list[str], **options: Any) -> Store:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    settings: dict[str, Any] = {
        "validation_fraction": 0.3,
        "cache": str(tmp_path),
        "tokenizer": TokenizerConfig("bytes"),
    }
    return prepare(DataConfig(files=(str(path),), **settings | options))


def test_figures_are_those_of_the_texts(tmp_path: Path) -> None:
    texts = [f"text {number % 50:02}" + "é" * (number % 5) for number in range(100)]
    prepared = store(tmp_path, texts)
    reports = data_report.streams(prepared, context=12)
    assert sum(report.documents for report in reports) == 100
    assert sum(report.bytes for report in reports) == sum(len(text.encode()) for text in texts)
    assert sum(report.tokens for report in reports) == sum(len(text.encode()) + 1 for text in texts)  # and the ends
    assert sum(report.duplicates for report in reports) == 50  # equal documents are on the same side
    assert [report.trained_on for report in reports] == [0] * len(reports)
    longer = sum(round(report.longer * report.documents) for report in reports)
    assert longer == sum(len(text.encode()) + 1 > 12 for text in texts)
    for report in reports:
        assert report.lengths == sorted(report.lengths)
    characters = sum((report.characters or 0) * report.tokens for report in reports)
    assert characters == pytest.approx(sum(map(len, texts)), rel=1e-12)  # of rounding
    header, rows = data_report.table(reports)
    assert header[0] == ""
    assert all(len(row) == len(header) for row in rows)


def test_a_validation_document_that_is_trained_on_is_counted(tmp_path: Path) -> None:
    prepared = store(tmp_path, [f"text {number % 10}" for number in range(100)], validation="tail")
    *_, validation = data_report.streams(prepared, context=64)
    assert validation.name.startswith("validation")
    assert validation.trained_on >= validation.documents - 1  # the cut may divide one


def test_nearly_equal_documents_are_counted_once_each(tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    words = [[f"w{number}x{place}" for place in range(60)] for number in range(20)]
    texts = [" ".join(row) for row in words] + [" ".join([*row[:-1], "other"]) for row in words[:7]]
    found = data_report.streams(store(tmp_path, texts), context=64, near=True)
    assert sum(report.near or 0 for report in found) == 7
    assert sum(report.duplicates for report in found) == 0
    _, rows = data_report.table(found)
    assert rows[-1][0] == "documents nearly as an earlier one"


def test_examples_that_share_a_run_of_words_with_the_text_are_found(tmp_path: Path) -> None:
    texts = [
        f"Chapter {number}. {QUOTE.title()}, he said." if number == 7 else f"other {number}" for number in range(60)
    ]
    prepared = store(tmp_path, texts, validation_fraction=0.01)
    documents = [
        Document("whole", QUOTE, ("to suffer",)),
        Document("punctuated", "To be, or NOT to be: that is the question! Whether 'tis", ("nobler",)),
        Document("other", "a question about something else that has more than eight words in it", ("yes",)),
        Document("short", "to be", ("or",)),
    ]
    task: Any = SimpleNamespace(config=TaskConfig(name="hamlet"), documents=documents)
    (found,) = data_report.contamination(prepared, [task])
    assert (found.task, found.examples, found.short, found.words) == ("hamlet", 4, 1, 8)
    assert found.first == ["punctuated", "whole"]


@pytest.mark.slow
def test_the_command_prints_and_writes_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "prepare", lambda config=None: None)
    task = next(iter(catalog.names()))
    words = ["data", "quickstart", "--tasks", task, "--json", str(tmp_path / "a.json"), f"data.cache={tmp_path}"]
    with pytest.raises(SystemExit) as left:
        main.main(words)
    assert left.value.code == 0
    written = json.loads((tmp_path / "a.json").read_text())
    assert [one["task"] for one in written["tasks"]] == [task]
    printed = capsys.readouterr().out
    assert all(f"{stream['documents']:,}" in printed for stream in written["streams"])
