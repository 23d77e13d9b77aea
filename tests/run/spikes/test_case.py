"""The batch, the gradient and the state at a spike, against what can be computed without the report."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.config import Config
from lmjax.config.codec import apply_overrides
from lmjax.data.store import preparation
from lmjax.run import build
from lmjax.run.feed import device_batches
from lmjax.run.spikes.case import gradient, layer_norms
from tests.run.spikes.spiked import HEADINGS, UPDATES, headings, plain_losses, section, spiked, table, tokens_of

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


@pytest.mark.slow
def test_a_section_that_fails_leaves_the_others(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("out of\nmemory")

    spike = spiked(tiny, tmp_path / "run")
    monkeypatch.setattr("lmjax.run.spikes.case._add_gradient", fail)
    text = spike.report()
    assert section(text, "Gradient by layer").strip() == "Could not be determined: out of\\nmemory"
    assert headings(text)[2:] == HEADINGS
    assert text.count("Could not") == 1
