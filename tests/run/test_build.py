"""A run and what follows from its configuration."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from lmjax.config import Config, SourceConfig, UserError, presets
from lmjax.data.store import preparation
from lmjax.run import build, plan
from lmjax.system import machine


@pytest.fixture(scope="module")
def configured() -> Config:
    return presets.load("shakespeare_char_cpu")


def test_derived_facts_are_computed_once_and_follow_from_the_configuration(tiny: Config) -> None:
    run = build.build(tiny, preparation.prepare(tiny.data))
    # 6 FLOPs a weight of a matrix product, and 6 x width x context in each layer for half a square of scores.
    weights = 2 * (4 * 16 * 16 + 2 * 16 * 64) + 16 * 257
    assert run.flops_per_token == pytest.approx(6 * weights + 2 * 6 * 16 * 16, rel=0.1)
    assert run.peak_flops == machine.peak_flops("float32", devices=jax.devices()[:1])
    assert run.tokens_per_epoch == sum(len(source.ids) for source in run.store.sources)
    assert [run.tokens_after(update) for update in (0, 1, 6, 7, 12)] == [0, 64, 384, 512, 384 + 6 * 128]
    for name in ("abstract_state", "abstract_batch", "shardings", "dispatch"):
        assert getattr(run, name) is getattr(run, name)
    changed = replace(run, config=replace(tiny, model=replace(run.config.model, layers=1)))
    assert changed.flops_per_token < run.flops_per_token


def test_the_abstract_state_and_batch_are_those_of_the_run(tiny: Config) -> None:
    run = build.build(tiny, preparation.prepare(tiny.data))
    state = build.init(run)
    for leaf, abstract in zip(jax.tree.leaves(state), jax.tree.leaves(run.abstract_state), strict=True):
        assert (leaf.shape, leaf.dtype) == (abstract.shape, abstract.dtype)
        assert leaf.sharding.is_equivalent_to(abstract.sharding, leaf.ndim)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.abstract_batch)
    rows = run.samples.arrays(np.arange(4))
    assert zeros["arrays"].keys() == rows.keys()
    for name, array in rows.items():
        assert zeros["arrays"][name].shape == (2, *array.shape)
        assert zeros["arrays"][name].dtype == array.dtype


def test_a_run_without_data_estimates_the_vocabulary_and_is_planned(configured: Config) -> None:
    run = build.without_data(configured)
    assert run.config.model.vocab_size == build.expected_vocabulary(configured) == 100
    assert run.tokens_per_epoch == 0
    titles = {table.title: dict(table.rows) for table in plan.tables(run) if table.title != "Milestones"}
    assert "epochs" not in titles["Run"]["tokens"]
    assert titles["Run"]["updates"] == f"{run.plan.updates:,}"


def test_the_plan_counts_the_epochs_of_each_source(tiny: Config, tmp_path: Path) -> None:
    (tmp_path / "late.txt").write_text("a few words\n\n" * 100)
    sources = (SourceConfig(files=tiny.data.files), SourceConfig(files=(str(tmp_path / "late.txt"),), weight=0))
    data = replace(tiny.data, files=(), mixture=sources, mixture_changes=((10**9, (1, 1)),), validation="tail")
    run = build.build(replace(tiny, data=data), preparation.prepare(data))
    rows = {name: text for table in plan.tables(run) if table.title == "Run" for name, text in table.rows}
    epochs = run.plan.tokens / len(run.store.sources[0].ids)
    assert (rows["tokens"], rows["epochs"]) == (f"{run.plan.tokens:,}", f"text.txt {epochs:.2f}, late.txt 0.00")
    assert rows["never read"].startswith("late.txt: the run ends before data.mixture_changes")


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tiny: Config) -> None:
    small = replace(tiny, model=replace(tiny.model, vocab_size=100))
    assert build.resolve(tiny, 257).model.vocab_size == 257
    with pytest.raises(UserError, match=r"model\.vocab_size=100 is smaller than the tokenizer's 257 entries"):
        build.resolve(small, 257)


def test_settings_that_do_not_fit_are_refused_before_any_data_are_read(tmp_path: Path, configured: Config) -> None:
    missing = replace(configured, data=replace(configured.data, files=(str(tmp_path / "none.txt"),)))
    build.check(missing)
    with pytest.raises(UserError, match="no such task"):
        build.check(replace(missing, evaluate=replace(missing.evaluate, tasks=("no such task",))))
