r"""Arrays of a checkpoint on disk, written and read by Orbax.

Orbax and TensorStore interpret a path: as a pattern (`*?[]\`), as a URL, and as UTF-8. A folder whose path has other
characters than plain ones is therefore passed to them under a symbolic link with a plain name.
"""

import errno
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lmjax.config.errors import UserError, one_line
from lmjax.pytrees import digest, leaf_names, path_name

#: Maximum length of a run's path in bytes: the files of its checkpoints have names up to 300 bytes longer, and the
#: system allows 4,096 in all.
LONGEST = 3700
_PLAIN = re.compile(r"/[A-Za-z0-9_./ =,+@%^-]*")
_MERGED = "manifest.ocdbt"  # of all processes' arrays
_LONG = 1000  # characters of a path above which a link is used


class Alias:
    """A path to a folder that libraries read as it is meant: its own, or that of a link."""

    def __init__(self, folder: Path) -> None:
        self.folder = self.path = Path(os.path.abspath(folder))
        self._link: Path | None = None
        if not is_plain(self.path):
            self._link = _plain_folder() / "folder"
            self._link.symlink_to(self.path)
            self.path = self._link

    def close(self) -> None:
        """Remove the link; repeated calls are allowed."""
        if self._link is not None:
            with suppress(OSError):
                self._link.unlink()
                self._link.parent.rmdir()
            self._link = None


@contextmanager
def alias(folder: Path) -> Iterator[Path]:
    """Yield a path to `folder` that Orbax and TensorStore read as it is meant."""
    name = Alias(folder)
    try:
        yield name.path
    finally:
        name.close()


def is_plain(path: Path) -> bool:
    """Whether no library gives the absolute path another meaning."""
    text = str(path)
    return len(text) <= _LONG and _PLAIN.fullmatch(text) is not None


def check_path(run_dir: Path) -> None:
    """Check that checkpoints can be written below `run_dir` and read again.

    Raises:
        UserError: The path is too long, or needs a link and no folder for it is found.
    """
    path = os.path.abspath(run_dir)
    if len(os.fsencode(path)) > LONGEST:
        raise UserError(
            f"--run-dir: the path has {len(os.fsencode(path))} bytes, more than the {LONGEST} that leave room for the "
            f"names of the run's files; choose a shorter one than {path[:60]}..."
        )
    _check_names(path)
    try:
        with alias(Path(path)):
            pass
    except OSError as error:
        raise UserError(
            f"--run-dir {path!a}: its checkpoints need a link with a plain name, which cannot be created "
            f"({one_line(error)}); choose a path of letters and digits"
        ) from None


def _check_names(path: str) -> None:
    """Check that the system accepts each name in the path."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise UserError(f"--run-dir {path!a:.80}: {error.strerror}; choose another name") from None


def _plain_folder() -> Path:
    """Return a new temporary folder with a plain path."""
    for place in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")):
        if is_plain(Path(place)) and os.access(place, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="lmjax-", dir=place))
    raise FileNotFoundError(2, "no temporary folder with a plain name is writable; set TMPDIR", tempfile.gettempdir())


# ---- Writing --------------------------------------------------------------------------------------------------------


class ArrayWriter:
    """Writes states in the background, one at a time."""

    def __init__(self) -> None:
        _silence_repetitions()
        self._orbax = ocp.StandardCheckpointer()
        self._alias: Alias | None = None

    def begin(self, folder: Path, state: Any) -> None:
        """Start to write `state` to `folder/state`; return once the devices are free."""
        self._alias = Alias(folder)
        self._orbax.save(self._alias.path / "state", state)

    def finish(self) -> None:
        """Wait until the arrays are on the disk."""
        self._orbax.wait_until_finished()
        self._close_alias()

    def explain(self, error: BaseException) -> str:
        """Return the message of a failed write in one line, without the path of the link."""
        text = str(error)
        if self._alias is not None:
            text = text.replace(str(self._alias.path), str(self._alias.folder))
        if (reason := os.strerror(errno.ENOSPC)) in text:  # first: a long message of TensorStore is cut
            text = f"{reason}: {text}"
        return one_line(RuntimeError(text))

    def abandon(self) -> None:
        """Wait for a failed write to end; the next one is independent of it."""
        with suppress(Exception):  # the folder must not be removed while Orbax still writes to it
            self._orbax.wait_until_finished()
        # After a failure Orbax leaves parts of its write that were not started, which Python reports at its end.
        warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning)
        self._close_alias()
        self._orbax = ocp.StandardCheckpointer()  # the previous instance would raise its failure again

    def close(self) -> None:
        """Release Orbax's threads."""
        self._orbax.close()
        self._close_alias()

    def _close_alias(self) -> None:
        if self._alias is not None:
            self._alias.close()
            self._alias = None


def _silence_repetitions() -> None:
    """Keep an error that Orbax raises from also being printed, with many tracebacks.

    Orbax logs it in each of its threads, asyncio for each file, and TensorStore reports every array that was in flight
    to a closed event loop.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    hook = sys.unraisablehook
    if getattr(hook, "__name__", "") != "without_closed_loops":

        def without_closed_loops(problem: Any) -> None:
            if not (isinstance(problem.exc_value, RuntimeError) and str(problem.exc_value) == "Event loop is closed"):
                hook(problem)

        sys.unraisablehook = without_closed_loops


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log record says more than the error that Orbax also raises."""
    repeated = "orbax" in record.pathname or "exception was never retrieved" in str(record.msg)
    return record.levelno < logging.ERROR or not repeated


# ---- Reading --------------------------------------------------------------------------------------------------------


def check_saved(folder: Path, abstract: Any) -> None:
    """Check that `folder/state` has every array of `abstract`, with its shape and dtype.

    Raises:
        ValueError: An array was not saved, or differs.
    """
    with alias(folder) as name, _reader() as orbax:
        _check_metadata(orbax, name / "state", abstract)


def read_arrays(folder: Path, abstract: Any) -> Any:
    """Read the arrays of `folder/state` with the shapes, dtypes and shardings of `abstract`.

    Raises:
        ValueError: They do not fit `abstract`.
    """
    with alias(folder) as name, _reader() as orbax:
        _check_metadata(orbax, name / "state", abstract)  # Orbax itself would notice only while it reads
        return orbax.restore(name / "state", abstract)


def digest_of_saved(folder: Path, abstract: Any) -> str:
    """Return the digest of the arrays of `folder/state`; an accelerator needs no memory."""
    if jax.default_backend() == "cpu":  # with the shardings of the state the digest is compiled already
        return digest(read_arrays(folder, abstract))
    cpu = jax.local_devices(backend="cpu")[0]
    place = jax.sharding.SingleDeviceSharding(cpu)
    leaves = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract)
    with jax.default_device(cpu):
        return digest(read_arrays(folder, leaves))


@contextmanager
def _reader() -> Iterator[Any]:
    _silence_repetitions()
    orbax = ocp.StandardCheckpointer()
    try:
        yield orbax
    finally:
        orbax.close()


def _check_metadata(orbax: Any, path: Path, abstract: Any) -> None:
    """Check the metadata of saved arrays against `abstract`.

    Raises:
        ValueError: An array was saved with another shape or dtype, or not at all.
    """
    if not (path / _MERGED).is_file():  # TensorStore would look for each array in vain
        raise ValueError(f"{path.name}/{_MERGED} is missing: the arrays were written, but not merged")
    saved = orbax.metadata(path).item_metadata
    leaves = jax.tree_util.tree_leaves_with_path(getattr(saved, "tree", None))
    found = {path_name(path): (tuple(leaf.shape or ()), leaf.dtype) for path, leaf in leaves if hasattr(leaf, "shape")}
    for name, leaf in zip(leaf_names(abstract), jax.tree.leaves(abstract), strict=True):
        shape, dtype = found.get(name, (None, None))
        if shape != leaf.shape:
            raise ValueError(f"{name} was saved with shape {shape}, the run has {leaf.shape}")
        if dtype is not None and dtype != leaf.dtype:
            raise ValueError(f"{name} was saved with dtype {dtype}, the run has {leaf.dtype}")
