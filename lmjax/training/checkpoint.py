"""Checkpoints: Orbax arrays, a manifest of their bytes, and a retention of our own.

`checkpoints/<update>/` holds `state/` (Orbax), `meta.json` (counters, digest, fingerprints) and `manifest.json` (the
sha256 of every other file). It is written as `<update>.partial` and renamed when whole, so a crash leaves nothing that
looks like a checkpoint. Orbax alone restores a flipped bit without a word; the manifest is checked before a restore.
What a rollback leaves behind is moved to `checkpoints/quarantine/`.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lmjax.config import CheckpointConfig
from lmjax.config.errors import RunError
from lmjax.parallel import processes
from lmjax.pytrees import all_finite, digest, leaf_names, path_name
from lmjax.system import faults
from lmjax.system.files import sync_folder, write_text

MANIFEST = "manifest.json"


class CheckpointError(RunError):
    """A checkpoint could not be written or none could be read: the message names the step or the files."""


class NotFinite(CheckpointError):
    """A state with an element that is not finite is not worth keeping."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: `meta` has update, cursor, wall_step, digest and the run's fingerprints."""

    folder: Path
    meta: dict[str, Any]


class Checkpoints:
    """Writes the checkpoints of one run: at most one save is in flight during training.

    Only the run that trains may make one: leftovers of a crash are removed. scores: validation losses by update, as
    far as they are known. main: whether this process commits what all have written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: CheckpointConfig,
        scores: Mapping[int, float] | None = None,
        main: bool = True,
    ) -> None:
        self.folder = folder
        self._main = main
        self.scores = dict(scores or {})
        self._config = config
        self._orbax = ocp.StandardCheckpointer()
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._committed: list[Checkpoint] = []
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob("*.partial"):
                shutil.rmtree(leftover)

    def save(self, state: Any, meta: dict[str, Any], *, protect: Iterable[int] = ()) -> None:
        """Starts to save `state`; returns once the arrays are copied off the devices. What fails is told by `failure`.

        protect: updates whose checkpoints retention must not delete. NotFinite: nothing is written.
        """
        self.wait()
        if not all_finite(state):
            raise NotFinite(f"the state after update {meta['update']} is not finite: it is not saved")
        folder = self.folder / f"{meta['update']}.partial"
        try:
            faults.reach("save")
            if self._main:
                if folder.exists():  # of a save that failed
                    shutil.rmtree(folder)
                folder.mkdir()
            self._orbax.save(folder.absolute() / "state", state)
            faults.reach("save.arrays")
        except (OSError, ValueError) as error:
            self._failed(folder, error)
            return
        self._thread = threading.Thread(target=self._commit, args=(folder, meta, set(protect)), name="checkpoint")
        self._thread.start()

    def committed(self) -> list[Checkpoint]:
        """The checkpoints committed since the last call."""
        done, self._committed = self._committed, []
        return done

    def failure(self) -> str | None:
        """What went wrong with a save since the last call."""
        error, self._error = self._error, None
        return error

    def wait(self) -> None:
        """Waits for the save in flight."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Waits and releases Orbax's threads."""
        self.wait()
        self._orbax.close()

    def _commit(self, folder: Path, meta: dict[str, Any], protect: set[int]) -> None:
        try:
            self._orbax.wait_until_finished()
            if not self._main:
                self._committed.append(Checkpoint(folder.with_suffix(""), meta))
                return
            faults.reach("save.manifest")
            write_text(folder / "meta.json", json.dumps(meta, indent=1))
            write_text(folder / MANIFEST, json.dumps(hashes(folder), indent=1))
            faults.reach("save.rename")
            final = folder.with_suffix("")
            if final.exists():  # saved before this update was repeated; the new one is already durable
                _delete(final)
            os.replace(folder, final)
            sync_folder(self.folder)
            faults.reach("save.committed")
            self._committed.append(Checkpoint(final, meta))
            self._retain(protect)
        except BaseException as error:  # told to the training thread, whatever it is
            self._failed(folder, error)

    def _failed(self, folder: Path, error: BaseException) -> None:
        with suppress(Exception):  # what is still being written must not outlive its folder
            self._orbax.wait_until_finished()
        self._error = f"checkpoint {folder.stem} could not be written: {error}"
        self._orbax = ocp.StandardCheckpointer()  # the old one remembers its failure
        shutil.rmtree(folder, ignore_errors=True)

    def _retain(self, protect: set[int]) -> None:
        updates = [int(folder.name) for folder in folders(self.folder)]
        for update in set(updates) - retained(updates, self._config, protect=protect, scores=self.scores):
            faults.reach("save.retain")
            _delete(self.folder / str(update))


def retained(
    updates: Iterable[int], config: CheckpointConfig, *, protect: Iterable[int], scores: Mapping[int, float]
) -> set[int]:
    """Which of the checkpoints at these updates stay: 0, the last N, every K-th, the best, and the protected."""
    updates = sorted(updates)
    keep = {0, *updates[-config.keep :], *protect}
    if config.keep_every:
        keep |= {update for update in updates if update % config.keep_every == 0}
    scored = [update for update in updates if update in scores]
    if config.keep_best and scored:
        keep.add(min(scored, key=lambda update: (scores[update], update)))
    return keep & set(updates)


def _delete(folder: Path) -> None:
    """A crash half-way leaves a `.partial` folder, which nobody takes for a checkpoint."""
    doomed = folder.with_name(folder.name + ".old.partial")
    if doomed.exists():
        shutil.rmtree(doomed)
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


# ---- Reading --------------------------------------------------------------------------------------------------------


def load(
    root: Path, abstract: Any, *, digests: Mapping[int, str] | None = None, update: int | None = None
) -> tuple[Checkpoint, Any, list[str]]:
    """The newest checkpoint that is whole, its state, and what is wrong with those that were passed over.

    abstract: shapes, dtypes and shardings. digests: by update, what the journal says, where it says anything. update:
    only the checkpoint of this update.
    CheckpointError: there is none; the message names what is wrong with each.
    """
    problems = []
    for folder in reversed(folders(root)):
        if update not in (None, int(folder.name)):
            continue
        problem = processes.broadcast_from_main(partial(verify, folder))  # all the files are read: by one process
        if problem is None:
            found = read(folder)
            told = (digests or {}).get(found.meta["update"], found.meta["digest"])
            if told != found.meta["digest"]:
                problem = "it is not the one that the journal tells of"
            else:
                try:
                    return found, restore(found, abstract), problems
                except CheckpointError as error:
                    problem = str(error)
        problems.append(f"checkpoint {folder.name}: {problem}")
    raise CheckpointError(f"no checkpoint in {root} can be read: {'; '.join(problems) or 'there is none'}")


def restore(checkpoint: Checkpoint, abstract: Any) -> Any:
    """The state saved in `checkpoint`, laid out as `abstract` (shapes, dtypes, shardings) says.

    CheckpointError: the arrays do not fit `abstract`, or do not have the digest that was saved with them.
    """
    path = checkpoint.folder.absolute() / "state"
    orbax = ocp.StandardCheckpointer()
    try:
        saved = orbax.metadata(path).item_metadata
        _fits(getattr(saved, "tree", None), abstract)  # alone, Orbax finds out while it is reading arrays
        state = orbax.restore(path, abstract)
    except (ValueError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{checkpoint.folder} cannot be restored into the state of this configuration: {first}"
        ) from error
    finally:
        orbax.close()
    if digest(state) != checkpoint.meta["digest"]:
        raise CheckpointError(f"{checkpoint.folder}: the arrays do not have the digest that was saved with them")
    return state


def _fits(saved: Any, abstract: Any) -> None:
    """ValueError: an array was saved with another shape than `abstract` has, or not at all."""
    shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
    for name, leaf in zip(leaf_names(abstract), jax.tree.leaves(abstract), strict=True):
        if shapes.get(name) != leaf.shape:
            raise ValueError(f"{name} was saved with shape {shapes.get(name)}, the run has {leaf.shape}")


def read(folder: Path) -> Checkpoint:
    """A checkpoint whose files are whole (see `verify`)."""
    return Checkpoint(folder, json.loads((folder / "meta.json").read_text()))


def folders(root: Path) -> list[Path]:
    """The folders named by an update, oldest first."""
    found = [path for path in root.iterdir() if path.name.isdecimal() and path.is_dir()] if root.is_dir() else []
    return sorted(found, key=lambda path: int(path.name))


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file below `folder` except the manifest, by relative path."""
    result = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST):
        with open(path, "rb") as file:
            result[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return result


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found = hashes(folder)
        for name in manifest | found:
            if name not in found:
                return f"{name} is missing"
            if found[name] != manifest.get(name):
                return f"{name} does not match its sha256"
        update = read(folder).meta["update"]
    except FileNotFoundError:
        return "not finished (no manifest)"
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"unreadable ({error})"
    return None if str(update) == folder.name else f"it is the checkpoint of update {update} under another name"


# ---- Setting aside --------------------------------------------------------------------------------------------------


def quarantine(root: Path, *, after: int) -> list[int]:
    """Moves the checkpoints behind update `after` to `quarantine/`, the newest first; returns their updates.

    A crash half-way leaves some to be moved by calling it again. What lies there already keeps its name.
    """
    moved = []
    for folder in reversed(folders(root)):
        if int(folder.name) <= after:
            break
        faults.reach("rollback.quarantine")
        aside = root / "quarantine"
        aside.mkdir(exist_ok=True)
        names = (f"{folder.name}{suffix}" for suffix in ("", *(f".{n}" for n in range(1, 10_000))))
        os.replace(folder, next(aside / name for name in names if not (aside / name).exists()))
        moved.append(int(folder.name))
    sync_folder(root)
    return moved
