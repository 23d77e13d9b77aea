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


def read(run_dir: Path) -> Config:
    """What a command that reads the run imports, with the user's consent."""
    with user_files.consent():
        return presets.read(run_dir / "config.json")


def resumed(run_dir: Path) -> Config:
    """What a resume imports, with the user's consent."""
    with user_files.consent():
        return presets.load(str(run_dir / "config.json"), resuming=True)


def value(name: str) -> int:
    return extensions.get("optimizer.name", name)(None)


def test_a_changed_file_is_read_by_a_resume_and_not_by_what_reads_the_run(tmp_path: Path) -> None:
    path, run_dir, config = run_of(tmp_path, "mine_e")
    write(path, OPTIMIZER, name="mine_e", value=2)
    assert read(run_dir) == config
    assert value("mine_e") == 1  # from the copy
    config_of_resume = resumed(run_dir)
    assert value("mine_e") == 2
    assert extensions.recorded(config_of_resume) != config.extensions  # so that a resume refuses it


def test_a_file_that_is_gone_is_read_from_its_copy(tmp_path: Path) -> None:
    path, run_dir, config = run_of(tmp_path, "mine_f")
    path.unlink()
    assert resumed(run_dir) == config
    assert value("mine_f") == 1
    assert extensions.recorded(config) == config.extensions
    for copy in (run_dir / user_files.FOLDER).rglob("*.py"):
        copy.unlink()
    with pytest.raises(UserError, match=r"mine.py does not exist, and there is no copy"):
        read(run_dir)


def test_a_changed_file_without_a_copy_is_refused(tmp_path: Path) -> None:
    path, run_dir, _ = run_of(tmp_path, "mine_g")
    write(path, OPTIMIZER, name="mine_g", value=2)
    for copy in (run_dir / user_files.FOLDER).rglob("*.py"):
        copy.unlink()
    with pytest.raises(UserError, match=r"mine.py has changed since the run recorded it, and there is no copy"):
        read(run_dir)


def test_the_files_that_a_file_imports_are_recorded_too(tmp_path: Path) -> None:
    write(tmp_path / "constants_h.py", "VALUE = 4\n")
    write(tmp_path / "unrelated.py", "")
    path = write(tmp_path / "top.py", "import constants_h\n" + OPTIMIZER, name="mine_h", value="constants_h.VALUE")
    config = codec.apply_overrides(Config(), [f"extensions=[{path}]", "optimizer.name=mine_h"])
    assert value("mine_h") == 4
    recorded = [user_files.parse_entry(entry).path.name for entry in extensions.recorded(config)]
    assert recorded == ["top.py", "constants_h.py"]


def test_a_file_of_a_package_is_imported_by_its_name(tmp_path: Path) -> None:
    write(tmp_path / "a_package" / "__init__.py", "")
    write(tmp_path / "a_package" / "constants.py", "VALUE = 5\n")
    text = "from . import constants\n" + OPTIMIZER
    path = write(tmp_path / "a_package" / "top.py", text, name="mine_i", value="constants.VALUE")
    config = codec.apply_overrides(Config(), [f"extensions=[{path}]", "optimizer.name=mine_i"])
    assert value("mine_i") == 5
    recorded = [user_files.parse_entry(entry).path.name for entry in extensions.recorded(config)]
    assert recorded == ["top.py", "__init__.py", "constants.py"]


def train(path: Path, run_dir: Path, name: str) -> Config:
    """What a run does with the files: import them, record them, copy them."""
    config = codec.apply_overrides(Config(), [f"extensions=[{path}]", f"optimizer.name={name}"])
    config = codec.apply_overrides(config, [f"extensions={list(extensions.recorded(config))}"])
    user_files.save_copies(config.extensions, run_dir)
    (run_dir / "config.json").write_text(codec.to_json(config))
    return config


@pytest.mark.parametrize("style", ["top", "function", "package"])
def test_a_changed_or_missing_import_is_read_from_its_copy(style: str, tmp_path: Path) -> None:
    name = f"of_{style}"
    folder = tmp_path / f"package_{style}"
    helper = write(folder / f"values_{style}.py", "VALUE = 1\n")
    use = f"import values_{style} as v" if style != "package" else f"from . import values_{style} as v"
    if style == "package":
        write(folder / "__init__.py", "")
    text = {"function": f"import lmjax\ndef f(config):\n    {use}\n    return v.VALUE\n"}.get(
        style, f"import lmjax\n{use}\ndef f(config):\n    return v.VALUE\n"
    )
    path = write(folder / "top.py", text + f"lmjax.register_optimizer('{name}', f)\n")
    run_dir = tmp_path / "run"
    config = train(path, run_dir, name)
    assert value(name) == 1
    helper.write_text("VALUE = 2\n")
    assert read(run_dir) == config
    assert value(name) == 1  # the copies
    assert extensions.recorded(resumed(run_dir)) != config.extensions
    assert value(name) == 2  # a resume would read the new file, and is refused
    folder.rename(tmp_path / "away")
    assert resumed(run_dir) == config
    assert value(name) == 1
    assert extensions.recorded(config) == config.extensions


def test_two_versions_in_one_process_are_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", OPTIMIZER, name="mine_j", value=1)
    first, second = tmp_path / "first", tmp_path / "second"
    train(path, first, "mine_j")
    write(path, OPTIMIZER, name="mine_j", value=2)
    train(path, second, "mine_j")
    for run_dir, expected in ((second, 2), (first, 1), (second, 2)):
        read(run_dir)
        assert value("mine_j") == expected
    with extensions.foreign():
        read(first)
        assert value("mine_j") == 1
    assert value("mine_j") == 2


def test_a_copy_is_the_imported_content_and_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", OPTIMIZER, name="mine_k", value=1)
    config = codec.apply_overrides(Config(), [f"extensions=[{path}]", "optimizer.name=mine_k"])
    write(path, OPTIMIZER, name="mine_k", value=2)  # after the import, before the run is written
    recorded = extensions.recorded(config)
    user_files.save_copies(recorded, tmp_path / "run")
    (copy,) = (tmp_path / "run" / user_files.FOLDER).rglob("mine.py")
    assert user_files.sha256(copy.read_bytes()) == user_files.parse_entry(recorded[0]).sha256
    copy.write_text(copy.read_text() + "# another")
    with pytest.raises(UserError, match="is not the copy that the run wrote"):
        user_files.load(recorded, copy.parents[1], exact=True)


def test_modules_of_the_same_name_in_two_folders_are_refused(tmp_path: Path) -> None:
    for folder, name in (("a", "mine_l"), ("b", "mine_m")):
        write(tmp_path / folder / "same_name.py", "VALUE = 1\n")
        write(tmp_path / folder / f"{name}.py", "import same_name\n" + OPTIMIZER, name=name, value="same_name.VALUE")
    user_files.import_file(tmp_path / "a" / "mine_l.py")
    with pytest.raises(UserError, match=r"two modules of the same name 'same_name'; rename one"):
        user_files.import_file(tmp_path / "b" / "mine_m.py")


def test_what_only_a_program_imports_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "side_effect.py", "raise SystemExit")
    text = OPTIMIZER + "if __name__ == '__main__':\n    import side_effect\n"
    path = write(tmp_path / "program.py", text, name="mine_n", value=1)
    user_files.import_file(path)
    assert user_files.imports_of(path) == ()


@pytest.mark.parametrize("start", ["\ufeff", "# -*- coding: latin-1 -*-\n"])
def test_any_encoding_of_python_is_read(start: str, tmp_path: Path) -> None:
    path = tmp_path / "encoded.py"
    encoding = "latin-1" if "latin" in start else "utf-8"
    path.write_bytes((start + "WORD = '\xe9'\n").encode(encoding))
    assert user_files.import_file(path).WORD == "\xe9"


@pytest.mark.parametrize("name", ["os.path.py", "a b.py", "x#sha256=y.py"])
def test_a_file_of_any_name_is_the_one_that_is_executed(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("MINE = True\n")
    assert user_files.import_file(user_files.parse_entry(str(tmp_path / name)).path).MINE


# ---- Consent --------------------------------------------------------------------------------------------------------


def forgotten(run_dir: Path, path: Path) -> None:
    """As in a new process: nothing of the file is imported."""
    original = user_files.parse_entry(str(path)).path
    user_files._state.contents.pop(original)
    user_files._state.modules.pop(original)


def test_the_files_of_a_run_are_not_executed_without_consent(tmp_path: Path) -> None:
    path, run_dir, config = run_of(tmp_path, "mine_o")
    assert presets.read(run_dir / "config.json") == config  # this process has imported the same content
    forgotten(run_dir, path)
    extensions._extensions.pop(("optimizer.name", "mine_o"))
    with pytest.raises(UserError, match=r"lists Python files .* add --allow-extensions"):
        presets.read(run_dir / "config.json")
    with pytest.raises(UserError, match=r"add --allow-extensions"):
        presets.load(str(run_dir / "config.json"))  # as of `train.py RUN/config.json`
    assert extensions.get("optimizer.name", "mine_o") is None
    assert presets.load(str(run_dir / "config.json"), resuming=True) == config  # the user's own file, unchanged
    assert value("mine_o") == 1


@pytest.mark.parametrize("forgery", ["copy", "relative", "inside", "changed", "no hash"])
def test_a_resume_executes_only_the_recorded_files_of_the_user(forgery: str, tmp_path: Path) -> None:
    name = f"mine_of_{forgery.replace(' ', '_')}"
    path, run_dir, config = run_of(tmp_path, name)
    forgotten(run_dir, path)
    extensions._extensions.pop(("optimizer.name", name))
    entry = config.extensions[0]
    if forgery == "copy":
        path.unlink()
    elif forgery == "changed":
        path.write_text(path.read_text() + "# another")
    elif forgery == "relative":
        entry = entry.replace(str(tmp_path), ".")
    elif forgery == "inside":
        inside = write(run_dir / "mine.py", OPTIMIZER, name=name, value=1)
        entry = entry.replace(str(path), str(inside))
    else:
        entry = str(path)
    text = (run_dir / "config.json").read_text().replace(config.extensions[0], entry)
    (run_dir / "config.json").write_text(text)
    message = r"mine.py changed\); .*--allow-change extensions" if forgery == "changed" else "--allow-extensions"
    with pytest.raises(UserError, match=message):
        presets.load(str(run_dir / "config.json"), resuming=True)
    assert extensions.get("optimizer.name", name) is None
    if forgery == "changed":
        presets.load(str(run_dir / "config.json"), resuming=True, allow=("extensions",))
        assert value(name) == 1


def test_a_change_that_no_user_gave_imports_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", "raise SystemExit")
    changed = codec.apply_overrides(Config(), [f"extensions=[{path}]"], load=False)
    assert changed.extensions == (str(path),)
