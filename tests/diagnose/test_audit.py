"""An audit finds whatever was changed in a run, finds nothing in a good one, and says what happened in plain words."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lmjax.config import Config, UserError, presets
from lmjax.config.codec import apply_overrides, from_json, to_json
from lmjax.diagnose import audit
from lmjax.diagnose.retrace import Findings
from lmjax.journal.history import Applied, History, Sampled, fold
from lmjax.run import launch, resume
from lmjax.system import faults

Record = dict[str, Any]

# The data at these positions are bad for good: two batches in a row make a spike that comes again when they are
# replayed, and a lone one later is only left out.
SPIKE = "data=random@792-840! data=random@1200!"


@dataclass
class Report:
    """What an audit said."""

    status: int
    text: str

    @property
    def wrong(self) -> list[str]:
        return [line.removeprefix("WRONG  ") for line in self.text.splitlines() if line.startswith("WRONG")]


@pytest.fixture
def audited(capsys: pytest.CaptureFixture[str]) -> Callable[..., Report]:
    def call(run_dir: Path, **options: Any) -> Report:
        capsys.readouterr()
        return Report(audit.show(run_dir, **options), capsys.readouterr().out)

    return call


@pytest.fixture(scope="module")
def config(corpus: Path) -> Config:
    """180 updates of 8 sequences, long enough for the guard to be armed."""
    overrides = [
        f"data.files=[{corpus}]", f"data.cache={corpus.parent / 'cache'}", "data.tokenizer.kind=bytes",
        "data.validation_fraction=0.1", "model.layers=2", "model.width=16", "model.heads=2", "model.context=16",
        "schedule.peak=1e-2", "schedule.warmup=0.1", "batch.tokens=((0,128),)", "batch.microbatch=8",
        "train.updates=180", "train.evaluate_batches=2", "train.sample_tokens=0", "train.baselines=false",
        "checkpoint.every=20",
    ]  # fmt: skip
    return apply_overrides(Config(name="audited"), overrides)


@pytest.fixture(scope="module")
def clean(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "run"
    assert launch.start(config, folder) == 0
    return folder


@pytest.fixture(scope="module")
def spiky(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spiky") / "run"
    with faults.armed(SPIKE):
        assert launch.start(config, folder) == 0
    return folder


def copy(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


def read(run_dir: Path) -> list[Record]:
    return [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().splitlines()]


def edit(run_dir: Path, change: Callable[[list[Record]], Any]) -> None:
    """Changes the records of a journal and makes its hash chain whole again, as a forger would."""
    records = read(run_dir)
    change(records)
    previous, lines = "0" * 64, []
    for record in records:
        line = json.dumps(record | {"previous": previous}, separators=(",", ":")) + "\n"
        previous = hashlib.sha256(line.encode()).hexdigest()
        lines.append(line)
    (run_dir / "journal.jsonl").write_text("".join(lines))


def find(records: list[Record], event: str, last: bool = False, **fields: Any) -> Record:
    found = [r for r in records if r["event"] == event and all(r.get(name) == v for name, v in fields.items())]
    return found[-1 if last else 0]


def applied(records: list[Record], update: int) -> tuple[Record, int]:
    """Where the journal tells of an update, on the last path that has it."""
    for record in reversed(records):
        told = record.get("applied")
        if told and told["first"] <= update < told["first"] + len(told["cursors"]):
            return told, update - told["first"]
    raise AssertionError(update)


def contents(run_dir: Path) -> dict[str, str]:
    files = sorted(path for path in run_dir.rglob("*") if path.is_file())
    return {str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- A run that is in order -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_clean_run_is_in_order_and_not_touched(clean: Path, audited: Callable[..., Report]) -> None:
    before = contents(clean)
    report = audited(clean)
    assert (report.status, report.wrong) == (0, [])
    folders = len(list((clean / "checkpoints").iterdir()))
    assert report.text.splitlines()[-1] == (
        f"in order: 180 updates, {len(read(clean))} records, {folders} checkpoints checked"
    )
    assert "180 of 180 updates, 180 batches tried" in report.text
    assert "left out in all: 0 samples" in report.text
    assert contents(clean) == before


@pytest.mark.slow
def test_a_spike_is_told_in_words(spiky: Path, audited: Callable[..., Report]) -> None:
    report = audited(spiky)
    assert (report.status, report.wrong) == (0, [])
    records = read(spiky)
    replay, skip = (find(records, "rollback", kind=kind) for kind in ("replay", "skip"))
    left_out = fold(records).skipped()
    begun = f"begun at update {replay['onset']['update'] + 1}; back to update {replay['target']}"
    start, stop = skip["positions"]
    order = [
        "started with seed 0",
        "2 suspect batches for update 100, not applied (reason: loss;",
        f"spike: 2 hard suspects in a row, {begun}",
        "to replay the same data",
        "reproduced: the spike recurred with the same data",
        f"to skip positions {start} to {stop}",
        f"{stop - start} samples are left out ({(stop - start) / 1440:.2%} of the run); checkpoints 80",
        "a batch for update",
        "finished",
        f"left out in all: {left_out} samples ({left_out / 1440:.2%} of the run)",
        "in order: 180 updates",
    ]
    places = [report.text.find(words) for words in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)


@pytest.mark.slow
def test_a_transient_spike_a_lone_suspect_and_a_stop_are_told(
    config: Config, tmp_path: Path, audited: Callable[..., Report]
) -> None:
    with faults.armed("learning_rate=times:100@100 batch=nan@150 update=SIGTERM@160"):
        assert launch.start(config, tmp_path / "run") == 0
    report = audited(tmp_path / "run")
    assert (report.status, report.wrong) == (0, [])
    assert "not reproduced: the spike did not recur with the same data" in report.text
    assert "a batch for update 150 was suspect and not applied (reason: not finite; highest loss nan)" in report.text
    assert "stopped by SIGTERM, the state saved" in report.text
    assert "killed" not in report.text


@pytest.mark.slow
def test_a_run_that_gave_up_is_in_order(config: Config, tmp_path: Path, audited: Callable[..., Report]) -> None:
    folder = tmp_path / "run"
    with faults.armed("data=random@600-1600!"):
        assert launch.start(config, folder) == 3
    report = audited(folder)
    assert (report.status, report.wrong) == (0, [])
    why = read(folder)[-1]["why"]
    assert f"gave up: {read(folder)[-1]['rule']}: {why}" in report.text
    edit(folder, lambda records: records[-1].update(why="tired"))
    assert any(f"given up: 'tired'; by the guard '{why}'" in line for line in audited(folder).wrong)


@pytest.mark.slow
def test_a_divergence_is_derived_again(config: Config, tmp_path: Path, audited: Callable[..., Report]) -> None:
    # No batch is suspect, so that only the median of the last losses tells.
    blind = ["guard.loss_z=1e6", "guard.grad_z=1e6", "guard.hard_z=1e6", "guard.divergence_window=8"]
    folder = tmp_path / "run"
    with faults.armed("learning_rate=times:100@100-103"):
        assert (
            launch.start(
                apply_overrides(config, [*blind, "guard.divergence_mads=1", "guard.divergence_share=0.5"]), folder
            )
            == 0
        )
    records = read(folder)
    assert find(records, "rollback")["rule"] == "divergence"
    report = audited(folder)
    assert (report.status, report.wrong) == (0, [])
    assert "spike: divergence" in report.text


@pytest.mark.slow
def test_a_killed_run_is_in_order_and_its_torn_line_is_reported_not_repaired(
    clean: Path, tmp_path: Path, audited: Callable[..., Report]
) -> None:
    folder = copy(clean, tmp_path)
    edit(folder, lambda records: records.pop())
    with open(folder / "journal.jsonl", "a") as file:
        file.write('{"wall_step":180,"upd')
    before = contents(folder)
    report = audited(folder)
    assert (report.status, report.wrong) == (0, [])
    assert "the last line of the journal is incomplete" in report.text
    assert "the run is active or was killed" in report.text
    assert contents(folder) == before


@pytest.mark.slow
def test_settings_changed_on_the_way_are_undone_for_what_came_before(
    config: Config, tmp_path: Path, audited: Callable[..., Report]
) -> None:
    folder = tmp_path / "run"
    assert launch.start(apply_overrides(config, ["train.updates=40"]), folder) == 0
    changes = ["train.updates=60", "data.exclude=((0,500),)", "schedule.shape=linear", "checkpoint.keep_best=false"]
    allowed = [change.partition("=")[0] for change in changes]
    saved = from_json((folder / "config.json").read_text(), Config)
    assert resume.resume(apply_overrides(saved, changes), folder, allow=allowed) == 0
    report = audited(folder, replay=(50, 60))
    assert (report.status, report.wrong) == (0, [])
    assert "schedule.shape: 'cosine' -> 'linear'" in report.text
    assert "settings changed during the run" in report.text
    with pytest.raises(UserError, match="updates 41 to 60 can be replayed"):  # what came before had other settings
        audited(folder, replay=(30, 60))


# ---- What was changed is found --------------------------------------------------------------------------------------


def change_applied(update: int, column: str, change: Callable[[Any], Any]) -> Callable[[list[Record]], None]:
    """Forges a loss or cursor of an applied update."""

    def forge(records: list[Record]) -> None:
        told, i = applied(records, update)
        told[column][i] = change(told[column][i])

    return forge


def put(event: str, fields: Record, *, at: int = 0) -> Callable[[list[Record]], None]:
    """Forges fields of the first (at=0), second ... or last (at=-1) record of an event."""
    return lambda records: [record for record in records if record["event"] == event][at].update(fields)


def move_samples(event: str) -> Callable[[list[Record]], None]:
    """Forges which samples a record says it left out: the first range begins one sample later."""

    def forge(records: list[Record]) -> None:
        find(records, event, last=True)["samples"][0][0] += 1

    return forge


def lose_a_save(records: list[Record]) -> None:
    records.remove(find(records, "boundary", last=True, reason="saving"))


def lose_a_field(records: list[Record]) -> None:
    del find(records, "rollback")["target"]


a_little_more = change_applied(170, "losses", lambda loss: (float.fromhex(loss) * (1 + 2**-20)).hex())
far_too_much = change_applied(170, "losses", lambda loss: (1000.0).hex())
one_further = change_applied(130, "cursors", lambda cursor: cursor + 1)
harmless = {"loss": (2.5).hex(), "grad_norm": (0.5).hex()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forge", "finding"),
    [
        (a_little_more, "metrics: update 170: the loss is"),
        (far_too_much, "guard: update 170: the run applied a batch that is suspect: loss 1000"),
        (one_further, "data plan: update 130: its batch ends at cursor"),
        (move_samples("skip"), "data plan: the samples skipped are not those at positions"),
        (move_samples("suspect"), "data plan: update 133: the suspect batch did not hold the samples in the journal"),
        (put("skip", {"positions": [728, 880]}), "rollback: positions 728 to 880 are skipped, but no rollback decided"),
        (put("rollback", {"positions": [728, 880]}, at=1), "rollback: update 99: positions of the rollback is"),
        (
            put("rollback", {"target": 80, "target_cursor": 640}),
            "rollback: update 99: the run went back to update 80, but the newest healthy checkpoint is 60",
        ),
        (put("rollback", {"onset": {"update": 98, "cursor": 784}}), "rollback: update 99: onset of the rollback is"),
        (put("rollback", {"attempt": 2}, at=1), "rollback: update 99: attempt of the rollback is 2, by the guard 1"),
        (
            put("rollback", {"rule": "3 suspects in a row"}),
            "fired in the journal, but by the guard it is '2 hard suspects",
        ),
        (
            put("suspect", {"hard": False}, at=-1),
            "is ('loss', False) (reason, hard) in the journal, not ('loss', True)",
        ),
        (
            put("suspect", {"reason": "gradient norm"}, at=-1),
            "is ('gradient norm', True) (reason, hard) in the journal, not",
        ),
        (put("suspect", {"z_loss": (1e3).hex()}, at=-1), "z_loss of the suspect is 1000, it must be"),
        (put("suspect", harmless, at=-1), "guard: update 133: the run left out a batch that is not suspect"),
        (put("suspect", {"batch": 16}, at=-1), "data plan: update 133: the suspect batch has 16 sequences"),
        (
            put("end", {"digest": "0" * 64}),
            "journal: the digest of the end is not that of the checkpoint of update 180",
        ),
        (put("end", {"wall_step": 1}), "journal: the wall step goes back"),
        (put("start", {"seed": 1}), "inputs: seed was 1 when the run began, and is 0"),
        (put("start", {"data_sha256": "0" * 64}), "inputs: data_sha256 was 000"),
        (lose_a_save, "journal: a checkpoint of update 180 is recorded as complete, but was never begun"),
        (
            lose_a_field,
            "rollback: target is missing: the journal was edited; the audit covers only the records before it",
        ),
    ],
)
def test_a_forged_journal_is_found_out(
    spiky: Path, tmp_path: Path, audited: Callable[..., Report], forge: Callable[[list[Record]], None], finding: str
) -> None:
    folder = copy(spiky, tmp_path)
    edit(folder, forge)
    report = audited(folder)
    assert report.status == 1
    assert any(finding in line for line in report.wrong), report.wrong
    assert report.text.splitlines()[-1].startswith("not in order")


@pytest.mark.slow
def test_a_broken_chain_is_found_and_what_stands_before_is_told(
    spiky: Path, tmp_path: Path, audited: Callable[..., Report]
) -> None:
    folder = copy(spiky, tmp_path)
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if '"event":"skip"' in line)
    lines[at] = lines[at].replace('"update"', '"update" ')
    (folder / "journal.jsonl").write_text("".join(lines))
    report = audited(folder)
    assert report.status == 1
    assert len(report.wrong) == 1
    assert f"journal.jsonl:{at + 2}: the hash chain is broken" in report.wrong[0]
    assert "reproduced: the spike recurred" in report.text
    assert "finished" not in report.text


@pytest.mark.slow
def test_the_guard_of_the_configuration_must_be_that_of_the_journal(
    spiky: Path, config: Config, tmp_path: Path, audited: Callable[..., Report]
) -> None:
    folder = copy(spiky, tmp_path)
    saved = from_json((folder / "config.json").read_text(), Config)
    calm = apply_overrides(saved, ["guard.hard_in_a_row=9", "guard.in_a_row=9", "guard.several=9", "guard.among=9"])
    (folder / "config.json").write_text(to_json(calm))
    assert any("by the guard it is 'nothing'" in line for line in audited(folder).wrong)
    (folder / "config.json").write_text(
        to_json(apply_overrides(saved, ["guard.loss_z=1e6", "guard.grad_z=1e6", "guard.hard_z=1e6"]))
    )
    assert any("left out a batch that is not suspect" in line for line in audited(folder).wrong)

    skipped = tmp_path / "skipped"
    with faults.armed("data=random@792-808!"):
        assert launch.start(apply_overrides(config, ["guard.policy=skip", "train.updates=120"]), skipped) == 0
    assert audited(skipped).status == 0
    text = (skipped / "config.json").read_text()
    (skipped / "config.json").write_text(text.replace('"policy": "skip"', '"policy": "rollback"'))
    assert any("2 hard suspects in a row, and the run did not go back" in line for line in audited(skipped).wrong)


# ---- Checkpoints ----------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """Flips one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_damaged_and_foreign_checkpoints_are_found(
    spiky: Path, clean: Path, tmp_path: Path, audited: Callable[..., Report]
) -> None:
    folder = copy(spiky, tmp_path)
    root = folder / "checkpoints"
    names = {path.name for path in (root / "quarantine").iterdir()}
    assert names == {"80", "80.1"}  # of the replay's path, and of the one before
    largest = max((root / "180" / "state").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    flip(largest)
    flip(root / "quarantine" / "80.1" / "meta.json")
    shutil.rmtree(root / "160")
    shutil.copytree(clean / "checkpoints" / "160", root / "160")
    report = audited(folder)
    assert report.status == 1
    assert sorted(report.wrong) == sorted(
        [
            f"checkpoint: checkpoints/180: {largest.relative_to(root / '180')} does not match its sha256",
            "checkpoint: checkpoints/160: it differs from the checkpoint in the journal",
            "checkpoint: checkpoints/quarantine/80.1: meta.json does not match its sha256",
        ]
    )
    shutil.rmtree(root / "180")
    assert "checkpoint: checkpoints/180, the newest checkpoint in the journal, is missing" in audited(folder).wrong


@pytest.mark.slow
def test_a_run_that_fell_back_is_in_order(clean: Path, tmp_path: Path, audited: Callable[..., Report]) -> None:
    folder = copy(clean, tmp_path)
    (folder / "summary.json").unlink()
    flip(folder / "checkpoints" / "180" / "meta.json")
    assert resume.resume(from_json((folder / "config.json").read_text(), Config), folder) == 0
    report = audited(folder)
    assert (report.status, report.wrong) == (0, [])
    assert "fell back to this checkpoint: checkpoint 180: meta.json does not match its sha256" in report.text
    assert "killed" not in report.text


# ---- Computed again -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_replay_meets_the_same_bits_and_the_same_suspect(spiky: Path, audited: Callable[..., Report]) -> None:
    before = contents(spiky)
    with faults.armed(SPIKE):
        report = audited(spiky, replay=(95, 180))
    assert (report.status, report.wrong) == (0, [])
    assert "updates 81 to 180 from checkpoint 80: as in the journal, bit for bit, 1 suspects met again" in report.text
    assert contents(spiky) == before
    report = audited(spiky, replay=(95, 180))  # here the data are good, so the suspect is none
    assert report.status == 1
    assert report.wrong == ["replay: update 133: the batch up to cursor 1208 is not suspect, it was suspect"]


@pytest.mark.slow
def test_a_replay_notices_a_changed_loss(clean: Path, tmp_path: Path, audited: Callable[..., Report]) -> None:
    folder = copy(clean, tmp_path)
    edit(folder, a_little_more)
    (folder / "metrics.jsonl").unlink()  # or the audit would know without
    assert audited(folder, replay=(161, 169)).status == 0
    report = audited(folder, replay=(161, 175))
    assert report.status == 1
    assert len(report.wrong) == 1
    assert report.wrong[0].startswith("replay: update 170: the loss is")


def test_answers_that_a_journal_lacks_or_has_otherwise_are_found(tmp_path: Path) -> None:
    values = {"update": 1, "loss": -0.5, "grad_norm": 1.0, "reward": 0.5, "kl": 0.0, "tokens_sha256": "ab"}
    told = Applied(8, (-0.5).hex(), (1.0).hex(), (), Sampled((0.5).hex(), (0.0).hex(), "ab"))
    assert audit._difference(values, told, cursor=8, tolerance=0.0) == ""
    assert "its answers" in audit._difference(values, told._replace(sampled=None), cursor=8, tolerance=0.0)
    assert told.sampled is not None
    other = told._replace(sampled=told.sampled._replace(reward=(9.0).hex()), loss=(9.0).hex())
    assert "the reward depends on more than the answer" in audit._difference(values, other, cursor=8, tolerance=0.0)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(values) + "\n")
    for kl, wrong in ((0.0).hex(), []), ("0x1.8p+9999", ["metrics: update 1: the kl is 0.0, and 0x1.8p+9999 in the"]):
        findings, sampled = Findings(), Sampled((0.5).hex(), kl, "ab")
        audit._check_metrics(tmp_path / "metrics.jsonl", History(path=[told._replace(sampled=sampled)]), findings)
        assert findings.lines() == [f"{line} journal" for line in wrong]


@pytest.mark.slow
def test_a_replay_notices_a_weight_that_flipped_without_a_sign(
    config: Config, tmp_path: Path, audited: Callable[..., Report]
) -> None:
    folder = tmp_path / "run"
    with faults.armed("params=times:1.01@30"):
        assert launch.start(apply_overrides(config, ["train.updates=40"]), folder) == 0
    assert audited(folder).status == 0
    report = audited(folder, replay=(21, 40))
    assert report.status == 1
    assert report.wrong[0].startswith("replay: update 30: the ")  # loss or gradient norm


@pytest.mark.slow
def test_a_replay_on_another_machine_is_compared_with_a_tolerance(
    clean: Path, tmp_path: Path, audited: Callable[..., Report]
) -> None:
    folder = copy(clean, tmp_path)
    edit(folder, lambda records: records[0].update(jax="0.0.1"))
    report = audited(folder, replay=(161, 170))
    assert report.status == 0
    assert "another machine" in report.text
    assert "to within 1e-05" in report.text


@pytest.mark.slow
def test_what_cannot_be_done_is_said_in_one_line(clean: Path, tmp_path: Path, audited: Callable[..., Report]) -> None:
    for updates in ((0, 5), (1, 181), (9, 8)):
        with pytest.raises(UserError, match="updates 1 to 180 can be replayed"):
            audited(clean, replay=updates)
    with pytest.raises(UserError, match="not a run"):
        audited(tmp_path)
    with pytest.raises(UserError, match=r"ends in \.json"):
        audited(clean, config_file=tmp_path / "fresh.py")
    folder = copy(clean, tmp_path)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="no intact checkpoint"):
        audited(folder, replay=(1, 2))
    (folder / "journal.jsonl").unlink()
    with pytest.raises(UserError, match="has no journal"):
        audited(folder)


# ---- A fresh run ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_fresh_run_of_a_spiky_one_ends_with_the_same_bits(
    spiky: Path, tmp_path: Path, audited: Callable[..., Report]
) -> None:
    path = tmp_path / "fresh.json"
    report = audited(spiky, config_file=path)
    assert f"python train.py {path} --run-dir {spiky}-fresh" in report.text
    assert launch.start(presets.load(str(path)), tmp_path / "fresh") == 0  # no fault is armed: bad data are not read
    assert read(tmp_path / "fresh")[-1]["digest"] == read(spiky)[-1]["digest"]
    assert audited(tmp_path / "fresh").status == 0
