"""Hash of each compiled program in JAX's cache, compared before the program is executed.

JAX itself compares nothing: one flipped bit can end the process, or compute other numbers. An entry with another hash
or without one is deleted, and the program is compiled again.
"""

import hashlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

# The hash is in a skippable frame of zstd (RFC 8878, section 3.1.2): a JAX that does not know it reads the entry too.
_SIZE = hashlib.sha256().digest_size
_HEAD = bytes.fromhex("502a4d18") + _SIZE.to_bytes(4, "little")


def seal(program: bytes) -> bytes:
    """Append the hash of a compiled program."""
    return program + _HEAD + hashlib.sha256(program).digest()


def unseal(entry: bytes) -> bytes | None:
    """Return a compiled program without its hash; None without the right hash."""
    program = entry[: -len(_HEAD) - _SIZE]
    return program if program and entry == seal(program) else None


class SealedPrograms:
    """A cache of compiled programs with the hash of each.

    Args:
        cache: JAX's cache.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._path = cache._path  # read by JAX, for its messages

    def get(self, key: str) -> bytes | None:
        """Return the program of a key; None if there is none with the right hash."""
        entry = self._cache.get(key)
        if entry is None:
            return None
        program = unseal(entry)
        if program is None:
            path = Path(self._path) / f"{key}-cache"
            with suppress(OSError):  # a folder that is only read: it is compiled each time
                path.unlink()  # JAX replaces no entry
            if _HEAD in entry[-2 * len(_HEAD) - _SIZE :]:
                print(f"the compiled program '{path}' is damaged: it is compiled again", file=sys.stderr)
        return program

    def put(self, key: str, program: bytes) -> None:
        """Add a program, unless the key has one."""
        self._cache.put(key, seal(program))


def check_programs() -> None:
    """Make JAX compare the hash of each program in its cache; repeated calls are allowed."""
    from jax._src import compilation_cache  # no public function replaces the cache

    open_cache = getattr(compilation_cache, "get_file_cache", None)
    if open_cache is None or not hasattr(compilation_cache, "_cache"):
        print("this JAX has another cache of compiled programs: their hashes are not compared", file=sys.stderr)
        return
    if open_cache.__name__ == "open_sealed":
        return

    def open_sealed(path: str) -> Any:
        cache = open_cache(path)
        return cache and (SealedPrograms(cache[0]), cache[1])

    compilation_cache.get_file_cache = open_sealed
    if compilation_cache._cache is not None:  # JAX has used it already
        compilation_cache._cache = SealedPrograms(compilation_cache._cache)
