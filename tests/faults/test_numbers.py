"""Numbers that go wrong: what is skipped, what is rolled back, and that nothing of it remains in the bits."""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmjax.config import Config, SourceConfig
from lmjax.config.codec import apply_overrides
from lmjax.config.errors import RunError
from lmjax.data.store import preparation
from lmjax.diagnose import audit
from lmjax.display.console import Console
from lmjax.journal import journal
from lmjax.journal.history import History
from lmjax.journal.journal import Record
from lmjax.pytrees import all_finite, digest
from lmjax.run import build, feed, session
from lmjax.training import checkpoint
from lmjax.training.checkpoint import NotFinite
from lmjax.training.state import abstract_state
from tests.faults import runs
from tests.faults.runs import cases

POISON = "data=random@800-823!"  # three batches, from update 101 on, for good


@pytest.fixture(scope="module")
def clean(guarded: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a fault."""
    folder = tmp_path_factory.mktemp("clean") / "run"
    assert runs.start(guarded, folder) == 0
    assert not runs.records(folder, "suspect")
    return folder


def parts(config: Config) -> build.Run:
    return build.build(config, preparation.prepare(config.data, report=Console().report))


def all_checkpoints(folder: Path) -> list[Path]:
    root = folder / "checkpoints"
    return [*checkpoint.folders(root), *(path for path in root.glob("quarantine/*"))]


def committed_only_finite_states(folder: Path, config: Config) -> None:
    """I7, for all that there is, set aside or not."""
    abstract = abstract_state(build.init(parts(config)))
    found = all_checkpoints(folder)
    assert len(found) >= 2
    for path in found:
        assert all_finite(checkpoint.restore(checkpoint.read(path), abstract)), path


# ---- Not finite -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("fault", cases("data=nan@800", rest=["data=inf@800", "batch=nan@1", "batch=nan@200"]))
def test_one_batch_that_is_not_finite_is_skipped(guarded: Config, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "run"
    assert runs.start(guarded, folder, fault) == 0
    (suspect,) = runs.records(folder, "suspect")
    assert (suspect["reason"], suspect["hard"], suspect["batch"]) == ("not finite", True, 8)
    assert not runs.records(folder, "rollback")
    assert runs.records(folder)[-1]["cursor"] == 1608
    fresh = runs.without(folder, guarded, tmp_path / "fresh")
    assert runs.digest(fresh) == runs.digest(folder)
    assert runs.losses(fresh) == runs.losses(folder)
    committed_only_finite_states(folder, guarded)


@pytest.mark.slow
@pytest.mark.parametrize("action", cases("nan", rest=["inf"]))
def test_two_such_batches_in_a_row_are_rolled_back(guarded: Config, tmp_path: Path, action: str) -> None:
    folder = tmp_path / "run"
    assert runs.start(guarded, folder, f"data={action}@800-815!") == 0
    replay, skip = runs.records(folder, "rollback")
    assert replay["rule"] == skip["rule"] == "2 hard suspects in a row"
    assert (replay["kind"], skip["kind"], skip["reproduced"]) == ("replay", "skip", True)
    assert runs.digest(runs.without(folder, guarded, tmp_path / "fresh")) == runs.digest(folder)
    committed_only_finite_states(folder, guarded)


@pytest.mark.parametrize(
    ("fault", "rule", "suspects"),
    cases(
        pytest.param("params=nan@100", "parameters not finite", 1, marks=pytest.mark.slow),
        pytest.param("opt_state=nan@100", "2 hard suspects in a row", 2, marks=pytest.mark.slow),
        pytest.param("learning_rate=times:100@100-104", "", 0, marks=pytest.mark.slow),
        rest=[
            ("params=inf@100", "parameters not finite", 1),
            ("params=nan@101", "parameters not finite", 1),
            ("params=nan@200", "parameters not finite", 1),
            ("opt_state=inf@100", "parameters not finite", 0),  # a second moment: no update shows it, but the next save
            ("opt_state=nan@101", "2 hard suspects in a row", 2),
            ("params=times:1e30@100", "2 hard suspects in a row", 2),  # a flipped bit of an exponent
            ("params=times:-1e30@130", "2 hard suspects in a row", 2),
            ("learning_rate=nan@100", "", 0),
            ("learning_rate=times:100@130-131 params=nan@180", "", 0),
        ],
    ),
)
def test_a_passing_fault_leaves_no_trace(
    guarded: Config, clean: Path, tmp_path: Path, fault: str, rule: str, suspects: int
) -> None:
    """I2: the data are replayed, the spike does not come again, and the end has the bits of a run that met no fault."""
    folder = tmp_path / "run"
    assert runs.start(guarded, folder, fault) == 0
    rollbacks = runs.records(folder, "rollback")
    if fault != "learning_rate=nan@100":  # one lone batch, whose data are then left out
        assert {record["kind"] for record in rollbacks} == {"replay"}
        assert runs.digest(folder) == runs.digest(clean)
        assert runs.losses(folder) == runs.losses(clean)
    if rule:
        assert [record["rule"] for record in rollbacks] == [rule]
        assert len(runs.records(folder, "suspect")) == suspects
    committed_only_finite_states(folder, guarded)
    assert audit.show(folder) == 0  # I4: what was decided is what the journal's values lead to


@pytest.mark.slow
def test_without_the_guard_a_state_that_is_not_finite_is_never_saved(guarded: Config, tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match="the state after update 200 is not finite: it is not saved"):
        runs.start(guarded, tmp_path / "off", "params=nan@95", "guard.policy=off")
    assert runs.updates(tmp_path / "off")[-1] == 80
    committed_only_finite_states(tmp_path / "off", guarded)
    assert runs.start(guarded, tmp_path / "skip", "params=nan@95", "guard.policy=skip") == session.GAVE_UP
    assert len(runs.records(tmp_path / "skip", "suspect")) == guarded.guard.rejected_in_a_row
    assert runs.updates(tmp_path / "skip")[-1] == 80
    committed_only_finite_states(tmp_path / "skip", guarded)


@pytest.mark.slow
def test_the_policy_changes_no_bit_while_nothing_is_wrong(guarded: Config, clean: Path, tmp_path: Path) -> None:
    """I6"""
    for policy in ("off", "skip"):
        assert runs.start(guarded, tmp_path / policy, "", f"guard.policy={policy}") == 0
        assert runs.digest(tmp_path / policy) == runs.digest(clean)


# ---- Poisoned data --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "changes"),
    cases(
        (POISON, ()),
        ("data=random@1200-1223!", ("batch.tokens=((0,128),(2560,256))",)),
        ("data=random@800-823!", ("mixture",)),
        rest=[
            ("data=random@1200-1223!", ("batch.tokens=((0,128),(5120,256))", "batch.growth=linear")),
            ("data=random@1400-1423!", ()),
            ("data=random@1600-1647!", ("model.context=8",)),
            ("data=random@1200-1223!", ("model.context=64", "batch.tokens=((0,512),)")),  # the fifth epoch
            ("data=random@1200-1223!", ("mixture", "model.context=64", "batch.tokens=((0,512),)")),
            (POISON, ("data.packed=true",)),
            (POISON, ("data.shuffle=false",)),
            (POISON, ("optimizer.ema=0.9",)),
            (POISON, ("model.dropout=0.1",)),
            (POISON, ("guard.attribute=false",)),
            (POISON, ("checkpoint.keep=1", "checkpoint.every=10")),
            (POISON, ("seed=1",)),
            ("data=random@800-823! data=random@1300-1323!", ()),
            ("data=nan@640 data=random@800-823! data=nan@960 params=nan@150", ()),
        ],
    ),
)
def test_poisoned_data_are_skipped_as_if_they_had_never_been_there(
    guarded: Config, corpus: Path, tmp_path: Path, fault: str, changes: tuple[str, ...]
) -> None:
    """I1, bit for bit: parameters, optimizer, window, cursors, losses; and I4."""
    config = guarded
    if "mixture" in changes:
        other = tmp_path / "other.txt"
        other.write_text(corpus.read_text()[::-1])
        sources = (SourceConfig(files=(str(corpus),), weight=2.0), SourceConfig(files=(str(other),)))
        data = replace(guarded.data, files=(), mixture=sources)
        config = replace(guarded, data=data)
    config = apply_overrides(config, [change for change in changes if change != "mixture"])
    folder = tmp_path / "run"
    assert runs.start(config, folder, fault) == 0
    assert runs.records(folder, "skip")
    fresh = runs.without(folder, config, tmp_path / "fresh")
    assert runs.digest(fresh) == runs.digest(folder)
    assert runs.losses(fresh) == runs.losses(folder)
    assert runs.records(fresh)[-1]["cursor"] == runs.records(folder)[-1]["cursor"]
    assert not runs.records(fresh, "suspect")
    committed_only_finite_states(folder, config)
    assert audit.show(folder) == 0


# ---- I5: which samples ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 6)), min_size=1, max_size=4),
    st.lists(
        st.tuples(st.sampled_from(["resume", "skip", "go on"]), st.integers(1, 60), st.integers(0, 99)), max_size=12
    ),
)
def test_every_sample_but_the_skipped_is_used_once_an_epoch(
    guarded: Config, ramp: list[tuple[int, int]], events: list[tuple[str, int, int]]
) -> None:
    """Under random batch sizes, resumes from an earlier point, and rollbacks that skip; counted sample by sample."""
    starts = itertools.accumulate((16 * 8 * n for n, _ in ramp), initial=0)
    plan = json.dumps([[start, 16 * size] for start, (_, size) in zip(starts, ramp, strict=False)])
    config = apply_overrides(guarded, [f"batch.tokens={plan}", "batch.microbatch=1", "train.updates=700"])
    made = parts(config)
    path: list[tuple[int, list[int]]] = []  # cursor behind, and ids, of each update
    past = History()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(made.samples), "arrays", lambda _, ids: {"ids": ids})
        for event, length, back in [*events, ("go on", 700, 0)]:
            cursor = path[-1][0] if path else 0
            order = made.order.excluding(past.exclude)
            for update, behind, rows in itertools.islice(
                feed.host_batches(made, len(path), cursor, order=order), length
            ):
                assert update == len(path)
                path.append((behind, rows["ids"].tolist()))
            if event == "go on":
                continue
            end = path[-1][0]
            del path[max(0, len(path) - back) :]
            if event == "skip":
                begin = path[-1][0] if path else 0
                past.exclude += feed.sample_ranges(made, (begin + end) // 2, end + back, past)
    used = Counter(sample for _, ids in path for sample in ids)
    skipped = {sample for start, stop in past.exclude for sample in range(start, stop)}
    assert set(used.values()) == {1}
    assert not skipped & set(used)
    (windows,) = made.order.windows
    epochs, rest = divmod(path[-1][0], windows)
    assert {*used} | skipped >= {*range(epochs * windows)}  # whole epochs: an id is epoch x windows + window
    assert len([sample for sample in {*used} | skipped if sample >= epochs * windows]) >= rest
    assert [len(ids) for _, ids in path] == made.plan.sequences.tolist()


# ---- I10: what is resumed is what was saved -------------------------------------------------------------------------


@pytest.fixture
def cut(short: Config, tmp_path: Path) -> Path:
    """A run whose newest checkpoint is that of update 40, while its journal knows what came next."""
    folder = tmp_path / "run"
    assert runs.start(short, folder) == 0
    for name in ("50", "60"):
        shutil.rmtree(folder / "checkpoints" / name)
    (folder / "summary.json").unlink()
    return folder


def rewrite(folder: Path, change: Callable[[Record], Any]) -> None:
    """Changes every record of the journal, and makes its chain whole again."""
    path, lines, previous = folder / "journal.jsonl", [], "0" * 64
    for record in journal.read(path):
        change(record)
        record |= {"previous": previous}
        lines.append(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        previous = journal._hash(lines[-1])
    path.write_bytes(b"".join(lines))


def another_state(folder: Path, config: Config) -> None:
    """Exchanges checkpoint 40 so that manifest, digest and journal agree with what it then holds."""
    path = folder / "checkpoints" / "40"
    found = checkpoint.read(path)
    state = checkpoint.restore(found, abstract_state(build.init(parts(config))))
    state = state.replace(params=jax.tree.map(lambda leaf: leaf * jnp.float32(1.01), state.params))
    meta = found.meta | {"digest": digest(state)}
    shutil.rmtree(path)
    saves = checkpoint.Checkpoints(path.parent, config=replace(config.checkpoint, keep=100))
    saves.save(state, meta, protect=runs.updates(folder))
    saves.close()
    assert saves.failure() is None
    rewrite(
        folder, lambda record: "digest" in record and record["update"] == 40 and record.update(digest=meta["digest"])
    )


def another_loss(folder: Path, config: Config) -> None:
    """Changes the last bit of the journal's loss of update 41."""

    def change(record: Record) -> None:
        applied = record.get("applied", {"first": 99, "losses": []})
        place = 41 - applied["first"]
        if 0 <= place < len(applied["losses"]):
            loss = jnp.float32(float.fromhex(applied["losses"][place]))
            applied["losses"][place] = float(jnp.nextafter(loss, jnp.float32(9))).hex()

    rewrite(folder, change)


@pytest.mark.slow
@pytest.mark.parametrize("tamper", [another_state, another_loss])
def test_a_resume_that_does_not_compute_what_it_did_before_is_refused(
    short: Config, cut: Path, tamper: Callable[[Path, Config], None]
) -> None:
    shutil.copytree(cut, cut.with_name("honest"))
    assert runs.resume(cut.with_name("honest")) == 0
    tamper(cut, short)
    for _ in range(2):  # it does not get better by trying again
        with pytest.raises(RunError) as caught:
            runs.resume(cut)
        said = str(caught.value)
        assert said.startswith("update 41: the first loss after the resume is ")
        assert said.endswith("to continue nevertheless: guard.canary=false --allow-change guard.canary")
        assert "\n" not in said
        assert runs.updates(cut)[-1] == 40
    assert runs.resume(cut, "", "guard.canary=false") == 0
    same = runs.digest(cut) == runs.digest(cut.with_name("honest"))
    assert same == (tamper is another_loss)
    assert runs.records(cut, "resume")[-1]["changed"] == ["guard.canary: True -> False"]
