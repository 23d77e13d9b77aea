"""The cache of huggingface_hub, and downloads that did not finish."""

from pathlib import Path

import pytest

from lmjax.config import UserError
from lmjax.interop.huggingface import hub


def cached(path: Path, *names: str, main: str = "") -> Path:
    folder = path / "models--a--b"
    for name in names:
        (folder / "snapshots" / name).mkdir(parents=True)
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(main)
    return folder


def test_the_snapshot_of_a_cached_model_is_that_of_its_main_reference(tmp_path: Path) -> None:
    folder = cached(tmp_path, "0a", "0b", main="0b\n")
    assert hub.snapshot(folder) == folder / "snapshots" / "0b"
    (folder / "refs" / "main").write_text("../../..")
    with pytest.raises(UserError, match=r"has 2 snapshots and no refs/main; give one of them"):
        hub.snapshot(folder)
    assert hub.snapshot(tmp_path) == tmp_path


def test_a_single_snapshot_needs_no_reference_and_none_is_an_error(tmp_path: Path) -> None:
    assert hub.snapshot(cached(tmp_path / "one", "0a")).name == "0a"
    with pytest.raises(UserError, match="without a snapshot; download the model again"):
        hub.snapshot(cached(tmp_path / "none"))


def test_a_broken_link_and_an_unfinished_download_are_named(tmp_path: Path) -> None:
    folder = cached(tmp_path, "0a") / "snapshots" / "0a"
    hub.refuse_incomplete(folder, ("config.json",))
    blobs = folder.parent.parent / "blobs"
    blobs.mkdir()
    (blobs / "77.incomplete").write_bytes(b"")
    with pytest.raises(UserError, match=r"is an incomplete download \(it has 77\.incomplete\)"):
        hub.refuse_incomplete(folder, ("config.json",))
    (folder / "config.json").symlink_to("../../blobs/78")
    with pytest.raises(UserError, match=r"config\.json is a link to \.\./\.\./blobs/78, which does not exist"):
        hub.refuse_incomplete(folder, ("config.json",))
