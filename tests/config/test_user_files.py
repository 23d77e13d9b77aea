"""The files that a configuration lists: found again, compared, copied."""

from pathlib import Path

import pytest

from lmjax.config import Config, codec, extensions, presets, user_files
from lmjax.config.errors import UserError
from tests.config.test_extensions import OPTIMIZER, write


def run_of(tmp_path: Path, name: str) -> tuple[Path, Path, Config]:
    """A file that registers `name`, a run directory that was made with it, and the configuration."""
    path = write(tmp_path / "code" / "mine.py", OPTIMIZER, name=name, value=1)
    config = codec.apply_overrides(Config(), [f"extensions=[{path}]", f"optimizer.name={name}"])
    config = codec.apply_overrides(config, [f"extensions={list(extensions.recorded(config))}"])
    run_dir = tmp_path / "run"
    user_files.save_copies(config.extensions, run_dir)
    (run_dir / "config.json").write_text(codec.to_json(config))
    return path, run_dir, config


def value(name: str) -> int:
    return extensions.get("optimizer.name", name)(None)


def test_a_changed_file_is_read_by_a_resume_and_not_by_what_reads_the_run(tmp_path: Path) -> None:
    path, run_dir, config = run_of(tmp_path, "mine_e")
    write(path, OPTIMIZER, name="mine_e", value=2)
    assert presets.read(run_dir / "config.json", exact=True) == config
    assert value("mine_e") == 1  # from the copy
    resumed = presets.read(run_dir / "config.json")
    assert value("mine_e") == 2
    assert extensions.recorded(resumed) != config.extensions  # so that a resume refuses it


def test_a_file_that_is_gone_is_read_from_its_copy(tmp_path: Path) -> None:
    path, run_dir, config = run_of(tmp_path, "mine_f")
    path.unlink()
    assert presets.read(run_dir / "config.json") == config
    assert value("mine_f") == 1
    assert extensions.recorded(config) == config.extensions
    for copy in (run_dir / user_files.FOLDER).rglob("*.py"):
        copy.unlink()
    with pytest.raises(UserError, match=r"extensions: .*mine.py does not exist; bring it back"):
        presets.read(run_dir / "config.json", exact=True)


def test_a_changed_file_without_a_copy_is_refused(tmp_path: Path) -> None:
    path, run_dir, _ = run_of(tmp_path, "mine_g")
    write(path, OPTIMIZER, name="mine_g", value=2)
    for copy in (run_dir / user_files.FOLDER).rglob("*.py"):
        copy.unlink()
    with pytest.raises(UserError, match=r"mine.py is not the file of the run \(sha256 "):
        presets.read(run_dir / "config.json", exact=True)


def test_the_files_that_a_file_imports_are_recorded_too(tmp_path: Path) -> None:
    write(tmp_path / "constants.py", "VALUE = 4\n")
    write(tmp_path / "unrelated.py", "")
    path = write(tmp_path / "top.py", "import constants\n" + OPTIMIZER, name="mine_h", value="constants.VALUE")
    config = codec.apply_overrides(Config(), [f"extensions=[{path}]", "optimizer.name=mine_h"])
    assert value("mine_h") == 4
    recorded = [user_files.split(entry)[0].name for entry in extensions.recorded(config)]
    assert recorded == ["constants.py", "top.py"]


def test_a_file_of_a_package_is_imported_by_its_name(tmp_path: Path) -> None:
    write(tmp_path / "a_package" / "__init__.py", "")
    write(tmp_path / "a_package" / "constants.py", "VALUE = 5\n")
    text = "from . import constants\n" + OPTIMIZER
    path = write(tmp_path / "a_package" / "top.py", text, name="mine_i", value="constants.VALUE")
    config = codec.apply_overrides(Config(), [f"extensions=[{path}]", "optimizer.name=mine_i"])
    assert value("mine_i") == 5
    recorded = [user_files.split(entry)[0].name for entry in extensions.recorded(config)]
    assert recorded == ["__init__.py", "constants.py", "top.py"]
