"""Checkpoints: what is saved comes back bit for bit, damage is noticed, a failed save is not silent."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lmjax.config import CheckpointConfig, GuardConfig
from lmjax.guard import detector
from lmjax.journal.history import Announced
from lmjax.pytrees import digest
from lmjax.training import arrays, checkpoint
from lmjax.training.checkpoint import Checkpoint, CheckpointError, Checkpoints
from lmjax.training.state import State, abstract_state


def a_state(update: int) -> State:
    params = {"a": jax.random.normal(jax.random.key(update), (33, 7)), "b": {"c": jnp.arange(5.0)}}
    return State(params, (jnp.ones(3), {}), None, jnp.int32(update), detector.empty(GuardConfig()))


def meta(state: State) -> dict:
    update = int(state.update)
    return {"update": update, "cursor": 10 * update, "wall_step": update, "digest": digest(state)}


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and what is wrong with the newer ones."""
    problems = []
    for folder in reversed(checkpoint.folders(root)):
        problem = checkpoint.verify(folder)
        if problem is None:
            return checkpoint.read(folder), problems
        problems.append(f"checkpoint {folder.name}: {problem}")
    return None, problems


@pytest.fixture
def saves(tmp_path: Path) -> Iterator[Checkpoints]:
    saves = Checkpoints(tmp_path / "checkpoints", config=CheckpointConfig(keep=2, keep_every=4))
    yield saves
    saves.close()


def test_a_state_comes_back_bit_for_bit(saves: Checkpoints) -> None:
    state = a_state(3)
    saves.save(state, meta(state))
    saves.wait()
    assert [found.meta["update"] for found in saves.committed()] == [3]
    found, problems = newest(saves.folder)
    assert found is not None
    assert not problems
    back = checkpoint.restore(found, abstract_state(state))
    assert digest(back) == digest(state)
    assert jax.tree.structure(back) == jax.tree.structure(state)


def test_the_state_may_be_donated_as_soon_as_save_returns(saves: Checkpoints) -> None:
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = advance(a_state(1))
    expected = meta(state)
    saves.save(state, expected)
    for _ in range(20):
        state = advance(state)
    saves.wait()
    found, _ = newest(saves.folder)
    assert found is not None
    assert digest(checkpoint.restore(found, abstract_state(state))) == expected["digest"]


def test_retention_keeps_the_last_and_every_fourth(saves: Checkpoints) -> None:
    for update in range(8):
        state = a_state(update)
        saves.save(state, meta(state))
    saves.wait()
    assert [folder.name for folder in checkpoint.folders(saves.folder)] == ["0", "4", "6", "7"]
    assert not list(saves.folder.glob("*.partial"))


def test_the_best_checkpoint_has_a_finite_loss() -> None:
    config, nan = CheckpointConfig(keep=1, keep_best=True), float("nan")
    for losses, best in (((nan, 3.0, 2.0, nan), 3), ((3.0, nan, nan, nan), 1), ((nan, nan, nan, nan), 4)):
        scores = dict(enumerate(losses, 1))
        assert checkpoint.retained(range(1, 5), config, protect=(), scores=scores) == {best, 4}


@pytest.mark.parametrize("content", ["[]", "{", '{"update": -1}', '{"update": 1, "cursor": 1, "wall_step": 1}', None])
def test_a_malformed_meta_is_a_checkpoint_error(tmp_path: Path, content: str | None) -> None:
    """Also of a file that changes between its check and its reading."""
    if content is not None:
        (tmp_path / "meta.json").write_text(content)
    with pytest.raises(CheckpointError):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "zero"])
def test_any_damaged_file_is_noticed_and_the_older_checkpoint_taken(saves: Checkpoints, damage: str) -> None:
    for update in (1, 2):
        state = a_state(update)
        saves.save(state, meta(state))
    saves.wait()
    folder = saves.folder / "2"
    names = [path for path in folder.rglob("*") if path.is_file()]
    assert len(names) > 4
    for path in names:
        content = path.read_bytes()
        if not content and damage != "delete":
            continue
        if damage == "delete":
            path.unlink()
        elif damage == "flip":
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        else:
            path.write_bytes(content[: len(content) // 2] if damage == "truncate" else bytes(len(content)))
        found, problems = newest(saves.folder)
        assert found is not None
        assert found.meta["update"] == 1, path
        assert problems[0].startswith("checkpoint 2: ")
        path.write_bytes(content)
    found, problems = newest(saves.folder)
    assert found is not None
    assert found.meta["update"] == 2
    assert not problems


def test_leftovers_of_a_crash_are_ignored_and_removed(tmp_path: Path) -> None:
    (tmp_path / "7.partial").mkdir()
    (tmp_path / "notes").mkdir()
    assert newest(tmp_path) == (None, [])
    saves = Checkpoints(tmp_path, config=CheckpointConfig())
    saves.close()
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_saving_an_update_again_replaces_it(saves: Checkpoints) -> None:
    for state in (a_state(5), a_state(5).replace(opt_state=(jnp.zeros(3), {}))):
        saves.save(state, meta(state))
    saves.wait()
    found, _ = newest(saves.folder)
    assert found is not None
    assert found.meta["digest"] == digest(state)


def test_a_save_that_fails_is_an_error_at_the_next_look(saves: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_text", full)
    state = a_state(1)
    saves.save(state, meta(state))
    saves.wait()
    assert "No space left" in (saves.failure() or "")
    assert saves.failure() is None
    assert checkpoint.folders(saves.folder) == []


def test_arrays_that_are_not_those_that_were_saved_are_refused(saves: Checkpoints) -> None:
    state = a_state(1)
    saves.save(state, meta(state))
    saves.wait()
    folder = saves.folder / "1"
    (folder / "meta.json").write_text(json.dumps(meta(state) | {"digest": "0" * 64}))
    (folder / "manifest.json").write_text(json.dumps(checkpoint.hashes(folder)))
    found, _ = newest(saves.folder)
    assert found is not None
    with pytest.raises(CheckpointError, match="digest"):
        checkpoint.restore(found, abstract_state(state))


def test_a_save_that_cannot_be_read_back_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orbax takes the brackets of the path for a pattern, merges nothing, and reports success."""
    monkeypatch.setattr(arrays, "is_plain", lambda path: True)
    saves = Checkpoints(tmp_path / "try[1]", config=CheckpointConfig())
    state = a_state(1)
    saves.save(state, meta(state))
    saves.wait()
    assert "what was saved cannot be read back: state/manifest.ocdbt is missing" in (saves.failure() or "")
    assert saves.committed() == []
    assert list(saves.folder.iterdir()) == []
    saves.close()


def test_a_bit_that_flips_on_the_way_to_the_disk_is_noticed_in_the_first_save(
    saves: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax restores it without an error (of another kind than a compressed chunk that is damaged)."""
    read = checkpoint.digest_of_saved
    monkeypatch.setattr(checkpoint, "digest_of_saved", lambda *arguments: read(*arguments)[:-1] + "x")
    state = a_state(1)
    saves.save(state, meta(state))
    saves.wait()
    assert "read back with another digest" in (saves.failure() or "")
    monkeypatch.undo()
    saves.save(state, meta(state))
    saves.wait()
    assert [saved.meta["update"] for saved in saves.committed()] == [1]
    calls: list[Path] = []
    monkeypatch.setattr(checkpoint, "digest_of_saved", lambda folder, abstract: calls.append(folder))
    saves.save(a_state(2), meta(a_state(2)))
    saves.wait()
    assert saves.failure() is None
    assert calls == []  # once a session


def test_only_what_the_journal_announced_is_loaded(saves: Checkpoints) -> None:
    states = {update: a_state(update) for update in (1, 2, 3)}
    for state in states.values():
        saves.save(state, meta(state))
    saves.wait()
    abstract = abstract_state(states[1])
    known = {update: Announced(10 * update, digest(state)) for update, state in states.items()}
    assert checkpoint.load(saves.folder, abstract, announced=known)[0].meta["update"] == 3
    wrong = ((None, "does not have it"), (Announced(31, known[3].digest), "cursor"), (known[2], "digest"))
    for entry, problem in wrong:
        announced = {2: known[2]} | ({} if entry is None else {3: entry})
        loaded, _, problems = checkpoint.load(saves.folder, abstract, announced=announced)
        assert loaded.meta["update"] == 2
        assert problems[0].startswith("checkpoint 3: ")
        assert problem in problems[0]


def test_a_save_is_not_read_back_where_memory_is_scarce(saves: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "digest_of_saved", lambda *arguments: pytest.fail("it was read back"))
    monkeypatch.setattr(checkpoint.machine, "available_memory", lambda: 1)
    state = a_state(1)
    saves.save(state, meta(state))
    saves.wait()
    assert (saves.failure(), len(saves.committed())) == (None, 1)
