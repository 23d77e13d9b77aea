"""Rows of a dataset of the Hugging Face hub."""

import os
import re
import socket
import threading
import typing
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from lmjax.config.errors import UserError, one_line

_PATIENCE = 1.5  # seconds
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")


def rows(name: str, subset: str = "", *, splits: Sequence[str] = ("train",)) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a dataset of the hub, streamed.

    Args:
        name: The dataset, `NAME` or `OWNER/NAME`.
        subset: The subset (empty: the default one).
        splits: The first of these splits that the dataset has is read.

    Raises:
        UserError: The name could be something else than a dataset of the hub, the dataset cannot be read, or it has
            none of the splits.
    """
    import datasets
    from datasets import packaged_modules

    if not _HUB_NAME.fullmatch(name) or ".." in name:
        raise UserError(f"'{name[:100]}' is not the name of a hub dataset, which is NAME or OWNER/NAME")
    if os.path.lexists(name):  # `datasets` would read the folder
        raise UserError(f"the hub dataset '{name}' has the name of a folder or file here; name files instead, or move")
    if name in packaged_modules._PACKAGED_DATASETS_MODULES:  # `datasets` would read the files of this folder
        raise UserError(f"'{name}' is not a dataset of the hub but a reader of files; name files instead")
    check_network(f"the hub dataset '{name}'")
    try:
        loaded = typing.cast(dict[str, Iterable[Any]], datasets.load_dataset(name, subset or None, streaming=True))
        split = next((split for split in splits if split in loaded), None)
        if split is None:
            raise UserError(f"it has no split '{splits[0]}', only {', '.join(map(str, loaded))}")
        yield from ((f"hub:{name}, {split} row {number}", row) for number, row in enumerate(loaded[split], 1))
    except Exception as error:  # the hub's client has a dozen kinds: not found, offline, gated, connection lost
        raise UserError(f"cannot read the hub dataset '{name}': {one_line(error)}") from None


def check_network(what: str) -> None:
    """Check within two seconds that the hub, or a proxy to it, accepts connections.

    The hub's client itself tries for half a minute.

    Raises:
        UserError: It does not.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return  # the hub's client answers at once
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxy = urllib.request.getproxies().get(hub.scheme)
    place = urlsplit(proxy) if proxy and not urllib.request.proxy_bypass(hub.hostname or "") else hub
    failed: list[str] = ["no answer"]

    def connect() -> None:
        try:
            port = place.port or (443 if place.scheme == "https" else 80)
            socket.create_connection((place.hostname or "", port), timeout=_PATIENCE).close()
            failed.clear()
        except (OSError, ValueError) as error:
            failed[:] = [one_line(error)]

    thread = threading.Thread(target=connect, daemon=True)  # the resolution of a name has no time limit
    thread.start()
    thread.join(_PATIENCE)
    if failed:
        raise UserError(
            f"cannot read {what}: {place.hostname} is not reachable ({failed[0]}); connect this machine, or give files "
            "with data.files=[...]"
        )
