"""The ladder: equal compute, the levels that its runs and the n-grams reached, going on after a stop, BERT beside."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import log, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax.config import (
    BatchConfig,
    Config,
    NNLMConfig,
    TokenizerConfig,
    UserError,
    presets,
)
from lmjax.data.store.preparation import prepare
from lmjax.data.store.store import Store
from lmjax.models import ngram, registry
from lmjax.run import build, launch, resume
from lmjax.studies import ladder, ladder_report
from lmjax.system import faults

COMPUTE = 2e7  # some ten updates of the rungs below


@pytest.fixture
def rungs(tiny: Config) -> dict[str, Config]:
    """Two small models, the second with a batch that grows; the ladder knows no difference between families."""
    tiny = replace(tiny, train=replace(tiny.train, sample_tokens=1))
    fixed = BatchConfig(tokens=((0, 64),), microbatch=4)
    return {
        "nnlm": replace(tiny, batch=fixed, model=NNLMConfig(order=4, width=8, hidden=8, direct=False, context=16)),
        "short": replace(tiny, model=NNLMConfig(order=2, width=8, hidden=8, context=16)),
    }


@pytest.mark.slow
def test_a_ladder_stops_goes_on_and_ends_in_a_table(
    rungs: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = rungs["short"], tmp_path / "ladder"
    with faults.armed("update=SIGTERM@6!"):  # in the first rung: what comes behind is not begun
        assert ladder.climb(rungs, out, compute=COMPUTE, text=text) == 0
    assert "the ladder stops at nnlm" in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == ["nnlm"]

    assert ladder.climb(rungs, out, compute=COMPUTE, text=text) == 0
    found = json.loads((out / "ladder.json").read_text())
    levels = {row["rung"]: row for row in found["levels"]}
    assert set(levels) == {*rungs, "1-gram", "2-gram", "3-gram", "4-gram", "5-gram"}
    bits = [row["bits_per_byte"] for row in found["levels"]]
    assert bits == sorted(bits)
    events = [json.loads(line)["event"] for line in (out / "nnlm" / "journal.jsonl").read_text().splitlines()]
    assert events.count("start") == events.count("resume") == 1

    for name, config in rungs.items():
        summary = json.loads((out / name / "summary.json").read_text())
        per_token = registry.flops_per_token(replace(config.model, vocab_size=257))
        update = max(tokens for _, tokens in config.batch.tokens) * per_token
        assert 0 <= levels[name]["compute"] - COMPUTE < update
        assert levels[name]["compute"] == per_token * summary["tokens"]
        assert levels[name]["parameters"] == summary["parameters"]
        assert levels[name]["bits_per_byte"] == summary["val_bits_per_byte"]
    _check_counted(levels, prepare(text.data))

    table = (out / "ladder.md").read_text()
    assert table == ladder_report.markdown([ladder_report.Level(**row) for row in found["levels"]])
    for name in (*rungs, "5-gram", "bits per byte"):
        assert name in table
    assert (out / "ladder.png").read_bytes()[:4] == b"\x89PNG"
    shown = capsys.readouterr().out
    assert "The ladder" in shown
    assert "counting" in shown

    monkeypatch.setattr(launch, "start", None)  # a finished rung is not trained again
    monkeypatch.setattr(resume, "resume", None)
    assert ladder.climb(rungs, out, compute=COMPUTE) == 0
    with pytest.raises(UserError, match=r"nnlm has another configuration \(.*train.updates: .*--out DIR"):
        ladder.climb(rungs, out, compute=2 * COMPUTE)


def _check_counted(levels: dict[str, dict[str, Any]], store: Store) -> None:
    """The tokens of the split are bytes and the marks between documents, which have none."""
    train, held_out = store.sources[0].ids, np.asarray(store.validation.ids)
    settings = {"vocab_size": 257, "end_of_text": store.tokenizer.end_of_text}
    size = np.count_nonzero(held_out[1:] != store.tokenizer.end_of_text)
    for order in range(1, 6):
        row = levels[f"{order}-gram"]
        expected = ngram.kneser_ney(train, held_out, order=order, **settings) / log(2) / size
        assert row["bits_per_byte"] == pytest.approx(expected, rel=1e-9)  # the same sum in another order
        assert row["compute"] == 0
        assert row["tokens"] == len(train)
    kept = [levels[f"{order}-gram"]["parameters"] for order in range(1, 6)]
    assert kept == sorted(kept)
    assert kept[0] == len(np.unique(train)) + 1  # a share of each token, and the rest for all


@pytest.mark.parametrize("name", ladder.RUNGS)
def test_a_preset_is_as_long_as_the_default_compute_takes_it(name: str) -> None:
    config = presets.load(f"ladder_{name}")
    config = build.resolve(config, 257)
    assert ladder.spend(config, ladder.COMPUTE).train == replace(config.train, baselines=False)
    assert config.data == presets.load("ladder_gpt").data


def test_a_longer_rung_keeps_the_shares_of_its_run(rungs: dict[str, Config]) -> None:
    config = build.resolve(rungs["nnlm"], 257)  # evaluations and checkpoints every 4 of 12 updates
    long = ladder.spend(config, 2400 * 64 * registry.flops_per_token(replace(config.model, vocab_size=257)))
    assert (long.train.updates, long.train.evaluate_every, long.checkpoint.every) == (2400, 800, 800)
    assert not long.train.baselines
    assert replace(long, train=config.train, checkpoint=config.checkpoint) == config


# ---- The command ----------------------------------------------------------------------------------------------------


def test_changes_are_made_to_every_rung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(ladder, "climb", lambda rungs, out, **settings: seen.update(settings, rungs=rungs) or 0)
    assert ladder.show(["lstm", "gpt"], tmp_path, compute=1e9, changes=["seed=3", "model.width=64"], bert=None) == 0
    assert {name: (c.seed, c.model.width) for name, c in seen["rungs"].items()} == {"lstm": (3, 64), "gpt": (3, 64)}
    assert seen["text"] is None
    ladder.show(["ngram"], tmp_path, compute=1e9, changes=[], bert=None)
    assert not seen["rungs"]
    assert seen["text"].data == presets.load("ladder_gpt").data


@pytest.mark.parametrize(
    ("names", "changes", "compute", "message"),
    [
        (["lstn"], [], 1e9, "unknown rung 'lstn'; did you mean 'lstm'"),
        (["gpt"], ["train.updates=3"], 1e9, "the compute decides"),
        (["gpt"], ["model.width=0"], 1e9, "model.width = 0 must be"),
        (["gpt"], ["width=3"], 1e9, "unknown key"),
        (["gpt"], [], 0.0, "--compute 0 must be greater than 0"),
        ([], [], 1e9, "give --rungs"),
    ],
)
def test_a_mistake_is_answered_before_anything_is_trained(
    names: Sequence[str], changes: Sequence[str], compute: float, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        ladder.show(names, tmp_path / "out", compute=compute, changes=changes, bert=None)
    assert not (tmp_path / "out").exists()


def test_rungs_that_read_different_text_are_refused(rungs: dict[str, Config], tmp_path: Path) -> None:
    other = replace(rungs["short"], data=replace(rungs["short"].data, validation_fraction=0.2))
    with pytest.raises(UserError, match="must read the same text"):
        ladder.climb(rungs | {"short": other}, tmp_path / "out", compute=COMPUTE)


# ---- BERT -----------------------------------------------------------------------------------------------------------


def test_what_does_not_compare_stands_by_itself() -> None:
    levels = [ladder_report.Level(name, 1000, 3e13, 10_000, bits, 61.0) for name, bits in (("gpt", 1.5), ("rnn", 2.0))]
    apart = ladder_report.Level("BERT, pseudo-likelihood", 1000, 1e12, 10_000, 0.5, 61.0)
    table = ladder_report.markdown(levels, [apart])
    first, _, note, last = table.split("\n\n")
    assert "| gpt | 1,000 | 3e+13 | 10.0k | 1.500 | 1m01s |" in first
    assert "BERT" not in first
    assert "does not compare" in note
    assert "| BERT, pseudo-likelihood |" in last
    assert ladder_report.Level(**asdict(apart)) == apart


def test_a_run_that_is_not_berts_is_refused(rungs: dict[str, Config], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        ladder.climb(rungs, tmp_path / "out", compute=COMPUTE, bert=tmp_path / "nowhere")


def test_a_tokenizer_that_loses_text_is_refused_before_training(
    rungs: dict[str, Config], corpus: Path, tmp_path: Path
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "ladder"
    text.write_text(corpus.read_text().title())
    lossy = TokenizerConfig(kind="wordpiece", vocab_size=80)
    data = replace(rungs["short"].data, files=(str(text),), tokenizer=lossy)
    with pytest.raises(UserError, match="bits per byte, but the tokenizer does not give the text back"):
        ladder.climb({"short": replace(rungs["short"], data=data)}, out, compute=COMPUTE)
    assert not out.exists()


def test_a_rung_that_diverged_is_last_and_is_not_drawn(tmp_path: Path) -> None:
    levels = [ladder_report.Level(name, 1, 0.0, 1, bits, 1.0) for name, bits in (("1-gram", nan), ("2-gram", 3.0))]
    levels.sort(key=ladder._rank)
    assert [level.rung for level in levels] == ["2-gram", "1-gram"]
    ladder_report.write_ladder(tmp_path, levels, [], compute=1.0)
    rows = json.loads((tmp_path / "ladder.json").read_text(), parse_constant=pytest.fail)["levels"]
    assert [row["bits_per_byte"] for row in rows] == [3.0, None]
    assert "| nan |" in (tmp_path / "ladder.md").read_text()
    assert (tmp_path / "ladder.png").is_file()
