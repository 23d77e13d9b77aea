"""Records as streams and as arrays: against slow loops over the texts, and what classes of length do to the order."""

import dataclasses
import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import RecordsConfig, TokenizerConfig, UserError
from lmjax.data import tokenizer
from lmjax.data.batches import buckets, records
from lmjax.data.order.order import to_ranges
from lmjax.data.store import ingest, ingest_records, preparation
from lmjax.data.store.store import Store, Tokens

BYTES = TokenizerConfig("bytes")
TOKENIZER = tokenizer.build_tokenizer(BYTES, lambda: iter(()))
END = TOKENIZER.end_of_text
fast = settings(deadline=None, max_examples=40)


def in_memory(sides: dict[str, list[tuple[Any, ...]]], *, label: bool = False, spoken=TOKENIZER) -> Store:
    """A store of records of texts and, if `label`, a number."""
    streams = {}
    for side, rows in sides.items():
        for column, values in enumerate(zip(*rows, strict=True)):
            last = label and column == len(rows[0]) - 1
            ids = [[value] if last else spoken.encode(value) for value in values]
            starts = np.cumsum([0, *map(len, ids)])[:-1]
            name = f"{side}-label" if last else f"{side}-{column}"
            streams[name] = Tokens(np.concatenate([*ids]).astype(np.uint16), starts.astype("<i8"), 0, "")
    return Store(Path(), spoken, streams, "", {})


def configuration(folder: Path, rows: list[Any], **options: Any) -> RecordsConfig:
    path = folder / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return RecordsConfig(**{"files": (str(path),), "tokenizer": BYTES, "cache": str(folder / "cache"), **options})


# ---- The store --------------------------------------------------------------------------------------------------


def test_a_store_of_pairs_gives_its_texts_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "BATCH", 100)
    monkeypatch.setattr(ingest_records, "BATCH", 100)  # many batches
    rows = [{"source": f"Quelle {i}é", "target": f"<|endoftext|> {i * i}"} for i in range(200)]
    config = configuration(tmp_path, [*rows, {"source": "alone", "target": " "}], validation_fraction=0.2)
    made = preparation.prepare(config)
    counts = made.manifest["records"]
    assert (counts["train"] + counts["validation"], counts["skipped"]) == (200, 1)
    assert 20 < counts["validation"] < 60
    assert list(made.streams) == ["train-0", "train-1", "validation-0", "validation-1"]
    found = [records.text_of(made, side, i) for side in ("train", "validation") for i in range(counts[side])]
    assert sorted(found) == sorted((row["source"], row["target"]) for row in rows)
    assert all(END not in tokens.ids for tokens in made.streams.values())
    assert sum(tokens.bytes for tokens in made.streams.values()) == sum(len("".join(p).encode()) for p in found)
    monkeypatch.setattr(preparation.ingest_records, "ingest_records", None)  # would fail if called
    assert preparation.prepare(config, verify=True).fingerprint == made.fingerprint
    assert os.listdir(tmp_path / "cache") == [made.folder.name]


def test_labels_are_numbered_in_their_alphabetical_order(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "y": name} for i, name in enumerate(["no", "yes", 10, 9] * 50)]
    config = configuration(tmp_path, rows, texts=("text",), label="y", validation_fraction=0.2)
    (tmp_path / "cache").mkdir()
    made = preparation.prepare(config)
    assert records.labels(made) == ("10", "9", "no", "yes")
    for side in ("train", "validation"):
        for i, label in enumerate(made.streams[f"{side}-label"].ids):
            number = int(records.text_of(made, side, i)[0].split()[1])
            assert str(rows[number]["y"]) == records.labels(made)[label]
    assert len(made.streams["train-label"].ids) == len(made.streams["train-0"].starts)


def test_the_content_and_not_the_path_makes_the_fingerprint(tmp_path: Path) -> None:
    rows = [{"source": f"s{i}", "target": f"T{i}"} for i in range(100)]
    config = configuration(tmp_path, rows)
    made = preparation.prepare(config)
    for column in ("source", "target"):
        (tmp_path / f"a.{column}").write_text("\n".join(row[column] for row in rows))
    lines = (str(tmp_path / "a.source"), str(tmp_path / "a.target"))
    again = preparation.prepare(dataclasses.replace(config, files=lines))
    assert (again.folder != made.folder, again.fingerprint) == (True, made.fingerprint)
    (tmp_path / "cache" / f"{made.folder.name}.partial").mkdir()  # left behind by a kill
    (tmp_path / "cache" / f"{made.folder.name}.partial" / "train-0.ids").write_bytes(b"rubbish")
    (made.folder / "manifest.json").unlink()
    assert preparation.prepare(config).fingerprint == made.fingerprint
    for change in ({"limit": 50}, {"lowercase": True}, {"validation_fraction": 0.3}):
        assert preparation.prepare(dataclasses.replace(config, **change)).fingerprint != made.fingerprint


def test_the_tokenizer_knows_both_columns_of_the_training_side(tmp_path: Path) -> None:
    rows = [{"source": f"abc {i}", "target": f"ABC {i}"} for i in range(300)]
    held = [{"source": "xyz " * 50, "target": "XYZ " * 50}]
    config = configuration(tmp_path, rows, tokenizer=TokenizerConfig("bpe", 275))
    (tmp_path / "b.jsonl").write_text(json.dumps(held[0]))
    made = preparation.prepare(dataclasses.replace(config, validation_files=(str(tmp_path / "b.jsonl"),)))
    assert [len(made.tokenizer.encode(word)) for word in ("abc", "ABC", "xyz")] == [1, 1, 3]
    assert records.text_of(made, "validation", 0) == ("xyz " * 49 + "xyz", "XYZ " * 49 + "XYZ")
    spoken = TokenizerConfig("characters")  # a vocabulary of characters must hold those of validation, too
    made = preparation.prepare(
        dataclasses.replace(config, validation_files=(str(tmp_path / "b.jsonl"),), tokenizer=spoken)
    )
    assert made.tokenizer.vocab_size == len(set("abc ABC xyz XYZ 0123456789")) + 1


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"source": "a", "target": "b"}], {}, "no record for validation: raise data.validation_fraction, now 0.05"),
        ([{"source": "a", "target": ""}], {}, r"it has no record \(1 were skipped: a text is empty\)"),
        ([{"source": "a", "target": "b"}], {"validation_fraction": 0.9999999}, "no record for train: lower data.valid"),
        (
            [{"text": f"{i}", "y": "both" if i < 99 else "one"} for i in range(100)],
            {"texts": ("text",), "label": "y", "validation_files": ("a.jsonl",), "limit": 99},
            "the label 'one' occurs in validation records but in no training record",
        ),
        (
            [{"text": f"{i}", "y": 0} for i in range(100)],
            {"texts": ("text",), "label": "y"},
            "data.label: the column has 1 distinct values; name a column with 2 to",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Any], options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        preparation.prepare(configuration(tmp_path, rows, **options))


# ---- Arrays -----------------------------------------------------------------------------------------------------

words = st.text("abc é", min_size=1, max_size=30)


def padded(values: list[list[float]], width: int, fill: float) -> list[list[float]]:
    return [[*row, *[fill] * (width - len(row))] for row in values]


@fast
@given(st.lists(st.tuples(words, words), min_size=1, max_size=20), st.integers(6, 40), st.integers(1, 4), st.data())
def test_pairs_are_the_texts_with_their_ends(
    rows: list[tuple[str, str]], context: int, classes: int, data: st.DataObject
) -> None:
    made = in_memory({"train": rows, "validation": rows[:1]})
    plan = buckets.make_buckets(made, classes=classes, context=context)
    order = buckets.bucket_order(plan, RecordsConfig(), seed=1, group=4)
    ids = np.asarray(data.draw(st.lists(st.integers(0, 500), min_size=1, max_size=9)))
    batch = records.pairs(made, ids, order=order, plan=plan)
    found, number = plan.find(ids, order)
    source_width, target_width = plan.widths[found.max()]
    sources = [[*TOKENIZER.encode(rows[i][0])[: context - 1], END] for i in number]
    targets = [TOKENIZER.encode(rows[i][1]) for i in number]
    out = [[*ids, END][:context] for ids in targets]
    assert batch["source_BS"].tolist() == padded(sources, source_width, END)
    assert batch["source_mask_BS"].tolist() == padded([[1] * len(row) for row in sources], source_width, 0)
    assert batch["inputs_BT"].tolist() == padded([[END, *row][:context] for row in targets], target_width, END)
    assert batch["targets_BT"].tolist() == padded(out, target_width, END)
    assert batch["weights_BT"].tolist() == padded([[1] * len(row) for row in out], target_width, 0)
    for row, sample in enumerate(ids):  # no row depends on the others but by the width
        alone = records.pairs(made, [sample], order=order, plan=plan, bucket=int(found.max()))
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], batch[name][row])


def bert(folder: Path) -> tokenizer.Tokenizer:
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "é", "##a", "##b", "##c"]))
    return tokenizer.load_tokenizer(path)


@pytest.mark.parametrize("texts", [1, 2])
@pytest.mark.parametrize("kind", ["bytes", "bert"])
def test_labelled_rows_are_those_of_bert(tmp_path: Path, kind: str, texts: int) -> None:
    """Against the loop of the paper's own code: while both texts are too long, the longer one loses its last token."""
    spoken = TOKENIZER if kind == "bytes" else bert(tmp_path)
    lead, end, pad = ([], END, END) if kind == "bytes" else ([2], 3, 0)
    choose = np.random.default_rng(0)

    def text() -> str:
        return "".join(choose.choice(list("abc "), choose.integers(1, 40))) + "a"

    rows = [(*(text() for _ in range(texts)), i % 3) for i in range(60)]
    made = in_memory({"train": rows, "validation": rows[:7]}, label=True, spoken=spoken)
    for context in (9, 20, 200):
        plan = buckets.make_buckets(made, classes=3, context=context)
        order = buckets.bucket_order(plan, RecordsConfig(), seed=0, group=8)
        ids = np.arange(30)
        batch = records.labelled(made, ids, order=order, plan=plan)
        found, number = plan.find(ids, order)
        (width,) = plan.widths[found.max()]
        assert width <= context
        for row, i in enumerate(number):
            parts = [spoken.encode(value) for value in rows[i][:-1]]
            while sum(map(len, parts)) > context - len(lead) - texts:
                max(reversed(parts), key=len).pop()
            inputs = lead + [id for part in parts for id in [*part, end]]
            kinds = [0] * (len(lead) + len(parts[0]) + 1) + [1] * sum(len(part) + 1 for part in parts[1:])
            assert batch["inputs_BT"][row].tolist() == inputs + [pad] * (width - len(inputs))
            assert batch["kinds_BT"][row].tolist() == kinds + [0] * (width - len(kinds))
            assert batch["real_BT"][row].tolist() == [1] * len(inputs) + [0] * (width - len(inputs))
        assert batch["labels_B"].tolist() == [rows[i][-1] for i in number]
        assert batch["weights_B"].tolist() == [1] * 30
        dtypes = {name: value.dtype.name for name, value in batch.items()}
        assert dtypes == dict.fromkeys(["inputs_BT", "kinds_BT", "labels_B"], "int32") | dict.fromkeys(
            ["real_BT", "weights_B"], "float32"
        )


@pytest.mark.parametrize("label", [False, True])
def test_validation_has_every_record_once(label: bool) -> None:
    rows = [("a" * n, "b" * (n % 11 + 1), *([n % 2] if label else [])) for n in range(1, 60)]
    made = in_memory({"train": rows[:30], "validation": rows}, label=label)
    plan = buckets.make_buckets(made, classes=3, context=80)
    assert sum(map(len, plan.members)) == 30
    assert len(plan.widths) == len(plan.members) + 1  # for those that are longer than all training records
    batches = list(records.validation(made, plan=plan, microbatch=8))
    assert all(len(value) == 8 for batch in batches for value in batch.values())
    assert len({tuple(value.shape for value in batch.values()) for batch in batches}) <= len(plan.widths)
    name = "inputs_BT" if label else "source_BS"
    weights = [batch["weights_B" if label else "weights_BT"].reshape(8, -1).max(1) for batch in batches]
    seen = [int((row == ord("a")).sum()) for batch in batches for row in batch[name]]
    real = np.concatenate(weights) > 0
    assert real.tolist() == [True] * 59 + [False] * 5
    assert [n for n, kept in zip(seen, real, strict=True) if kept] == [i + 1 for i in np.concatenate(plan.validation)]
    assert sorted(np.concatenate(plan.validation)) == list(range(59))


# ---- Classes of length ------------------------------------------------------------------------------------------


def of_lengths(lengths: np.ndarray) -> Store:
    """A store of pairs of texts with so many tokens, without making the texts."""
    streams = {
        f"{side}-{column}": Tokens(np.zeros(sizes.sum(), np.uint16), np.cumsum(sizes) - sizes, 0, "")
        for side in ("train", "validation")
        for column, sizes in enumerate(lengths.T)
    }
    return Store(Path(), TOKENIZER, streams, "", {})


@fast
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=60),
    st.integers(1, 9),
    st.integers(6, 64),
)
def test_classes_hold_their_records_and_those_below(lengths: list[tuple[int, int]], classes: int, context: int) -> None:
    plan = buckets.make_buckets(of_lengths(np.asarray(lengths)), classes=classes, context=context)
    assert sorted(np.concatenate(plan.members)) == sorted(np.concatenate(plan.validation)) == list(range(len(lengths)))
    assert 1 <= len(plan.members) <= classes
    assert len(set(plan.widths)) == len(plan.widths) == len(plan.members)
    places = np.minimum(np.asarray(lengths) + 1, context)
    for width, members in zip(plan.widths, plan.members, strict=True):
        assert (places[members] <= width).all()
        assert all(n == context or (n % 8 == 0 and n < context) for n in width)
    assert (np.diff(plan.widths, axis=0) >= 0).all()
    total = sum(len(part) * sum(width) for width, part in zip(plan.widths, plan.members, strict=True))
    assert plan.padding == pytest.approx(1 - places.sum() / total, abs=1e-12)
    assert plan.cut == (np.asarray(lengths) + 1 > context).any(1).sum()


def test_little_is_padding() -> None:
    """Lengths like those of sentences: log-normal, the 95th percentile three times the median of 22 tokens.

    One class pads three quarters, eight a fifth; equal classes would pad a half more (46 % with four, 31 % with eight).
    """
    draw = np.random.default_rng(0)
    source = np.exp(draw.normal(np.log(22), 0.65, 20_000)).astype(int) + 1
    target = (source * draw.normal(1.1, 0.12, 20_000)).clip(1).astype(int) + 1
    made = of_lengths(np.stack([source, target], axis=1))
    shares = [buckets.make_buckets(made, classes=n, context=128).padding for n in (1, 4, 8, 16)]
    np.testing.assert_allclose(shares, [0.764, 0.321, 0.200, 0.160], atol=0.004)


@fast
@given(st.integers(0, 2**32), st.sampled_from([1, 4, 32]), st.booleans())
def test_every_record_comes_about_once_a_span_in_blocks_of_one_class(seed: int, group: int, shuffle: bool) -> None:
    lengths = np.random.default_rng(seed).integers(1, 60, (997, 2))
    plan = buckets.make_buckets(of_lengths(lengths), classes=4, context=64)
    order = buckets.bucket_order(plan, RecordsConfig(shuffle=shuffle), seed=seed, group=group)
    ids, _ = order.take(0, 5 * 997 // group * group)
    found, number = plan.find(ids, order)
    assert (found.reshape(-1, group) == found.reshape(-1, group)[:, :1]).all()
    assert all(i in plan.members[b] for b, i in zip(found[:50], number[:50], strict=True))
    counts = Counter(number.tolist())
    assert set(counts) == set(range(997))
    assert max(counts.values()) <= 6
    assert min(counts.values()) >= 4


def test_a_batch_across_two_blocks_has_the_larger_widths() -> None:
    rows = [("a" * n, "b" * n) for n in range(1, 41)]
    made = in_memory({"train": rows, "validation": rows})
    plan = buckets.make_buckets(made, classes=4, context=64)
    order = buckets.bucket_order(plan, RecordsConfig(), seed=0, group=8)
    whole = order.sample_id(np.arange(4000)).reshape(-1, 8)
    for ids in whole[:40]:
        assert records.pairs(made, ids, order=order, plan=plan)["source_BS"].shape[1] in [w[0] for w in plan.widths]
    left_out = order.excluding(to_ranges(whole[0, :3]))
    ids, _ = left_out.take(0, 8)
    found, _ = plan.find(ids, order)
    assert found.tolist() == [found[0]] * 5 + [found[5]] * 3
    assert found[0] != found[5]
    batch = records.pairs(made, ids, order=left_out, plan=plan)
    assert batch["source_BS"].shape == (8, plan.widths[found.max()][0])


@fast
@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(1, 4), st.data())
def test_the_cuts_are_the_cheapest(counts: list[int], classes: int, data: st.DataObject) -> None:
    """Against all ways to cut."""
    prices = sorted(data.draw(st.lists(st.integers(1, 30), min_size=len(counts), max_size=len(counts))))

    def cost(bounds: list[tuple[int, int]]) -> int:
        return sum(sum(counts[start:stop]) * prices[stop - 1] for start, stop in bounds)

    cells = range(1, len(counts))
    ways = [
        list(itertools.pairwise([0, *cuts, len(counts)]))
        for n in range(min(classes, len(counts)))
        for cuts in itertools.combinations(cells, n)
    ]
    found = buckets._cut(np.asarray(counts), np.asarray(prices), classes)
    assert found in ways
    assert cost(found) == min(map(cost, ways))


def test_what_cannot_be_planned_is_refused() -> None:
    made = of_lengths(np.asarray([(3, 4)]))
    with pytest.raises(UserError, match=r"data\.buckets=0: there is at least one class"):
        buckets.make_buckets(made, classes=0, context=16)
    with pytest.raises(UserError, match=r"model\.context=3 has no room"):
        buckets.make_buckets(made, classes=1, context=3)


@pytest.mark.parametrize("count", [0, 3, 4])
def test_a_record_has_one_or_two_texts(count: int) -> None:
    with pytest.raises(UserError, match=f"a record to classify has {count} texts; give one text, or two for a pair"):
        records.row(TOKENIZER, ["a"] * count, context=16)


def test_a_damaged_id_is_refused_while_it_is_read() -> None:
    made = in_memory({"train": [("ab", 0), ("cd", 1)], "validation": [("ef", 0)]}, label=True)
    damaged = {
        name: dataclasses.replace(tokens, vocab_size=2 if name.endswith("label") else 257)
        for name, tokens in made.streams.items()
    }
    plan = buckets.make_buckets(made, classes=1, context=16)
    for name in ("validation-0", "validation-label"):
        ids = damaged[name].ids.copy()
        ids[0] = 0xFF00
        store = dataclasses.replace(made, streams=damaged | {name: dataclasses.replace(damaged[name], ids=ids)})
        with pytest.raises(UserError, match="has the token id 65280, outside the vocabulary of"):
            list(records.validation(store, plan=plan, microbatch=2))


def test_a_description_says_what_there_is(tmp_path: Path) -> None:
    config = RecordsConfig(
        source="docstrings", texts=("text",), label="label", tokenizer=BYTES, cache=str(tmp_path / "cache")
    )
    made = preparation.prepare(config)
    plan = buckets.make_buckets(made, classes=4, context=256)
    counts = made.manifest["records"]
    lines = records.describe(made, plan=plan)
    assert lines[0] == f"records: {counts['train']:,} for training, {counts['validation']:,} for validation"
    assert lines[1] == "labels: 8: concurrency, graphics, imports, logging, mail, testing, web, xml"
    assert lines[2].startswith("classes of length: ")
    longer = {
        side: int((np.diff(made.streams[f"{side}-0"].starts, append=len(made.streams[f"{side}-0"].ids)) > 255).sum())
        for side in ("train", "validation")
    }
    assert lines[-2:] == [
        f"cut: {longer['train']:,} training records are longer than the context of 256 tokens",
        f"cut: {longer['validation']:,} validation records are longer than the context of 256 tokens",
    ]
    sides = [{records.text_of(made, side, i) for i in range(counts[side])} for side in ("train", "validation")]
    assert not sides[0] & sides[1]
