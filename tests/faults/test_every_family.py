"""Every family of models is a pure function of its configuration: stopped, killed, given bad data, it ends with the
same bits, and the audit finds nothing."""

from pathlib import Path

import pytest

from lmjax.diagnose import audit
from lmjax.objectives.causal import Causal
from lmjax.objectives.classification import Classification
from lmjax.objectives.masked import Masked
from lmjax.objectives.sft import FineTuning
from lmjax.objectives.translation import Translation
from tests import small
from tests.faults import runs
from tests.faults.runs import cases

STOP = "update=SIGTERM@13"  # between two saves
BAD = "data=nan@160-175!"  # updates 21 and 22, for good; what a recurrent model carries goes back with them
BROKEN = "params=nan@22"  # for once: no floating-point array of labelled rows makes a loss that is no number


@pytest.fixture(autouse=True)
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model writes at the end is tested with its objective."""
    for objective in (Causal, Masked, Translation, Classification, FineTuning):
        monkeypatch.setattr(objective, "sample", lambda *_: "")
    for objective in (Translation, FineTuning):
        monkeypatch.setattr(objective, "finish", lambda *_: {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fault"),
    cases(
        ("lstm", BAD),
        ("masked", BAD),
        ("chat", BAD),
        rest=[
            ("nnlm", BAD),
            ("translation", BAD),
            ("gru", BAD),
            ("tanh", BAD),
            ("bert labels", BROKEN),
            ("gpt labels", BROKEN),
            ("packed chat", BAD),
            ("reward", BAD),
        ],
    ),
)
def test_stopped_and_spoiled_it_ends_like_a_fresh_run(name: str, fault: str, corpus: Path, tmp_path: Path) -> None:
    config, folder = small.config(name, corpus), tmp_path / "run"
    assert runs.start(config, folder, f"{STOP} {fault}") == 0
    assert runs.summary(folder)["status"] == "stopped"
    assert runs.resume(folder, fault) == 0
    kinds = [record["kind"] for record in runs.records(folder, "rollback")]
    assert kinds == (["replay"] if fault == BROKEN else ["replay", "skip"])
    assert audit.show(folder) == 0
    fresh = runs.without(folder, config, tmp_path / "fresh")
    assert runs.losses(fresh) == runs.losses(folder)
    assert runs.digest(fresh) == runs.digest(folder)
    assert not runs.records(fresh, "suspect")
