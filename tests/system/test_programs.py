"""A compiled program with a flipped bit, a torn one and one without a hash are compiled again, never executed."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.system.programs import SealedPrograms, seal, unseal
from tests import ROOT


@given(program=st.binary(min_size=1, max_size=300), place=st.integers(0), bit=st.integers(0, 7), size=st.integers(0))
def test_a_changed_entry_has_no_program(program: bytes, place: int, bit: int, size: int) -> None:
    entry = bytearray(seal(program))
    assert unseal(bytes(entry)) == program
    assert unseal(bytes(entry[: size % len(entry)])) is None
    entry[place % len(entry)] ^= 1 << bit
    assert unseal(bytes(entry)) is None


def test_a_zstd_decoder_ignores_the_hash() -> None:
    """A program that shares the folder and does not know of the hash reads the entries as before."""
    zstandard = pytest.importorskip("zstandard")
    frame = zstandard.ZstdCompressor().compress(b"a program" * 100)
    decoder = zstandard.ZstdDecompressor()
    assert decoder.decompress(seal(frame)) == b"a program" * 100
    assert decoder.stream_reader(seal(frame), read_across_frames=True).read() == b"a program" * 100


class Folder:
    """As JAX's cache: a file an entry, which is never replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> bytes | None:
        path = self._path / f"{key}-cache"
        return path.read_bytes() if path.exists() else None

    def put(self, key: str, value: bytes) -> None:
        if not (self._path / f"{key}-cache").exists():
            (self._path / f"{key}-cache").write_bytes(value)


def test_a_damaged_entry_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, path = SealedPrograms(Folder(tmp_path)), tmp_path / "a-cache"
    assert cache.get("a") is None
    cache.put("a", b"program")
    assert cache.get("a") == b"program"
    sealed = path.read_bytes()
    for damaged in (b"program", b"", sealed[:-1], bytes([sealed[0] ^ 1]) + sealed[1:]):
        path.write_bytes(damaged)
        assert cache.get("a") is None
        cache.put("a", b"program")
        assert cache.get("a") == b"program"
    lines = capsys.readouterr().err.splitlines()  # of an entry that never had a hash nothing is said
    assert lines == [f"the compiled program '{path}' is damaged: it is compiled again"] * 2


SCRIPT = """
from lmjax.system import runtime
runtime.start()
import jax, jax.numpy as jnp
x = jnp.linspace(0, 1, 4096).reshape(64, 64)
print(float(jax.jit(lambda x: jnp.tanh(x @ x).sum())(x)).hex())
"""


@pytest.mark.slow
def test_jax_executes_no_damaged_program(tmp_path: Path) -> None:
    """With one flipped bit in the entry, JAX alone ends in some cases with a signal, or computes something else."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def run() -> tuple[str, str]:
        done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    first, _ = run()
    (entry,) = tmp_path.glob("jit__lambda*-cache")
    sealed = entry.read_bytes()
    assert unseal(sealed) is not None
    assert run() == (first, "")
    for place in random.Random(0).sample(range(len(sealed)), 2):
        damaged = bytearray(sealed)
        damaged[place] ^= 4
        entry.write_bytes(damaged)
        assert run() == (first, f"the compiled program '{entry}' is damaged: it is compiled again\n")
        assert unseal(entry.read_bytes()) is not None
    entry.write_bytes(sealed[: len(sealed) // 2])  # a process was killed while it wrote
    assert run() == (first, "")
    assert unseal(entry.read_bytes()) is not None
