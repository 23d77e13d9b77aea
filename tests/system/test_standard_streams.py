"""Standard streams that are closed, or that cannot encode a text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmjax.system import standard_streams
from tests import ROOT


class Narrow:
    """A stream that records how it is configured."""

    errors = "strict"

    def reconfigure(self, *, errors: str) -> None:
        self.errors = errors


def test_a_closed_stream_is_replaced_and_a_strict_one_replaces_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = Narrow()
    monkeypatch.setattr(sys, "stdout", narrow)
    monkeypatch.setattr(sys, "stderr", None)
    standard_streams.repair()
    assert narrow.errors == "replace"
    assert sys.stderr is not None
    print("lost", file=sys.stderr)
    sys.stderr.close()  # leaves the descriptor open


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path, closed: str) -> None:
    code = (
        "from lmjax.system import standard_streams; standard_streams.repair()\n"
        f"file = open({str(tmp_path / 'data')!r}, 'wb'); assert file.fileno() > 2, file.fileno()\n"
        "import os; print('x'); os.write(1, b'a'); os.write(2, b'b')"
    )
    command = f'"{sys.executable}" -c "$CODE" {closed}'
    environment = os.environ | {"CODE": code, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(["sh", "-c", command], env=environment).returncode == 0
    assert (tmp_path / "data").read_bytes() == b""
