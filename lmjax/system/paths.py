"""One policy for the paths of a user: names, folders and patterns become files.

- A name that exists is that file or folder, also if it has the brackets of a pattern.
- A folder stands for all readable files in it, at any depth, in the order of their names.
- A pattern may use `*`, `?`, `[...]` and `**`. As in `glob`, it matches hidden names only where it begins with a dot.
- Links are followed. Each real folder is entered once, so that a loop ends, and each real file is listed once.
- What is left out is listed with the reason.
"""

import difflib
import fnmatch
import glob
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lmjax.config.errors import UserError
from lmjax.system import saved_datasets

# Bytes of a name and of a path that Linux and macOS accept.
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # at least two letters: C:/ is a drive; Path makes one / of two


@dataclass(frozen=True)
class File:
    """A regular file, as it was listed."""

    #: The path under which it was found.
    path: Path
    #: The absolute path without links.
    real: str
    #: Bytes.
    size: int
    #: Time of the last modification, in nanoseconds.
    mtime_ns: int


@dataclass
class Listing:
    """The files that names stand for."""

    #: The files in their order, each real file once.
    files: list[File] = field(default_factory=list)
    #: Paths that were left out, by the reason.
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: str, path: str | Path) -> None:
        """Record a path that is left out."""
        self.skipped.setdefault(reason, []).append(str(path))

    def notes(self) -> list[str]:
        """Return a line for each reason, with the number of paths and the first of them."""
        return [
            f"left out {len(paths)} of {reason}: {', '.join(paths[:3])}{', ...' * (len(paths) > 3)}"
            for reason, paths in self.skipped.items()
        ]


HIDDEN, UNKNOWN, DANGLING = "hidden files and folders", "files with an unknown ending", "links without a target"
REPEATED, ENTERED = "names of files that are read already", "links to folders that are read already"
SPECIAL, FOLDERS = "pipes, sockets and devices", "folders (add /** to the pattern to read them)"
SPLITS = "splits of a saved DatasetDict other than train"


def expand(names: Iterable[str], is_readable: Callable[[Path], object], *, key: str, endings: str) -> Listing:
    """Resolve names, folders and patterns to files.

    Args:
        names: Paths of files and folders, and patterns.
        is_readable: Whether the name of a file has an ending that can be read.
        key: The configuration key of the names, for messages.
        endings: The endings that can be read, for messages.

    Raises:
        UserError: A name is empty or remote, stands for no file, or cannot be read; or an ending is unknown.
    """
    listing, seen = Listing(), set[str]()
    for name in names:
        for path, real, status in _expand(name, is_readable, listing, key=key, endings=endings):
            if real in seen:
                listing.skip(REPEATED, path)
            else:
                seen.add(real)
                listing.files.append(File(path, real, status.st_size, status.st_mtime_ns))
    return listing


def local(name: str | Path, *, key: str) -> Path:
    """Return the path of a name, with the home folder for `~`.

    Raises:
        UserError: The name is empty or too long, has a NUL character, is the address of something remote, or has no
            home folder.
    """
    name = str(name)
    if not name.strip():
        raise UserError(f"{key} has an empty name; give a path")
    if "\0" in name:
        raise UserError(f"{key} has a name with a NUL character: {name[:80]!r}")
    parts = [len(part.encode("utf-8", "surrogatepass")) for part in name.split("/")]
    if max(parts) > _LONGEST_NAME or sum(parts) + len(parts) > _LONGEST_PATH:
        raise UserError(f"{key} has a name that is too long for a file: {name[:80]!r} ...; give a shorter path")
    if is_remote(name) and not os.path.lexists(name):
        raise UserError(f"{key}: '{name}' is a remote address, lmjax reads local files; download it and give its path")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"{key}: '{name}' has no home folder; give the complete path") from None


def file(path: Path) -> File:
    """Return the entry of a file that exists.

    Raises:
        UserError: The file cannot be read.
    """
    status = _status(path)
    if status is None:
        raise missing(path)
    return File(path, os.path.realpath(path), status.st_size, status.st_mtime_ns)


def is_remote(name: str | Path) -> bool:
    """Return whether a name is an address such as `s3://bucket/file`."""
    return _REMOTE.match(str(name)) is not None


def address(path: str | Path) -> str:
    """Return a remote address as it was given: a `Path` has one of its slashes only."""
    return re.sub(r"^(\w+):/+", r"\1://", str(path))


def missing(path: Path) -> UserError:
    """Return the error for a path that does not exist, with its reason or the nearest name."""
    if is_remote(path):
        return UserError(
            f"'{address(path)}' is a remote address, lmjax reads local files; download it and give its path"
        )
    if path.is_symlink():
        return UserError(
            f"'{path}' is a link to '{os.readlink(path)}', which does not exist; repair or remove the link"
        )
    if not path.parent.is_dir():
        return UserError(f"no file or folder '{path}': the folder '{path.parent}' does not exist")
    near = difflib.get_close_matches(path.name, sorted(item.name for item in path.parent.iterdir()), 1)
    return UserError(f"no file or folder '{path}'" + (f"; did you mean '{path.parent / near[0]}'?" if near else ""))


# ---- Names, folders and patterns --------------------------------------------------------------------------------

_Entry = tuple[Path, str, os.stat_result]  # the path, the real path, the status


def _expand(
    name: str, is_readable: Callable[[Path], object], listing: Listing, *, key: str, endings: str
) -> Iterator[_Entry]:
    """Yield the files of one name."""
    path = local(name, key=key)
    status = _status(path)
    if status is None and not path.is_symlink() and glob.has_magic(name):
        entries = _matches(path, listing)
        if not entries:
            raise UserError(f"no file matches '{name}'{_left_out(listing)}")
    elif status is None:
        raise missing(path)
    elif stat.S_ISDIR(status.st_mode):
        entries = _below(str(path), is_readable, listing)
        if not entries:
            raise UserError(f"the folder '{path}' holds no file that ends in {endings}{_left_out(listing)}")
    elif stat.S_ISREG(status.st_mode):
        entries = [(path, os.path.realpath(path), status)]
    else:
        raise UserError(f"'{path}' is not a regular file; write its content to a file")
    for found, real, entry in entries:
        if not is_readable(found):
            advice = "" if status else f"; or name the folder instead of '{name}': it leaves out such files"
            raise UserError(f"'{found}': cannot tell what this file is; its name must end in {endings}{advice}")
        yield found, real, entry


def _left_out(listing: Listing) -> str:
    notes = "; ".join(listing.notes())
    return notes and f" ({notes})"


def _status(path: str | Path) -> os.stat_result | None:
    """Return the status of what a path leads to; None if there is nothing."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None


def _below(folder: str, is_readable: Callable[[Path], object], listing: Listing) -> list[_Entry]:
    """The readable files of a folder, in order of their paths; of a saved dataset its shards."""
    entries: list[_Entry] = []
    for path, real, status in _walk(folder, listing, saved=True):
        if stat.S_ISDIR(status.st_mode):
            continue
        if is_readable(file := Path(path)):
            entries.append((file, real, status))
        else:
            listing.skip(UNKNOWN, path)
    return entries


def _matches(path: Path, listing: Listing) -> list[_Entry]:
    """The files that a pattern matches, in the order of the parts of their paths."""
    entries: list[_Entry] = []
    real_folders: dict[str, str] = {}
    for match in sorted({Path(match) for match in _glob("", path.parts)}, key=lambda match: match.parts):
        status = _status(match)
        if status is None:
            listing.skip(DANGLING, match)
        elif stat.S_ISREG(status.st_mode):
            if (folder := str(match.parent)) not in real_folders:
                real_folders[folder] = os.path.realpath(folder)
            is_link = match.is_symlink()
            real = os.path.realpath(match) if is_link else os.path.join(real_folders[folder], match.name)
            entries.append((match, real, status))
        elif not stat.S_ISDIR(status.st_mode):
            listing.skip(SPECIAL, match)
        elif "**" not in path.parts:
            listing.skip(FOLDERS, match)
    return entries


def _glob(base: str, parts: tuple[str, ...]) -> Iterator[str]:
    """Yield the matches of a pattern below a folder, as `glob.glob`, but without link loops."""
    if not parts:
        yield base
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _glob(base, rest or ("*",))
        for path, _, status in _walk(base or ".", Listing(), saved=False):
            if stat.S_ISDIR(status.st_mode):
                yield from _glob(path if base else os.path.relpath(path), rest or ("*",))
    elif glob.has_magic(part) and not ("[" in part and os.path.lexists(os.path.join(base, part))):
        names = [entry.name for entry in _scan(base or ".")] if os.path.isdir(base or ".") else []
        for name in fnmatch.filter(names, part):
            if part.startswith(".") or not name.startswith("."):
                yield from _glob(os.path.join(base, name), rest)
    elif os.path.lexists(path := os.path.join(base, part)):
        yield from _glob(path, rest)


def _walk(folder: str, listing: Listing, *, saved: bool) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yield the content of a folder at any depth: path, real path and status.

    A folder precedes its content.

    Args:
        folder: The folder.
        listing: Where to record what is left out.
        saved: Read of a saved dataset only its shards.
    """
    real = os.path.realpath(folder)
    entered = {real}
    pending = [_children(folder, real, listing, saved=saved)]
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
            continue
        path, real, status = entry
        if stat.S_ISDIR(status.st_mode):
            if real in entered:
                listing.skip(ENTERED, path)
                continue
            entered.add(real)
            pending.append(_children(path, real, listing, saved=saved))
        yield entry


def _children(
    folder: str, real_folder: str, listing: Listing, *, saved: bool
) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yield the files and folders in a folder, sorted by name, except hidden ones."""
    entries = {entry.name: entry for entry in _scan(folder)}
    names = sorted(entries)
    if saved and (selected := saved_datasets.content(folder, set(names))):
        names, splits = selected
        for split in splits:
            listing.skip(SPLITS, os.path.join(folder, str(split)))
    for name in names:
        entry = entries.get(name)
        if name.startswith(".") or entry is None:
            listing.skip(HIDDEN if entry else DANGLING, os.path.join(folder, name))
            continue
        status = _status(entry.path)
        if status is None:
            listing.skip(DANGLING, entry.path)
        elif stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            is_link = entry.is_symlink()
            yield entry.path, os.path.realpath(entry.path) if is_link else os.path.join(real_folder, name), status
        else:
            listing.skip(SPECIAL, entry.path)


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"cannot list the folder '{folder}': {error.strerror}") from None
