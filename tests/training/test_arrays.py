"""Paths with characters that libraries interpret: what is saved below them comes back."""

import os
import tempfile
from pathlib import Path

import jax.numpy as jnp
import pytest

from lmjax.config import UserError
from lmjax.config.errors import one_line
from lmjax.pytrees import digest
from lmjax.training import arrays
from lmjax.training.arrays import ArrayWriter, check_saved, read_arrays
from lmjax.training.state import abstract_state

STATE = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.int32(7)}}
NAMES = [
    "try[1]",
    "a*b?c",
    "back\\slash",
    "two words\nand a line",
    "trailing ~",
    "é\N{SNOWMAN}",
    os.fsdecode(b"caf\xe9"),
    "%41{x}#y&z|'\"`$HOME",
    "n" * 250,
]


def saved(folder: Path) -> None:
    folder.mkdir(parents=True)
    writer = ArrayWriter()
    writer.begin(folder, STATE)
    writer.finish()
    writer.close()


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_arrays_below_any_name_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The name is that of a parent, which Orbax's pattern also contains; Orbax itself reads the arrays back."""
    folder = tmp_path / name / "checkpoints" / "1.partial"
    (tmp_path / "links").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "links"))
    saved(folder)
    assert (folder / "state" / "manifest.ocdbt").is_file()
    check_saved(folder, abstract_state(STATE))
    assert digest(read_arrays(folder, abstract_state(STATE))) == digest(STATE)
    assert list((tmp_path / "links").iterdir()) == []


def test_a_link_in_the_path_and_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real[x]").mkdir()
    (tmp_path / "link").symlink_to("real[x]")
    monkeypatch.chdir(tmp_path)
    saved(Path("link/here"))
    assert digest(read_arrays(Path("real[x]/here"), abstract_state(STATE))) == digest(STATE)


def test_what_was_not_merged_or_differs_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    saved(folder)
    for other, text in (
        ({"a": jnp.zeros((3, 2)), "b": {"c": jnp.int32(7)}}, r"a was saved with shape \(2, 3\)"),
        ({"a": jnp.zeros((2, 3), jnp.bfloat16), "b": {"c": jnp.int32(7)}}, "a was saved with dtype float32"),
        ({"a": STATE["a"], "d": jnp.int32(7)}, "d was saved with shape None"),
    ):
        with pytest.raises(ValueError, match=text):
            check_saved(folder, abstract_state(other))
    (folder / "state" / "manifest.ocdbt").unlink()  # what Orbax leaves out if it does not find its own parts
    with pytest.raises(ValueError, match=r"state/manifest.ocdbt is missing"):
        check_saved(folder, abstract_state(STATE))


def test_a_path_without_room_for_the_names_of_files_is_refused(tmp_path: Path) -> None:
    arrays.check_path(tmp_path / "fine")
    with pytest.raises(UserError, match=r"--run-dir: the path has 40\d\d bytes"):
        arrays.check_path(Path("/" + "x" * 200 + "/y" * 1930))


def test_without_a_folder_for_links_only_plain_names_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays.os, "access", lambda *_: False)
    arrays.check_path(tmp_path / "plain")
    with pytest.raises(UserError, match="choose a path of letters and digits") as caught:
        arrays.check_path(tmp_path / "try[1]")
    assert str(caught.value) == one_line(caught.value)
