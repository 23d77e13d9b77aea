"""Runs whose prepared data are damaged, whose text is gone, or whose sources are measured one by one."""

import dataclasses
import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest

from lmjax.config import Config, SourceConfig, UserError
from lmjax.data.store import preparation
from lmjax.diagnose import audit
from lmjax.run import build, launch, resume, validation

pytestmark = pytest.mark.slow


@pytest.fixture
def own(tiny: Config, tmp_path: Path) -> Config:
    """A run with a text and a cache of its own."""
    text = tmp_path / "text.txt"
    text.write_bytes(Path(tiny.data.files[0]).read_bytes())
    data = dataclasses.replace(tiny.data, files=(str(text),), cache=str(tmp_path / "cache"))
    return dataclasses.replace(tiny, data=data)


def flip_bits(path: Path) -> None:
    content, rnd = bytearray(path.read_bytes()), random.Random(0)
    for place in rnd.sample(range(0, len(content), 2), 200):
        content[place] ^= 1  # every id stays in the vocabulary
    path.write_bytes(content)


def test_flipped_bits_of_the_tokens_stop_a_start_and_a_resume_and_an_audit_names_them(
    own: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = preparation.prepare(own.data)
    assert launch.start(own, tmp_path / "run") == 0
    assert audit.show(tmp_path / "run") == audit.IN_ORDER
    flip_bits(store.folder / "train-0.ids")
    for call in (
        lambda: launch.start(own, tmp_path / "other"),
        lambda: resume.resume(
            dataclasses.replace(own, train=dataclasses.replace(own.train, updates=16)),
            tmp_path / "run",
            allow=["train.updates"],
        ),
    ):
        with pytest.raises(UserError, match=r"train-0\.ids': its sha256 is not the manifest's"):
            call()
    assert not (tmp_path / "other").exists()
    capsys.readouterr()
    assert audit.show(tmp_path / "run") == audit.WRONG
    assert "train-0.ids': its sha256 is not the manifest's" in capsys.readouterr().out


def test_the_journal_has_the_hash_of_the_bytes_that_were_used(own: Config, tmp_path: Path) -> None:
    """An edited manifest that agrees with itself and with the edited tokens is other data than the run had."""
    store = preparation.prepare(own.data)
    assert launch.start(own, tmp_path / "run") == 0
    flip_bits(store.folder / "train-0.ids")
    from lmjax.data.store import manifest

    forged = json.loads((store.folder / "manifest.json").read_text())
    forged["files"]["train-0.ids"]["sha256"] = manifest.file_sha256(store.folder / "train-0.ids")
    forged["fingerprint"] = manifest.content_fingerprint(forged["files"])
    (store.folder / "manifest.json").write_text(json.dumps(forged))
    longer = dataclasses.replace(own, train=dataclasses.replace(own.train, updates=16))
    with pytest.raises(UserError, match="the data changed since the run began"):
        resume.resume(longer, tmp_path / "run", allow=["train.updates"])


def test_a_run_whose_text_is_gone_resumes_with_the_same_bits(own: Config, tmp_path: Path) -> None:
    longer = dataclasses.replace(own, train=dataclasses.replace(own.train, updates=16))
    for name in ("run", "twin"):
        assert launch.start(own, tmp_path / name) == 0
    assert resume.resume(longer, tmp_path / "twin", allow=["train.updates"]) == 0
    (tmp_path / "text.txt").unlink()
    fraction = dataclasses.replace(longer, data=dataclasses.replace(longer.data, validation_fraction=0.2))
    with pytest.raises(UserError, match="no file or folder"):  # other data than the prepared ones
        resume.resume(fraction, tmp_path / "run", allow=["train.updates", "data.validation_fraction"])
    assert resume.resume(longer, tmp_path / "run", allow=["train.updates"]) == 0
    digests = [json.loads((tmp_path / name / "summary.json").read_text())["digest"] for name in ("run", "twin")]
    assert digests[0] == digests[1]
    assert audit.show(tmp_path / "run") == audit.IN_ORDER


def test_a_mixture_is_measured_by_source(own: Config, tmp_path: Path) -> None:
    """Each loss by source is that of a plain forward pass over the targets from this source's documents."""
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"Numbers {i} {i * i} {i**3}." for i in range(150)))
    sources = (SourceConfig(files=own.data.files, weight=9.0), SourceConfig(files=(str(other),), weight=1.0))
    data = dataclasses.replace(own.data, files=(), mixture=sources, validation_fraction=0.2)
    run = build.build(dataclasses.replace(own, data=data), preparation.prepare(data))
    state = build.init(run)
    ids, context = run.store.validation.ids.astype(int), run.config.model.context
    starts = run.store.validation.starts
    second = next(int(start) for start in starts if bytes(ids[start : start + 7].astype(np.uint8)) == b"Numbers")
    losses, apply = np.zeros(len(ids)), jax.jit(run.model.apply)
    for start in range(0, len(ids) - 1, context):
        window = ids[start : start + context + 1]
        log_p = np.asarray(jax.nn.log_softmax(apply({"params": state.params}, window[None, :-1])[0]))
        losses[start + 1 : start + len(window)] = [-log_p[i, target] for i, target in enumerate(window[1:])]
    measured = validation.evaluator(run)(state, True)
    first, last = losses[1:second].mean(), losses[second:].mean()
    # float32 sums of up to a few thousand losses
    assert measured["val_loss"] == pytest.approx(losses[1:].mean(), rel=1e-5)
    assert measured["val_loss/text.txt"] == pytest.approx(first, rel=1e-5)
    assert measured["val_loss/other.txt"] == pytest.approx(last, rel=1e-5)
    assert measured["val_loss_weighted"] == pytest.approx(0.9 * first + 0.1 * last, rel=1e-5)
    plain = build.build(dataclasses.replace(own, data=data), preparation.prepare(data))
    object.__setattr__(plain.samples, "by_source", lambda number, rows: {})
    assert validation.evaluator(plain)(state, True)["val_loss"] == measured["val_loss"]  # the same bits


def test_a_source_that_is_never_trained_on_stops_a_start(own: Config, tmp_path: Path) -> None:
    sources = (SourceConfig(files=own.data.files), SourceConfig(weight=0.0))
    config = dataclasses.replace(own, data=dataclasses.replace(own.data, files=(), mixture=sources))
    with pytest.raises(UserError, match=r"data\.mixture\[1\]\.weight = 0 \(docstrings\)"):
        launch.start(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"data\.mixture\[1\]\.weight = 0"):
        launch.show_plan(config)
    assert not (tmp_path / "run").exists()
