"""Checkpoints: arrays written by Orbax, a manifest of the files' hashes, and retention.

`checkpoints/<update>/` holds `state/` (Orbax), `meta.json` (counters, digest, fingerprints) and `manifest.json` (the
sha256 of every other file). It is written as `<update>.partial` and renamed when complete, so a crash leaves nothing
that looks like a checkpoint. Orbax restores a flipped bit without an error; the manifest is therefore checked before a
restore. A rollback moves the checkpoints after its target to `checkpoints/quarantine/`.
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
    """A checkpoint could not be written, or no checkpoint could be read.

    The message names the update or the files.
    """


class NotFinite(CheckpointError):
    """A state has an element that is not finite, so it is not saved."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    #: Its folder.
    folder: Path
    #: Content of meta.json: update, cursor, wall_step, digest and the run's fingerprints.
    meta: dict[str, Any]


class Checkpoints:
    """Writer of the checkpoints of one run, with at most one save in flight.

    Only the run that trains may create it, since it removes the partial folders of a crash.

    Args:
        folder: Folder of the checkpoints.
        config: Retention and other settings.
        scores: Known validation losses by update.
        main: Whether this process commits the files that all processes have written.
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
        """Start to save `state`; return once the arrays are copied off the devices.

        `failure` returns the error of a failed save.

        Args:
            state: The state.
            meta: Content of meta.json.
            protect: Updates whose checkpoints retention must not delete.

        Raises:
            NotFinite: The state is not finite; nothing is written.
        """
        self.wait()
        if not all_finite(state):
            raise NotFinite(f"the state after update {meta['update']} is not finite: it is not saved")
        folder = self.folder / f"{meta['update']}.partial"
        try:
            faults.reach("save")
            if self._main:
                if folder.exists():  # left by a failed save
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
        """Return the checkpoints committed since the last call."""
        done, self._committed = self._committed, []
        return done

    def failure(self) -> str | None:
        """Return the error of a save since the last call."""
        error, self._error = self._error, None
        return error

    def wait(self) -> None:
        """Wait for the save in flight."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Wait for the save in flight and release Orbax's threads."""
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
        except BaseException as error:  # any error is passed to the training thread
            self._failed(folder, error)

    def _failed(self, folder: Path, error: BaseException) -> None:
        with suppress(Exception):  # the folder must not be removed while Orbax still writes to it
            self._orbax.wait_until_finished()
        self._error = f"checkpoint {folder.stem} could not be written: {error}"
        self._orbax = ocp.StandardCheckpointer()  # the previous instance would raise its failure again
        shutil.rmtree(folder, ignore_errors=True)

    def _retain(self, protect: set[int]) -> None:
        updates = [int(folder.name) for folder in folders(self.folder)]
        for update in set(updates) - retained(updates, self._config, protect=protect, scores=self.scores):
            faults.reach("save.retain")
            _delete(self.folder / str(update))


def retained(
    updates: Iterable[int], config: CheckpointConfig, *, protect: Iterable[int], scores: Mapping[int, float]
) -> set[int]:
    """Select the updates whose checkpoints are retained.

    These are update 0, the last N, every K-th, the best, and the protected ones.
    """
    updates = sorted(updates)
    keep = {0, *updates[-config.keep :], *protect}
    if config.keep_every:
        keep |= {update for update in updates if update % config.keep_every == 0}
    scored = [update for update in updates if update in scores]
    if config.keep_best and scored:
        keep.add(min(scored, key=lambda update: (scores[update], update)))
    return keep & set(updates)


def _delete(folder: Path) -> None:
    """Delete a checkpoint; a crash leaves a `.partial` folder, which is no checkpoint."""
    doomed = folder.with_name(folder.name + ".old.partial")
    if doomed.exists():
        shutil.rmtree(doomed)
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


# ---- Reading --------------------------------------------------------------------------------------------------------


def load(
    root: Path, abstract: Any, *, digests: Mapping[int, str] | None = None, update: int | None = None
) -> tuple[Checkpoint, Any, list[str]]:
    """Load the newest intact checkpoint.

    Args:
        root: Folder of the checkpoints.
        abstract: Shapes, dtypes and shardings of the state.
        digests: Digests in the journal, by update; a checkpoint must match its entry, if there is one.
        update: Load only the checkpoint of this update.

    Returns:
        The checkpoint, its state, and the problems of newer checkpoints that were skipped.

    Raises:
        CheckpointError: There is no intact checkpoint; the message names the problem of each.
    """
    problems = []
    for folder in reversed(folders(root)):
        if update not in (None, int(folder.name)):
            continue
        problem = processes.broadcast_from_main(partial(verify, folder))  # reads all files, so in one process only
        if problem is None:
            checkpoint = read(folder)
            journaled = (digests or {}).get(checkpoint.meta["update"], checkpoint.meta["digest"])
            if journaled != checkpoint.meta["digest"]:
                problem = "its digest is not the one in the journal"
            else:
                try:
                    return checkpoint, restore(checkpoint, abstract), problems
                except CheckpointError as error:
                    problem = str(error)
        problems.append(f"checkpoint {folder.name}: {problem}")
    raise CheckpointError(f"no checkpoint in {root} can be read: {'; '.join(problems) or 'there is none'}")


def restore(checkpoint: Checkpoint, abstract: Any) -> Any:
    """Restore the state of a checkpoint with the shapes, dtypes and shardings of `abstract`.

    Raises:
        CheckpointError: The arrays do not fit `abstract`, or do not have the digest that was saved with them.
    """
    path = checkpoint.folder.absolute() / "state"
    orbax = ocp.StandardCheckpointer()
    try:
        saved = orbax.metadata(path).item_metadata
        _fits(getattr(saved, "tree", None), abstract)  # Orbax itself would notice only while it reads the arrays
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
    """Check that every array of `abstract` was saved with its shape.

    Raises:
        ValueError: An array was saved with another shape, or not at all.
    """
    shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
    for name, leaf in zip(leaf_names(abstract), jax.tree.leaves(abstract), strict=True):
        if shapes.get(name) != leaf.shape:
            raise ValueError(f"{name} was saved with shape {shapes.get(name)}, the run has {leaf.shape}")


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint whose files are intact (see `verify`)."""
    return Checkpoint(folder, json.loads((folder / "meta.json").read_text()))


def folders(root: Path) -> list[Path]:
    """Return the folders that are named by an update, oldest first."""
    paths = [path for path in root.iterdir() if path.name.isdecimal() and path.is_dir()] if root.is_dir() else []
    return sorted(paths, key=lambda path: int(path.name))


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below `folder` except the manifest, by relative path."""
    result = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST):
        with open(path, "rb") as file:
            result[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return result


def verify(folder: Path) -> str | None:
    """Return the problem of a checkpoint's files, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        actual = hashes(folder)
        for name in manifest | actual:
            if name not in actual:
                return f"{name} is missing"
            if actual[name] != manifest.get(name):
                return f"{name} does not match its sha256"
        update = read(folder).meta["update"]
    except FileNotFoundError:
        return "not finished (no manifest)"
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"unreadable ({error})"
    return None if str(update) == folder.name else f"it is the checkpoint of update {update} under another name"


# ---- Quarantine -----------------------------------------------------------------------------------------------------


def quarantine(root: Path, *, after: int) -> list[int]:
    """Move the checkpoints after update `after` to `quarantine/`, newest first.

    After a crash, another call moves the remaining checkpoints. Folders already in `quarantine/` retain their names.

    Returns:
        The updates of the moved checkpoints.
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
