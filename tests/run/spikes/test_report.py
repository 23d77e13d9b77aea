"""What the report of a spike says, its files, and the reports of complete runs."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from lmjax.config import Config
from lmjax.config.codec import apply_overrides
from lmjax.guard import detector
from lmjax.journal import journal
from lmjax.journal.journal import Journal
from lmjax.run import launch
from lmjax.run.spikes.panels import figure
from lmjax.run.spikes.report import conclude_report
from lmjax.system import faults
from tests.run.spikes.spiked import (
    HEADINGS,
    SETTINGS,
    UPDATES,
    headings,
    section,
    spiked,
    table,
)

# ---- What the guard saw ---------------------------------------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
@pytest.mark.slow
def test_what_is_done_is_said(tiny: Config, tmp_path: Path, changes: Any, title: str, says: str) -> None:
    spike = spiked(tiny, tmp_path / "run")
    spike.decision = replace(spike.decision, **changes)
    text = spike.report()
    assert f"\n## {title}\n" in text
    assert says in text


# ---- The files ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.slow
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
