"""What is not written during training meets a disk that is full to the last page: the old file stays, in one line."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from lmjax.config import Config, UserError, user_files
from lmjax.config.errors import RunError
from lmjax.data.tokenizer import Tokenizer
from lmjax.display import figures
from lmjax.evaluation.cache import Cache
from lmjax.inference.language_model import LanguageModel
from lmjax.interop.huggingface import folder
from lmjax.run import config_hash
from lmjax.run.spikes import report
from lmjax.system import files, json_files
from lmjax.system.append import AppendFile
from lmjax.training import trackers
from tests.evaluation import plain
from tests.small_disk import resize, small_disk

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return plain.language_model(plain.FAMILIES["llama"])


@pytest.fixture(scope="module")
def tokenizer(model: LanguageModel) -> Tokenizer:
    return model.tokenizer


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", size="1m") as place:
        yield place


def picture(place: Path, size: float) -> Path:
    figure = Figure()
    figure.subplots().plot([0, size], [size, 0])
    return figures.save(figure, place / "a.png")


def copies(place: Path, number: int) -> None:
    source = place.parent / "model.py"
    source.write_text(f"WIDTH = {number}\n")
    text = f"{source}#sha256={user_files.sha256(source.read_bytes())}"
    user_files.save_copies([text], place, write=files.write_bytes)


WRITERS: dict[str, Callable[[Path, Any, int], Any]] = {
    "results": lambda place, model, n: json_files.write_json(place / "results.json", {"score": n}),
    "picture": lambda place, model, n: picture(place, n),
    "tokenizer": lambda place, model, n: model.tokenizer.save(place / "tokenizer.json"),
    "export": lambda place, model, n: folder.export_model(model, place / "hf"),
    "configuration": lambda place, model, n: config_hash.write(Config(seed=n), place),
    "copies": lambda place, model, n: copies(place, n),
    "verdict": lambda place, model, n: report.conclude_report(place, 7, f"verdict {n}"),
    "metrics": lambda place, model, n: AppendFile(place / "metrics.jsonl").append(b"%d" % n + b" " * 5000 + b"\n"),
    "run_id": lambda place, model, n: trackers._run_id(place / "wandb" / "run_id") and None,
}


def tree(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def fill(place: Path) -> None:
    with suppress(OSError), (place / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 512)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_every_file_as_it_was(disk: Path, model: LanguageModel, name: str) -> None:
    write = WRITERS[name]
    if name != "run_id":  # which is written once
        write(disk, model, 1)
        assert tree(disk)
    fill(disk)
    before = tree(disk)
    with pytest.raises((OSError, UserError, RunError), match="No space left on device") as caught:
        write(disk, model, 2)
    assert "\n" not in str(caught.value)
    assert str(disk) in str(caught.value) or str(disk) in str(getattr(caught.value, "filename", ""))
    assert tree(disk) == before
    (disk / "filler").unlink()
    write(disk, model, 2)
    after = tree(disk)
    assert before.keys() - {"filler"} <= after.keys()
    assert not [path for path in after if path.endswith(".partial")]


def test_a_full_disk_costs_the_cache_of_an_evaluation_only_what_is_new(disk: Path) -> None:
    path = disk / "answers.jsonl"
    Cache(path).add({"one": (-1.25, True)})
    fill(disk)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        Cache(path).add({str(number): "x" * 100 for number in range(100)})
    assert Cache(path).get("one") == (-1.25, True)
    resize(disk, "2m")
    Cache(path).add({"two": "12"})
    assert [Cache(path).get(key) for key in ("one", "two")] == [(-1.25, True), "12"]
