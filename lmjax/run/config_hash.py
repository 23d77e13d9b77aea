"""Hash of the config.json of a run: a damaged or edited file is refused.

Otherwise a resume would train something else, without a word.
"""

import hashlib
from pathlib import Path

from lmjax.config import Config, UserError, codec, presets
from lmjax.config.regular_files import read_regular
from lmjax.system.files import write_text

NAME, HASHES = "config.json", "config.sha256"
_LARGEST = 1 << 16  # bytes of the file of hashes


def write(config: Config, run_dir: Path) -> None:
    """Write the configuration; a crash leaves the old one or the new one, and its hash."""
    text = codec.to_json(config)
    _write_hashes(run_dir, *_hashes(run_dir), _hash(text.encode()))  # before the file: it matches at any time
    write_text(run_dir / NAME, text)
    _write_hashes(run_dir, _hash(text.encode()))


def add_hash(run_dir: Path) -> None:
    """Write the hash of a configuration that has none, of an earlier version."""
    if not (run_dir / HASHES).exists():
        _write_hashes(run_dir, _hash(presets.read_bytes(run_dir / NAME)))


def check(run_dir: Path) -> None:
    """Check that config.json is the one that lmjax wrote; without a hash, any is accepted.

    Raises:
        UserError: It was damaged or edited, or cannot be read.
    """
    if (run_dir / HASHES).exists() and _hash(presets.read_bytes(run_dir / NAME)) not in _hashes(run_dir):
        raise UserError(
            f"{run_dir / NAME} was damaged or edited: its sha256 is not in {HASHES}; bring it back as it was, and give "
            f"changes on the command line, with --allow-change; or delete {HASHES} to accept it"
        )


def _hashes(run_dir: Path) -> list[str]:
    try:
        return read_regular(run_dir / HASHES, largest=_LARGEST).decode("ascii", "replace").split()
    except OSError:
        return []


def _write_hashes(run_dir: Path, *hashes: str) -> None:
    write_text(run_dir / HASHES, "".join(f"{line}\n" for line in dict.fromkeys(hashes)))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
