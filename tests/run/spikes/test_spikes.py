"""The report of a spike, against what can be computed and looked up without it."""

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from lmjax.config import Config
from lmjax.config.codec import apply_overrides
from lmjax.data.store import preparation
from lmjax.guard import detector
from lmjax.guard.decision import Decision
from lmjax.journal import journal
from lmjax.journal.history import SAVING, Tried, fold
from lmjax.journal.journal import Journal
from lmjax.parallel import mesh
from lmjax.run import build, launch
from lmjax.run.build import Run
from lmjax.run.feed import device_batches, sample_ranges
from lmjax.run.spikes.case import Case, gradient, layer_norms
from lmjax.run.spikes.panels import figure
from lmjax.run.spikes.report import conclude_report, write_report
from lmjax.system import faults
from lmjax.training.inputs import ScheduledBatch
from lmjax.training.state import State
from tests.journal.records import START

UPDATES = 64  # applied before the spike
# Small to compile, the same in all tests that do not ask for something else. The window holds the calm end alone.
SETTINGS = ("batch.tokens=[[0,128]]", "model.dropout=0", "guard.window=32", "train.evaluate_every=0")
HEADINGS = [
    "### Around it",
    "### What the guard saw",
    "### Is it a few sequences, or all of them?",
    "### The batch",
    "### Gradient by layer",
    "### State",
    "### Documents of the suspects",
    "### Next steps",
]


@dataclass
class Spike:
    """A run that has made `UPDATES` updates; `fed` is the batch of the next one, the third in a row to be left out."""

    run: Run
    run_dir: Path
    state: State
    fed: ScheduledBatch
    decision: Decision
    losses: list[float]
    norms: list[float]

    def report(self) -> str:
        write_report(self.run, self.run_dir, self.state, self.fed, self.decision)
        return (self.run_dir / "spikes" / f"{UPDATES + 1}.md").read_text()

    def case(self) -> Case:
        past = fold(journal.read(self.run_dir / "journal.jsonl"))
        return Case(self.run, self.run_dir, self.state, self.fed, self.decision, past)

    def spoil(self, name: str, value: Any, *, row: int) -> None:
        """Changes one row of the batch."""
        arrays = {key: np.array(array) for key, array in self.fed.batch["arrays"].items()}
        arrays[name].reshape(-1, arrays[name].shape[-1])[row] = value
        self.fed = replace(self.fed, batch=self.fed.batch | {"arrays": mesh.put_batch(arrays, self.run.mesh)})


@functools.cache
def trained(config: Config) -> tuple[Run, State, ScheduledBatch, list[tuple[int, float, float]]]:
    """A run after `UPDATES` updates, the batch two after the next, and (cursor, loss, gradient norm) of each update."""
    run = build.build(config, preparation.prepare(config.data))
    update, state, applied = build.update_function(run), build.init(run), []
    feed = device_batches(run, 0, 0)
    for _, fed in zip(range(UPDATES), feed, strict=False):
        state, values = update(state, fed.batch)
        applied.append((fed.cursor, values["loss"].item(), values["grad_norm"].item()))
    feed.close()
    cursor, size = applied[-1][0], int(run.plan.sequences[UPDATES])
    feed = device_batches(run, UPDATES, cursor + 2 * size)
    fed = next(feed)
    feed.close()
    return run, state, fed, applied


def spiked(config: Config, run_dir: Path, *overrides: str) -> Spike:
    run, state, fed, applied = trained(apply_overrides(config, [*SETTINGS, "train.updates=80", *overrides]))
    run_dir.mkdir()
    log = Journal(run_dir / "journal.jsonl")
    log.write("start", wall_step=0, update=0, cursor=0, **START)
    for number, (cursor, loss, norm) in enumerate(applied, 1):
        log.note(update=number, cursor=cursor, loss=loss, grad_norm=norm)
        if number == 20:
            log.write("boundary", wall_step=number, update=number, cursor=cursor, reason=SAVING, digest="0")
    cursor, tried = applied[-1][0], []
    for number, loss in enumerate((9.0, float("nan"), 11.0)):
        size = fed.sequences
        tried.append(Tried(UPDATES, cursor, cursor + size, True, True))
        samples = sample_ranges(run, cursor, cursor + size, fold([]))
        cursor += size
        values = {"loss": loss, "grad_norm": 2.0 * number, "param_norm": 5.0, "z_loss": 30.0, "z_grad_norm": 1.0}
        details: dict[str, Any] = {name: value.hex() for name, value in values.items()}
        wall_step = UPDATES + number + 1
        details |= {"reason": detector.LOSS, "hard": True, "batch": size, "samples": samples}
        log.write("suspect", wall_step=wall_step, update=UPDATES, cursor=cursor, **details)
    decision = Decision(
        rule="2 hard suspects in a row",
        kind="replay",
        onset=tried[0],
        trigger=tried[-1],
        target=20,
        target_cursor=applied[19][0],
        attempt=1,
        level=1,
        reproduced=False,
    )
    _, losses, norms = zip(*applied, strict=True)
    return Spike(run, run_dir, state, fed, decision, list(losses), list(norms))


def headings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


def section(text: str, heading: str) -> str:
    return text.partition(f"### {heading}\n")[2].partition("\n#")[0]


def table(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def tokens_of(spike: Spike) -> np.ndarray:
    """(R, T + 1) of the batch that was computed with."""
    arrays = spike.fed.batch["arrays"]
    inputs, targets = (np.asarray(arrays[name]) for name in ("inputs_BT", "targets_BT"))
    context = inputs.shape[-1]
    return np.concatenate([inputs.reshape(-1, context), targets.reshape(-1, context)[:, -1:]], axis=1)


def plain_losses(spike: Spike, params: Any) -> jax.Array:
    """Mean negative log-likelihood of each row, all rows at once."""
    tokens = tokens_of(spike)

    @jax.jit
    def losses(params: Any) -> jax.Array:
        logits: Any = spike.run.model.apply({"params": params}, tokens[:, :-1])
        rows, columns = np.ogrid[: len(tokens), : tokens.shape[1] - 1]
        return -jax.nn.log_softmax(logits)[rows, columns, tokens[:, 1:]].mean(axis=1)

    return losses(params)


# ---- The batch ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_worst_sequences_come_first_with_their_loss_and_their_text(tiny: Config, tmp_path: Path) -> None:
    spike = spiked(tiny, tmp_path / "run")
    losses = np.asarray(plain_losses(spike, spike.state.params))
    # Float32, another order of summation.
    assert np.allclose(spike.case().losses_R, losses, rtol=1e-5)
    found = re.findall(r"\*\*Loss (\S+)\*\*.*\n\n((?:    .*\n)+)", section(spike.report(), "The batch"))
    order = np.argsort(-losses)
    assert [float(loss) for loss, _ in found] == pytest.approx(losses[order].tolist(), rel=1e-3)  # 4 digits
    decode = spike.run.store.tokenizer.decode
    texts = [decode(tokens).split("\n") for tokens in tokens_of(spike)[order]]
    assert [[line[4:] for line in text.splitlines()] for _, text in found] == texts


@pytest.mark.slow
def test_the_provenance_is_where_the_tokens_are_found(tiny: Config, tmp_path: Path) -> None:
    spike = spiked(tiny, tmp_path / "run", "data.shuffle=true")
    tokens, end = spike.run.store.sources[0], spike.run.store.tokenizer.end_of_text
    ring = np.concatenate([tokens.ids, tokens.ids[:16]]).astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(ring, 17)
    text = section(spike.report(), "The batch")
    pattern = r"sample (\d+), source `(.*)`, epoch 0, window (\d+), document (\d+) from its token (\d+)( to .*)?\n"
    found = re.findall(pattern, text)
    assert len(found) == 8
    several = 0
    for sample, source, window, document, offset, last in found:
        position = int(spike.run.order.position(int(sample)))
        assert spike.fed.before <= position < spike.fed.cursor
        assert source == spike.run.store.manifest["sources"][0]["name"]
        assert window == sample  # of the first epoch of the only source
        row = tokens_of(spike)[position - spike.fed.before]
        places = set()
        for start in np.flatnonzero((windows == row).all(axis=1)).tolist():
            ends = np.flatnonzero(ring[:start] == end)
            first = len(ends)
            within = start - (int(ends[-1]) + 1 if first else 0)
            more = int((row[:-1] == end).sum())  # an end_of_text as the last token begins no document
            places.add((first, within, f" to document {first + more}" if more else ""))
        assert (int(document), int(offset), last) in places
        several += bool(last)
    assert several  # documents are short: some samples lie in more than one


@pytest.mark.slow
def test_what_is_not_what_the_store_holds_is_said(tiny: Config, tmp_path: Path) -> None:
    spike = spiked(tiny, tmp_path / "run")
    assert "differ from the store's samples" not in spike.report()
    spike.spoil("inputs_BT", 65, row=5)
    text = section(spike.report(), "The batch")
    assert "**1 of them differ from the store's samples" in text
    assert "    " + 16 * "A" in text  # what was computed with, not what is in the store


@pytest.mark.slow
@pytest.mark.parametrize("rows", [(2,), range(8)])
def test_it_is_said_whether_a_few_sequences_make_the_spike(tiny: Config, tmp_path: Path, rows: range) -> None:
    spike = spiked(tiny, tmp_path / "run")
    noise = np.random.default_rng(0).integers(128, 256, (8, 16), np.int32)  # bytes that the text has not
    assert "**the losses of the batch are ordinary**" in section(spike.report(), HEADINGS[2][4:])
    for row in rows:
        spike.spoil("targets_BT", noise[row], row=row)
    text = section(spike.report(), HEADINGS[2][4:])
    assert ("**they cause the spike**" if len(rows) == 1 else "**the complete batch is abnormal**") in text
    counts = [int(line.split()[-1]) for line in text.splitlines() if line.startswith("    ")]
    assert sum(counts) == 8


@pytest.mark.slow
def test_a_text_cannot_break_the_report(tiny: Config, tmp_path: Path) -> None:
    evil = "<!-- rollback 1 -->\n```\n## Verdict\n| \x07\u2028 |"
    (tmp_path / "evil.txt").write_text("\n\n".join(f"{evil} {number}" for number in range(400)))
    spike = spiked(tiny, tmp_path / "run", f"data.files=[{tmp_path / 'evil.txt'}]")
    text = spike.report()
    assert headings(text) == [f"# Spike at update {UPDATES + 1}", "## Attempt 1: replay", *HEADINGS]
    assert text.count("\n<!-- rollback 1 -->\n") == 1
    assert not {"\x07", "\u2028"} & set(text)
    assert "\\x07" in text
    assert all(len(row) == 5 for row in table(section(text, "Documents of the suspects")))
    assert spike.report() == text


# ---- Gradient and state ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scan", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_the_gradient_by_layer_is_that_of_a_plain_loss(tiny: Config, tmp_path: Path, scan: str) -> None:
    spike = spiked(tiny, tmp_path / "run", f"model.scan={scan}")
    gradients = jax.grad(lambda params: plain_losses(spike, params).mean())(spike.state.params)
    expected: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for squares, tree in ((expected, gradients), (sizes, spike.state.params)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            group, leaf = path[0].key, np.asarray(leaf, np.float64)
            for layer in range(2 if group == "blocks" else 1):
                name, part = (f"block_{layer}", leaf[layer]) if group == "blocks" else (group, leaf)
                squares[name] = squares.get(name, 0) + float(np.sum(part**2))
    rows = {row[0]: row for row in table(section(spike.report(), "Gradient by layer"))}
    names = ["position_embedding", "token_embedding", "block_0", "block_1", "final_norm"]
    assert list(rows) == [*names, "all"]
    for name in names:
        # Four digits are printed.
        assert float(rows[name][1]) == pytest.approx(expected[name] ** 0.5, rel=1e-3)
        assert float(rows[name][2]) == pytest.approx(sizes[name] ** 0.5, rel=1e-3)
    assert float(rows["all"][1]) == pytest.approx(sum(expected.values()) ** 0.5, rel=1e-3)
    assert [name for name in names if rows[name][5] == "largest"] == [max(names, key=lambda name: expected[name])]


@pytest.mark.slow
def test_the_gradient_is_the_one_that_the_update_takes(tiny: Config) -> None:
    config = apply_overrides(
        tiny, ["batch.tokens=[[0,128]]", "model.layers=1", "model.dropout=0.3", "objective.z_loss=0.01"]
    )
    with jax.default_prng_impl("unsafe_rbg"):  # dropout by the default generator takes long to compile
        run = build.build(config, preparation.prepare(config.data))
        state, feed = build.init(run), device_batches(run, 0, 0)
        fed = next(feed)
        feed.close()
        total, weight = gradient(run, state, fed)
        _, values = build.update_function(run)(state, fed.batch)
    norms = [norm for leaves in layer_norms(total).values() for norm in leaves.values()]
    # Float32; with other masks of the dropout the first digits would differ.
    assert np.linalg.norm(norms) / float(weight) == pytest.approx(values["grad_norm"].item(), rel=1e-5)


def test_the_norm_of_large_values_does_not_overflow() -> None:
    norms = layer_norms({"head": {"kernel": jnp.full((3, 3), 1e30)}, "blocks": {"a": jnp.array([[3.0, 4.0], [0, 0]])}})
    assert norms["head"]["kernel"] == pytest.approx(3e30, rel=1e-6)
    assert [norms["block_0"]["a"], norms["block_1"]["a"]] == pytest.approx([5.0, 0.0], rel=1e-6)


@pytest.mark.slow
def test_what_is_not_finite_is_named_and_the_report_is_whole(tiny: Config, tmp_path: Path) -> None:
    spike = spiked(tiny, tmp_path / "run")
    spike.spoil("weights_BT", np.nan, row=3)
    text = spike.report()
    assert "1 of 8 sequences have a loss that is not finite" in text
    assert section(text, "The batch").count("**Loss nan**") == 1
    assert re.search(r"worst first.*\n\n.*1 of them.*\n\n\*\*Loss nan", text)
    assert {row[5] for row in table(section(text, "Gradient by layer"))[:-1]} == {"not finite"}

    params = jax.tree.map(jnp.copy, spike.state.params)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[1].set(jnp.inf)
    spike.state = replace(spike.state, params=params)
    text = spike.report()
    assert "**Not finite**: `params/final_norm/scale`." in section(text, "State")
    assert "8 of 8 sequences have a loss that is not finite" in text
    assert "Could not be determined" not in text
    assert headings(text)[2:] == HEADINGS


def test_a_section_that_fails_leaves_the_others(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("out of\nmemory")

    spike = spiked(tiny, tmp_path / "run")
    monkeypatch.setattr("lmjax.run.spikes.case._add_gradient", fail)
    text = spike.report()
    assert section(text, "Gradient by layer").strip() == "Could not be determined: out of\\nmemory"
    assert headings(text)[2:] == HEADINGS
    assert text.count("Could not") == 1


# ---- What the guard saw ---------------------------------------------------------------------------------------------


def test_the_headline_and_the_table_tell_what_the_guard_saw(tiny: Config, tmp_path: Path) -> None:
    spike = spiked(tiny, tmp_path / "run")
    text, size = spike.report(), spike.fed.sequences
    line = next(line for line in text.splitlines() if line.startswith("**"))
    assert line.startswith("**Update 65: 2 hard suspects in a row.** Loss 11 (median ")
    assert f"(median {np.median(spike.losses[-32:]):.4g} of 32 updates), gradient norm 4 (median" in line
    assert f"began at update 65, position {UPDATES * size:,}." in line
    assert line.endswith("goes back to update 20 and replays the same data: does the spike recur?")
    rows = table(section(text, "What the guard saw"))
    assert [row[0] for row in rows] == ["61", "62", "63", "64", "65", "65", "65"]
    assert [row[1] for row in rows] == [f"{loss:.4g}" for loss in [*spike.losses[-4:], 9, np.nan, 11]]
    assert [row[-1] for row in rows] == 4 * ["accepted"] + 3 * ["loss, hard"]


def test_the_bands_are_those_of_the_guard(tiny: Config, tmp_path: Path) -> None:
    spike = spiked(tiny, tmp_path / "run")
    window, config = spike.state.window, spike.run.config.guard
    args = jnp.float32(7.0), jnp.float32(0.5), jnp.bool_(True), jnp.int32(spike.fed.regime)
    signs = jax.jit(detector.assess, static_argnums=5)(window, *args, config)
    (median, deviation), (log_median, log_deviation) = spike.case().bands
    # Float32 against float64.
    assert (7.0 - median) / deviation == pytest.approx(float(signs.z_loss), rel=1e-4)
    assert (0.5 - log_median) / log_deviation == pytest.approx(float(signs.z_grad_norm), rel=1e-4)
    assert median == pytest.approx(np.median(spike.losses[-32:]), rel=1e-6)


def test_right_after_an_announced_change_there_is_no_median(tiny: Config, tmp_path: Path) -> None:
    spike = spiked(tiny, tmp_path / "run")
    spike.fed = replace(spike.fed, regime=spike.fed.regime + 1)
    text = spike.report()
    assert "Loss 11 (no median yet), gradient norm 4 (no median yet)" in text
    assert "Could not be determined" not in text


@pytest.mark.parametrize(
    ("changes", "title", "says"),
    [
        (
            {"kind": "skip", "positions": (320, 368), "reproduced": True, "cut": (20, 0.5, 100)},
            "Replay of attempt 1: the spike recurred",
            "leaves out the positions 320 to 368: 48 samples, 7.50% of the run. "
            "The learning rate is multiplied by 0.5 and rises back over 100 updates.",
        ),
        (
            {"verdict": "it did not help", "attempt": 4},
            "Attempt 4: given up",
            "**The guard gives up:** it did not help.",
        ),
    ],
)
def test_what_is_done_is_said(tiny: Config, tmp_path: Path, changes: Any, title: str, says: str) -> None:
    spike = spiked(tiny, tmp_path / "run")
    spike.decision = replace(spike.decision, **changes)
    text = spike.report()
    assert f"\n## {title}\n" in text
    assert says in text


# ---- The files ------------------------------------------------------------------------------------------------------


def test_a_report_grows_by_a_section_for_each_rollback(tiny: Config, tmp_path: Path) -> None:
    spike = spiked(tiny, tmp_path / "run")
    first = spike.report()
    assert spike.report() == first  # a run that was killed on the spot comes here again
    conclude_report(spike.run_dir, UPDATES, "It did not come again.")
    log = Journal(spike.run_dir / "journal.jsonl")
    counters = {"wall_step": 60, "update": UPDATES, "cursor": spike.fed.cursor}
    log.write("rollback", **counters, **spike.decision.fields())
    cursor = spike.decision.target_cursor + 8
    log.note(update=21, cursor=cursor, loss=2.0, grad_norm=1.0)
    log.write("boundary", wall_step=61, update=21, cursor=cursor, reason="progress")
    spike.decision = replace(spike.decision, attempt=2)
    text = spike.report()
    assert text.startswith(
        first + "\n## Verdict\n\nIt did not come again.\n\n<!-- rollback 2 -->\n## Attempt 2: replay\n"
    )
    assert headings(text) == [
        "# Spike at update 65",
        *("## Attempt 1: replay", *HEADINGS, "## Verdict"),
        *("## Attempt 2: replay", *HEADINGS),
    ]
    assert sorted(path.name for path in (spike.run_dir / "spikes").iterdir()) == ["65-2.png", "65.md", "65.png"]
    assert re.findall(r"!\[.*\]\((.*)\)", text) == ["65.png", "65-2.png"]


def test_a_verdict_without_a_report_begins_one(tmp_path: Path) -> None:
    conclude_report(tmp_path, 99, "It did not come again.")
    assert (
        tmp_path / "spikes" / "100.md"
    ).read_text() == "# Spike at update 100\n\n## Verdict\n\nIt did not come again.\n"


def test_the_picture_shows_what_the_journal_knows(tiny: Config, tmp_path: Path) -> None:
    spike = spiked(tiny, tmp_path / "run")
    spike.report()
    picture = imread(spike.run_dir / "spikes" / "65.png")
    assert picture.shape[:2] == (825, 1200)
    assert picture[..., :3].std() > 0.05  # not blank
    loss, norm = figure(spike.case()).axes
    for axes, values in ((loss, spike.losses), (norm, spike.norms)):
        expected = np.stack([np.arange(1, UPDATES + 1), values], axis=1)
        assert np.array_equal(np.asarray(axes.get_lines()[0].get_xydata()), expected)
    left_out, not_finite = (np.asarray(line.get_xydata()) for line in loss.get_lines()[1:3])
    assert np.array_equal(left_out, [[65, 9], [65, np.nan], [65, 11]], equal_nan=True)
    assert not_finite[:, 0].tolist() == [65]
    low, high = loss.get_ylim()
    assert low < min(spike.losses)
    assert high > 11


# ---- In a run -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_reports_a_spike_that_comes_again(tiny: Config, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with faults.armed("data=random@640-680!"):
        assert launch.start(longer(tiny), run_dir) == 0
    records = journal.read(run_dir / "journal.jsonl")
    trigger = next(record for record in records if record["event"] == "rollback")["trigger"]
    text = (run_dir / "spikes" / f"{trigger['update'] + 1}.md").read_text()
    assert [line for line in headings(text) if line.startswith("## ")] == [
        "## Attempt 1: replay",
        "## Replay of attempt 1: the spike recurred",
    ]
    assert "Could not be determined" not in text
    assert "**8 of them differ from the store's samples" in text
    # The gradient that is taken apart is the one that the guard saw.
    last = table(section(text, "What the guard saw"))[-1]
    assert table(section(text, "Gradient by layer"))[-1][1] == last[3]


@pytest.mark.slow
def test_a_run_reports_a_spike_that_does_not_come_again(tiny: Config, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with faults.armed("learning_rate=times:1000@80-84"):
        assert launch.start(longer(tiny), run_dir) == 0
    texts = [path.read_text() for path in (run_dir / "spikes").glob("*.md")]
    assert len(texts) == 1
    assert headings(texts[0])[1] == "## Attempt 1: replay"
    assert texts[0].endswith("## Verdict\n\nReplayed: the spike did not come again, so the data stay.\n")
    assert "Could not be determined" not in texts[0]


def longer(config: Config) -> Config:
    """Long enough for the guard to be armed."""
    return apply_overrides(config, [*SETTINGS, "train.updates=110", "train.baselines=false", "checkpoint.every=20"])
