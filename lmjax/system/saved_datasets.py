"""Folders that `save_to_disk` of Hugging Face `datasets` writes.

The folder of a `Dataset` has `state.json`, which lists its Arrow files in order, and `dataset_info.json`. The folder of
a `DatasetDict` has `dataset_dict.json`, which lists its splits; each is a folder of a `Dataset`.
"""

from pathlib import Path
from typing import Any

from lmjax.config.errors import UserError
from lmjax.config.json_text import parse_json

_LARGEST = 1 << 24  # bytes of state.json and dataset_dict.json


def content(folder: str, names: set[str]) -> tuple[list[str], list[str]] | None:
    """Return the names in a folder to read, in order, and the splits to leave out.

    None if it is another folder.

    Args:
        folder: The folder.
        names: All names in it.

    Raises:
        UserError: The folder is damaged, or has no split `train`.
    """
    if {"state.json", "dataset_info.json"} <= names:
        return _shards(folder, names), []
    if "dataset_dict.json" in names:
        splits = _list(Path(folder) / "dataset_dict.json", "splits")
        if "train" not in splits:
            found = ", ".join(map(repr, splits)) or "nothing"
            raise UserError(
                f"the saved dataset '{folder}' has no split 'train', only {found}; name the folder of a split"
            )
        return ["train"], [split for split in splits if split != "train"]
    return None


def _shards(folder: str, names: set[str]) -> list[str]:
    state = Path(folder) / "state.json"
    shards = [item.get("filename") if isinstance(item, dict) else None for item in _list(state, "_data_files")]
    for shard in shards:
        if not isinstance(shard, str) or shard not in names:  # only plain names are in `names`
            raise UserError(f"'{state}' lists the file {shard!r:.100}, which is not next to it; save the dataset again")
    return [str(shard) for shard in shards]


def _list(path: Path, key: str) -> list[Any]:
    try:
        text = path.read_bytes() if path.stat().st_size <= _LARGEST else b""
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None
    tree = parse_json(text, f"'{path}'")
    value = tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(value, list) or (isinstance(tree, dict) and tree.get("_indices_data_files")):
        raise UserError(f"'{path}' is not of a dataset that this version can read; save the dataset again")
    return value
