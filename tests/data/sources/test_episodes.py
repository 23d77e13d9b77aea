"""Documents made of prompting tasks: what they consist of, what is never in them, and their way into a store."""

import dataclasses
import json
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from lmjax.config import DataConfig, InContextConfig, SourceConfig, TokenizerConfig, UserError
from lmjax.data.sources import episodes, streams
from lmjax.data.store import preparation
from lmjax.tasks import draws

MAP = InContextConfig(documents=400, shots=((0, 1.0), (3, 1.0), (12, 2.0)), described=0.25)


def folder(path: Path, rows: int = 40) -> Path:
    """A task of one's own: numbers and their squares."""
    path.mkdir(exist_ok=True)
    task = {"kind": "generate", "description": "Square it.", "prompt": "Q {input}", "joint": "\n", "separator": " = "}
    (path / "task.json").write_text(json.dumps(task))
    lines = [json.dumps({"input": str(n), "answer": str(n * n)}) for n in range(rows)]
    (path / "rows.jsonl").write_text("\n".join(lines))
    return path


def test_documents_follow_the_mixture_and_show_nothing_that_is_held_out() -> None:
    found = list(episodes.documents(MAP))
    described = [text for text in found if text.startswith("Every small letter stands for one capital letter.\n")]
    assert 65 < len(described) < 135  # a quarter of 400, four deviations of 8.7
    plain = [text.split("\n")[text in described :] for text in found]
    counts = Counter(len(lines) - 1 for lines in plain)
    assert set(counts) == {0, 3, 12}
    assert 60 < counts[0] < 140
    assert 160 < counts[12] < 240  # half, four deviations of 10
    pairs = {line for lines in plain for line in lines}
    assert all(len(line) == 3 and line[1] == " " for line in pairs)
    assert not any(draws.held_out(line, MAP.held_out_share) for line in pairs)
    assert len(pairs) > 450  # of 507, three quarters of 26 x 26
    assert len(set(found)) > 380  # without examples some are alike


def test_a_document_is_a_function_of_its_number() -> None:
    fewer = dataclasses.replace(MAP, documents=9)
    assert list(episodes.documents(fewer)) == list(episodes.documents(MAP))[:9]


def test_tasks_of_files_and_tasks_that_are_held_out(tmp_path: Path) -> None:
    squares = str(folder(tmp_path / "squares"))
    config = InContextConfig(tasks=(squares, "copying"), documents=300, shots=((2, 1.0),), described=0.5)
    found = list(episodes.documents(config))
    mine = [text.removeprefix("Square it.\n").split("\n") for text in found if "Q" in text]
    assert 110 < len(mine) < 190  # half of 300, four deviations of 8.7
    assert all(len(lines) == 3 for lines in mine)
    numbers = [int(line[2:].partition(" = ")[0]) for lines in mine for line in lines]
    assert all(line == f"Q {n} = {n * n}" for line, n in zip(chain.from_iterable(mine), numbers, strict=True))
    assert not any(draws.held_out(f"Q {n}", config.held_out_share) for n in numbers)
    assert len({tuple(lines) for lines in mine}) == len(mine)  # a question comes with other examples each time

    often = dataclasses.replace(config, tasks=(squares, *["copying"] * 3))
    assert 45 < sum("Q" in text for text in episodes.documents(often)) < 105  # a quarter, four deviations of 7.5
    only = dataclasses.replace(config, held_out=("copying",))
    assert all("Q" in text for text in episodes.documents(only))
    with pytest.raises(UserError, match=r"data.in_context.tasks names no task"):
        episodes.documents(dataclasses.replace(config, held_out=config.tasks))


def test_examples_of_a_rows_own_are_held_out_too(tmp_path: Path) -> None:
    task = {"kind": "generate", "prompt": "Q {input}", "joint": "\n", "separator": " = "}
    (tmp_path / "task.json").write_text(json.dumps(task))
    rows = [[{"input": f"{n}{m}", "answer": "a"} for m in range(9)] for n in range(20)]
    lines = [json.dumps({**own[0], "examples": own[1:]}) for own in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    config = InContextConfig(tasks=(str(tmp_path),), documents=100, shots=((8, 1.0),), held_out_share=0.5)
    found = [text.replace(" = a", "").split("\n") for text in episodes.documents(config)]
    assert max(map(len, found)) > 4
    assert not any(draws.held_out(line, 0.5) for lines in found for line in lines)
    assert all(len({line[:-1] for line in lines}) == 1 for lines in found)


def test_the_identity_covers_the_configuration_and_the_tasks(tmp_path: Path) -> None:
    squares = folder(tmp_path / "squares")
    config = dataclasses.replace(MAP, tasks=(str(squares),))
    data = DataConfig(source="in_context", in_context=config)

    def identity(data: DataConfig) -> str:
        return json.dumps([streams.fingerprint(source, data) for source in streams.sources(data)])

    before = identity(data)
    assert before == identity(data)
    assert before != identity(dataclasses.replace(data, in_context=dataclasses.replace(config, held_out_share=0.5)))
    (squares / "rows.jsonl").write_text((squares / "rows.jsonl").read_text().replace("1521", "1522"))
    assert before != identity(data)


def test_the_way_into_a_store_beside_another_source(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"Paragraph {n}." for n in range(200)))
    data = DataConfig(
        mixture=(SourceConfig(source="in_context"), SourceConfig(files=(str(tmp_path / "a.txt"),))),
        in_context=MAP,
        tokenizer=TokenizerConfig(kind="bytes"),
        validation_fraction=0.2,
        cache=str(tmp_path / "cache"),
    )
    made = preparation.prepare(data)
    train, other = made.sources
    text = made.tokenizer.decode(np.concatenate([train.ids, made.validation.ids]))
    assert set(text.split("<|endoftext|>")) >= set(episodes.documents(MAP))
    assert made.tokenizer.decode(other.ids).count("Paragraph") > 100
    assert len(train.starts) + len(other.starts) + len(made.validation.starts) == 600
