"""Every kind of file gives its task, and whatever is wrong with a file is one line that names it."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.tasks import catalog, loaders, render, shots, spec
from lmjax.tasks.spec import TaskConfig

ROWS = [{"input": "1 + 1", "answer": "2"}, {"input": "2 + 3", "answer": "5"}, {"input": "4 + 4", "answer": "8"}]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def folder(path: Path, config: dict[str, Any], **files: list[dict[str, Any]]) -> str:
    path.mkdir(exist_ok=True)
    (path / "task.json").write_text(json.dumps(config))
    for name, rows in files.items():
        (path / f"{name}.jsonl").write_bytes(lines(rows))
    return str(path)


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for every dataset of the hub: `load_dataset` takes both by the same name."""
    folder, load = tmp_path / "hub", datasets.load_dataset
    folder.mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *args, **options: load(str(folder), *args, **options))
    return folder


def test_files_of_rows_give_the_same_documents(tmp_path: Path, hub_folder: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(ROWS[:1]) + b"\r\n \n" + lines(ROWS[1:]).rstrip())
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(ROWS), mtime=0))
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    pyarrow.csv.write_csv(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.csv")
    (tmp_path / "a.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in [ROWS[0].keys(), *(r.values() for r in ROWS)]))
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).rename(tmp_path / "a.arrow")
    (hub_folder / "train.jsonl").write_bytes(lines(ROWS))
    names = ("a.jsonl", "a.jsonl.gz", "a.json", "a.parquet", "a.csv", "a.tsv", "a.arrow")
    sources = [str(tmp_path / name) for name in names]
    found = [catalog.load(name) for name in [*sources, "hub:owner/name", "hub:owner/name::train"]]
    assert [made.documents for made in found] == [found[0].documents] * 9
    assert [(one.prompt, one.answers) for one in found[0].documents] == [(r["input"], (r["answer"],)) for r in ROWS]
    assert (found[0].config.name, found[0].config.kind) == ("a", "generate")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"input": "a", "choices": ["x", "y"], "answer": "x"}, "choose"),
        ({"good": "a", "bad": "b"}, "pairs"),
        ({"text": "a"}, "perplexity"),
        ({"input": "a", "answer": "b", "text": "c"}, "generate"),
    ],
)
def test_the_fields_of_rows_alone_tell_the_kind(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([row]))
    made = catalog.load(str(tmp_path / "a.jsonl"))
    assert made.config.kind == kind
    assert "a" in (made.documents[0].prompt, *made.documents[0].choices)


def test_a_folder_has_a_configuration_and_may_have_a_pool(tmp_path: Path, hub_folder: Path) -> None:
    name = folder(tmp_path / "sums", {"kind": "match", "prompt": "{input} =", "joint": "\n"}, rows=ROWS)
    made = catalog.load(name)
    assert made.config == TaskConfig(name="sums", kind="match", prompt="{input} =", joint="\n")
    assert made.pool == made.documents
    made = catalog.load(folder(tmp_path / "sums", {"kind": "match", "name": "plus"}, rows=ROWS[:1], examples=ROWS))
    assert made.config.name == "plus"
    assert [one.id for one in made.pool] == ["example 0", "example 1", "example 2"]
    assert {one.prompt for one in shots.examples(made, made.documents[0], 2)} == {"2 + 3", "4 + 4"}
    config = {"kind": "match", "rows": "test.jsonl", "examples": "hub:owner/name"}
    (hub_folder / "train.jsonl").write_bytes(lines(ROWS))
    other = folder(tmp_path / "other", config, test=ROWS[:1])
    made = catalog.load(other, allow_hub=True)
    assert (len(made.documents), len(made.pool)) == (1, 3)
    with pytest.raises(UserError, match=r"task.json' reads 'hub:owner/name' from the hub; allow it with --allow-hub"):
        catalog.load(other)


def test_rows_without_text_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": "a"}, {"text": ""}, {"text": "b"}]))
    task = catalog.load(str(tmp_path / "a.jsonl"))
    assert ([document.prompt for document in task.documents], task.dropped) == (["a", "b"], 1)


def test_what_stands_behind_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "ROWS", 2)
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[:2]) + b"no JSON")
    limited = catalog.load(str(tmp_path / "a.jsonl"))
    assert (len(limited.documents), limited.first_rows) == (2, 2)  # which the result says
    (tmp_path / "b.jsonl").write_bytes(lines(ROWS[:2]))
    assert catalog.load(str(tmp_path / "b.jsonl")).first_rows == 0
    monkeypatch.setattr(loaders, "LINE", 20)
    with pytest.raises(UserError, match="line 1 has more than 20 bytes"):
        catalog.load(str(tmp_path / "a.jsonl"))
    monkeypatch.setattr(loaders, "WHOLE", 20)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    with pytest.raises(UserError, match="has more than 20 bytes"):
        catalog.load(str(tmp_path / "a.json"))


# ---- BIG-bench --------------------------------------------------------------------------------------------------


def big_bench(path: Path, **fields: Any) -> spec.Task:
    (path / "task.json").write_text(json.dumps({"canary": "GUID 123", "description": "For\npeople.", **fields}))
    made = catalog.load(str(path))
    assert not any(
        "GUID" in shots.render_prompt(made, one, 1) or "people" in shots.render_prompt(made, one, 1)
        for one in made.pool
    )
    assert made.config.measures == "For people."
    return made


def test_a_big_bench_task_to_be_generated(tmp_path: Path) -> None:
    """The text is put together as BIG-bench's documentation of its JSON tasks says, with its default prefixes."""
    made = big_bench(
        tmp_path,
        name="verbs",
        task_prefix="Past tense {here}:",
        preferred_score="exact_str_match",
        examples=[{"input": "go", "target": "went"}, {"input": "{be}", "target": ["was", "were"]}],
    )
    assert (made.config.name, made.config.kind, made.config.filters) == ("verbs", "generate", (r"[^.?!;\n]+",))
    go, be = made.documents
    assert be.answers == ("was", "were")
    assert shots.render_prompt(made, go, 1) == "Past tense {here}:\nQ: {be}\nA: was\n\nQ: go\nA:"
    made = big_bench(
        tmp_path,
        example_input_prefix="Today I ",
        example_output_prefix=". Yesterday I ",
        few_shot_example_separator=". ",
        output_regex=r"\w+",
        examples=[{"input": "go", "target": "went"}, {"input": "am", "target": "was"}],
    )
    assert shots.render_prompt(made, made.documents[0], 1) == "Today I am. Yesterday I was. Today I go. Yesterday I"
    assert (made.config.separator, made.config.filters, made.config.name) == (" ", (r"\w+",), tmp_path.name)


def test_a_big_bench_task_with_choices(tmp_path: Path) -> None:
    examples = [{"input": f"Is {i} odd?", "target_scores": {"yes": float(i % 2), "no": 1.0 - i % 2}} for i in range(9)]
    made = big_bench(tmp_path, examples=examples, append_choices_to_input=False)
    assert made.config.kind == "choose"
    assert made.config.chance == 0.5
    assert [one.gold for one in made.documents] == [1, 0] * 4 + [1]
    assert made.documents[0].prompt == "\nQ: Is 0 odd?\nA:"
    made = big_bench(tmp_path, examples=examples)
    options = {
        one.prompt.removeprefix(f"\nQ: Is {i} odd?").removesuffix("\nA:") for i, one in enumerate(made.documents)
    }
    assert options == {"\n  choice: yes\n  choice: no", "\n  choice: no\n  choice: yes"}
    made = big_bench(tmp_path, examples=examples, preferred_score="exact_str_match")
    assert (made.config.kind, made.documents[0].answers) == ("generate", ("no",))


# ---- Mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"input": "a", "answer": "b"}\n\n{"inp', "a.jsonl', line 3 is not JSON"),
        ("a.jsonl", b'{"input": "a", "answer": "b"}\n\xff', "a.jsonl', line 2 is not UTF-8 text: byte 0xff at 0"),
        ("a.jsonl", b'{"input": "a"}', "a.jsonl', line 1: there is no field 'answer', only 'input'"),
        ("a.jsonl", b"", "the task 'a' has no rows"),
        ("a.jsonl", b"3", "a.jsonl', line 1: expected an object with fields, got int"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl', line 1 has more than 100 levels"),
        ("a.csv", b"input,answer\na,b\nc\n", "a.csv', line 3 has 1 cells, the header has 2 columns"),
        ("a.jsonl.gz", b"plain", "cannot unpack"),
        ("a.jsonl.gz", gzip.compress(lines(ROWS), mtime=0)[:-9], "cannot unpack"),
        ("a.parquet", b"PAR1....PAR1", "cannot read"),
        ("a.json", b'{"rows": []}', "expected a list of rows, or a BIG-bench task"),
        ("a.json", b'{"examples": [{"input": "a"}]}', "a.json', example 1: expected an object with 'input'"),
        ("a.json", b'{"examples": [], "task_prefix": 3}', "a.json': task_prefix: expected str, got int"),
        ("a.json", b'{"examples": [], "output_regex": "("}', "a.json': filters: '(' is no regular expression"),
        ("a.json", b'{"examples": [{"input": "a", "target_scores": {"x": "1"}}]}', "target_scores: expected an object"),
        ("a.json", b'{"examples": [{"input": "a", "target_scores": {"x": NaN}}]}', "a score is NaN"),
        ("a.txt", b"text", "its name must end in .jsonl"),
        ("task.json", b'{"promt": "x"}', "task.json': unknown key 'promt'; did you mean 'prompt'?"),
        ("task.json", b'{"chance": "x"}', "task.json': chance: expected a number, got 'x'"),
        ("task.json", b'{"kind": "guess"}', "task.json': kind: 'guess' is not one of choose, match"),
        ("task.json", b'{"chance": 1' + b"0" * 400 + b"}", "task.json': "),
        ("task.json", b"[]", "task.json': configuration: expected an object, got []"),
        ("task.json", b'{"prompt": "{"}', "task.json': the template '{' has"),
        ("task.json", b'{"rows": "../a.jsonl"}', "must be the name of a file next to it, or hub:NAME"),
        ("task.json", b"{}", "no file '"),
        ("other", b"{}", "holds no task: it has no task.json"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        catalog.load(str(tmp_path if name in ("task.json", "other") else tmp_path / name))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_that_is_nothing_is_answered_with_the_nearest(tmp_path: Path, hub_folder: Path) -> None:
    with pytest.raises(UserError, match=r"no task 'randm_map'; did you mean 'random_map'\?"):
        catalog.load("randm_map")
    for name in (f"hub:{tmp_path / 'none'}", "hub:", "hub:a:b:c:d"):
        with pytest.raises(UserError, match="hub"):
            catalog.load(name)
    (hub_folder / "train.jsonl").write_bytes(lines(ROWS))
    with pytest.raises(UserError, match="it has no split 'tset', only train"):
        catalog.load("hub:owner/name::tset")


FIELDS = """input answer choices good bad text examples id key group target target_scores kind prompt task_prefix
    stop chance filters name rows"""
KEYS = st.sampled_from(FIELDS.split())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(KEYS, JSON, max_size=6) | JSON, st.integers(0, 60), st.binary(max_size=20))
@example({"examples": [{"input": "a", "target": []}]}, 0, b"")
def test_any_content_gives_a_task_or_one_clear_line(tmp_path: Path, value: Any, cut: int, noise: bytes) -> None:
    whole = json.dumps(value).encode()
    for content in (whole, whole[: max(0, len(whole) - cut)] + noise, noise):
        for name in ("task.json", "rows.jsonl", "a.json", "a.jsonl", "a.jsonl.gz", "a.parquet"):
            (tmp_path / name).write_bytes(content)
        for name in ("", "a.json", "a.jsonl", "a.jsonl.gz", "a.parquet"):
            message = ""
            try:
                made = catalog.load(str(tmp_path / name))
                assert all(one.answers or one.prompt for one in made.documents)
            except UserError as error:
                message = str(error)
            assert "\n" not in message
