"""A configuration of a run that was damaged or edited is refused by a resume and named by an audit."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.config import Config, UserError
from lmjax.config.codec import apply_overrides, to_json
from lmjax.run import config_hash


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    config_hash.write(Config(), tmp_path)
    content = (tmp_path / "config.json").read_bytes()
    assert content == to_json(Config()).encode()
    assert (tmp_path / "config.sha256").read_text() == hashlib.sha256(content).hexdigest() + "\n"
    config_hash.check(tmp_path)


@given(place=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    folder = tmp_path_factory.mktemp("run")
    config_hash.write(Config(), folder)
    for name in ("config.json", "config.sha256"):
        sound = (folder / name).read_bytes()
        damaged = bytearray(sound)
        damaged[place % len(sound[:-1])] ^= 1 << bit  # not the line feed at the end of the hash
        (folder / name).write_bytes(damaged)
        with pytest.raises(UserError, match=r"config\.json was damaged or edited: .* delete config\.sha256") as error:
            config_hash.check(folder)
        assert "\n" not in str(error.value)
        (folder / name).write_bytes(sound)
    config_hash.check(folder)


def test_a_change_that_is_interrupted_leaves_a_file_with_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between any two files."""
    before, after = Config(), apply_overrides(Config(), ["schedule.peak=0.5"])
    write, left = config_hash.write_text, [0]

    def fail(path: Path, text: str) -> None:
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        write(path, text)

    monkeypatch.setattr(config_hash, "write_text", fail)
    for written in range(4):
        left[0] = 3
        config_hash.write(before, tmp_path)
        left[0] = written
        if written < 3:
            with pytest.raises(OSError, match="No space"):
                config_hash.write(after, tmp_path)
        else:
            config_hash.write(after, tmp_path)
        config_hash.check(tmp_path)
        assert (tmp_path / "config.json").read_text() == to_json(before if written < 2 else after)
    (tmp_path / "config.json").write_text(to_json(before))
    with pytest.raises(UserError, match="damaged or edited"):
        config_hash.check(tmp_path)


def test_a_run_of_an_earlier_version_has_no_hash_until_it_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    config_hash.check(tmp_path)
    config_hash.add_hash(tmp_path)
    config_hash.add_hash(tmp_path)
    config_hash.check(tmp_path)
    (tmp_path / "config.json").write_text("{} ")
    with pytest.raises(UserError, match="damaged or edited"):
        config_hash.check(tmp_path)
