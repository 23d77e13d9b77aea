"""A run and what follows from its configuration."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from lmjax.config import Config, DataConfig, GRPOConfig, SourceConfig, TrainConfig, UserError, presets
from lmjax.data.store import preparation
from lmjax.run import build, plan
from lmjax.system import machine
from tests import small


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


FAMILIES = ("nnlm", "lstm", "masked", "translation", "bert labels", "chat", "packed chat", "reward", "policy")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_epochs_are_passes_over_the_data_of_every_family(name: str, corpus: Path) -> None:
    """Counts of rows and tokens come from the store, the numbers of samples from the order of the run."""
    config = small.config("chat" if name == "policy" else name, corpus)
    config = small.policy(config, GRPOConfig(group=2)) if name == "policy" else config
    unit = config.batch.microbatch * build.tokens_of_sequence(config)
    growing = {"tokens": ((0, 2 * unit), (5 * unit, 4 * unit))} if name != "lstm" else {}
    config = replace(config, batch=replace(config.batch, **growing), train=replace(config.train, updates=0, epochs=2.5))
    store = preparation.prepare(config.data)
    run = build.build(config, store)
    ids, _ = run.order.take(0, int(run.plan.sequences.sum()))
    last = int(run.plan.sequences[-1])
    if isinstance(config.data, DataConfig):
        tokens = sum(len(source.ids) for source in store.sources)
        assert 0 <= len(ids) * config.model.context - 2.5 * tokens < last * config.model.context
    else:
        rows = sum(run.order.windows)
        assert 0 <= len(ids) - 2.5 * rows < last
        source, _, window = run.order.split_id(ids)
        counts = np.unique(np.stack([source, window]), axis=1, return_counts=True)[1]
        assert len(counts) == rows  # every row is read, and about equally often
        assert 1 <= counts.min() <= counts.max() <= 4
    assert run.config.train.epoch_tokens * 2.5 <= run.plan.tokens
    again = build.build(replace(run.config, train=replace(run.config.train, epoch_tokens=1)), store)  # of other data
    assert (again.config, again.plan.updates) == (run.config, run.plan.updates)


def test_an_epoch_of_a_mixture_has_the_tokens_of_all_sources(tiny: Config, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("a few words\n\n" * 100)
    sources = (SourceConfig(files=tiny.data.files), SourceConfig(files=(str(tmp_path / "other.txt"),), weight=3))
    config = replace(
        tiny, data=replace(tiny.data, files=(), mixture=sources), train=TrainConfig(epochs=2.0, sample_tokens=0)
    )
    run = build.build(config, preparation.prepare(config.data))
    assert run.config.train.epoch_tokens == sum(len(source.ids) for source in run.store.sources)
    assert 0 <= run.plan.tokens - 2 * run.config.train.epoch_tokens < 128
    titles = {table.title: dict(table.rows) for table in plan.tables(run) if table.title == "Run"}
    assert titles["Run"]["epochs"].count(",") == 1  # of each source


def test_before_the_data_are_known_a_run_of_epochs_can_be_checked(tiny: Config) -> None:
    config = replace(tiny, train=TrainConfig(epochs=2.0))
    build.check(config)
    assert {*build.without_data(config).plan.sequences.tolist()} == {4, 8}  # every batch size occurs
    with pytest.raises(UserError, match=r"train\.epochs = 2: only the data say how many tokens an epoch has"):
        build.plan_batches(config)
