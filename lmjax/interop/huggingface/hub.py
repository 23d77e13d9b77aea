"""The cache of huggingface_hub, and what is wrong with a folder that is not complete.

    models--OWNER--NAME/refs/main                 the name of a snapshot
    models--OWNER--NAME/snapshots/HASH/...        links to the files in blobs/
    models--OWNER--NAME/blobs/HASH(.incomplete)   the files

A snapshot is a folder like any other; only these functions know the levels above it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from lmjax.config import UserError

_UNFINISHED = ".incomplete"


def snapshot(path: Path) -> Path:
    """Return the snapshot of a cache folder `models--OWNER--NAME`; other paths as they are.

    Raises:
        UserError: The folder has no snapshot, or several and no name of one.
    """
    folder = path / "snapshots"
    if (path / "config.json").exists() or not path.name.startswith("models--") or not path.is_dir():
        return path
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    try:
        main = (path / "refs" / "main").read_text(encoding="utf-8")[:200].strip()
    except (OSError, ValueError):
        main = ""
    if main in names or len(names) == 1:
        return folder / (main if main in names else names[0])
    if names:
        raise UserError(f"{path} has {len(names)} snapshots and no refs/main; give one of them: {folder / names[0]}")
    raise UserError(f"{path} is a folder of the Hugging Face cache without a snapshot; download the model again")


def refuse_incomplete(folder: Path, names: Sequence[str]) -> None:
    """Raise the known cause why one of these files of a folder cannot be opened.

    Raises:
        UserError: A file is a link to nothing, or its download did not finish.
    """
    for name in names:
        file = folder / name
        if file.is_symlink() and not file.exists():
            raise UserError(
                f"{file} is a link to {os.readlink(file)}, which does not exist: download the model again, or copy the "
                "folder with its links resolved (cp -rL)"
            )
    if any((folder / name).exists() for name in names):
        return
    places = [folder, folder / ".cache" / "huggingface" / "download"]
    if folder.parent.name == "snapshots":
        places.append(folder.parent.parent / "blobs")
    for place in places:
        unfinished = sorted(place.glob("*" + _UNFINISHED)) if place.is_dir() else []
        if unfinished:
            raise UserError(f"{folder} is an incomplete download (it has {unfinished[0].name}): download it again")
