"""Documents that occurred before are left out: against brute force, and in a prepared store."""

import itertools
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.config import DataConfig, TokenizerConfig, UserError
from lmjax.data.sources import duplicates
from lmjax.data.store import facts
from lmjax.data.store.preparation import prepare

WORDS = [f"w{number}" for number in range(300)]


def kept(texts: list[str], choice: Any, *, cut: int = 7) -> tuple[list[str], int]:
    """The documents that are left, each given in pieces of `cut` characters, and the count of the others."""
    count = SimpleNamespace(duplicates=0)
    pieces = ((text[i : i + cut], i == 0) for text in texts for i in range(0, max(1, len(text)), cut))
    found: list[str] = []
    for piece, begins in duplicates.without(pieces, choice, count):
        found = [*found, piece] if begins else [*found[:-1], found[-1] + piece]
    return found, count.duplicates


@given(st.lists(st.sampled_from(["a", "a ", " a", "a  b", "a b", "b", "", "A"]), max_size=20))
def test_the_first_of_equal_texts_is_kept_in_order(texts: list[str]) -> None:
    """Equal up to white space; empty documents are equal, too."""
    first = {" ".join(text.split()): text for text in reversed(texts)}
    expected = [text for number, text in enumerate(texts) if text.split() not in [t.split() for t in texts[:number]]]
    assert kept(texts, "exact") == (expected, len(texts) - len(first))


def test_near_duplicates_are_those_of_brute_force() -> None:
    """The estimate with 128 permutations errs by at most 0.12 here: pairs within this of the bound are not judged."""
    pytest.importorskip("datasketch")
    rng, texts = random.Random(0), []
    for _ in range(60):
        base = rng.choices(WORDS, k=80)
        texts.append(" ".join(base))
        for changes in (0, 1, 2, 5, 20):
            changed = list(base)
            for place in rng.sample(range(80), changes):
                changed[place] = rng.choice(WORDS)
            texts.append(" ".join(changed).upper())
    rng.shuffle(texts)
    found, count = kept(texts, "near")
    assert count == len(texts) - len(found)

    def similarity(a: str, b: str) -> float:
        one, other = ({*duplicates.shingles(text.lower().split())} for text in (a, b))
        return len(one & other) / len(one | other)

    kept_texts = set(found)
    for number, text in enumerate(texts):
        largest = max((similarity(text, other) for other in found if texts.index(other) < number), default=0.0)
        if abs(largest - duplicates.THRESHOLD) > 0.12:
            assert (text in kept_texts) == (largest < duplicates.THRESHOLD), largest
    for a, b in itertools.combinations(found, 2):
        assert similarity(a, b) < duplicates.THRESHOLD + 0.12


def test_short_texts_are_compared_exactly_and_long_ones_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasketch")
    assert kept(["one two", "one  two", "one three"], "near") == (["one two", "one three"], 1)
    monkeypatch.setattr(duplicates, "LARGEST", 50)
    long = "a long text " * 10
    assert kept([long, "x", long, "x"], "exact") == ([long, "x", long], 1)


def test_a_store_has_no_duplicates_and_counts_them(tmp_path: Path) -> None:
    rows = [{"text": f"document {number % 40} is here"} for number in range(100)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    options: dict[str, Any] = {"files": (str(path),), "tokenizer": TokenizerConfig("bytes"), "cache": str(tmp_path)}
    options["validation_fraction"] = 0.3
    whole, single = (prepare(DataConfig(**options, deduplicate=choice)) for choice in ("none", "exact"))
    assert whole.fingerprint != single.fingerprint
    read = "".join(single.tokenizer.decode(part.ids) for part in (*single.sources, single.validation))
    assert sorted(filter(None, read.split("<|endoftext|>"))) == sorted({row["text"] for row in rows})
    assert "left out 60 documents (60.0%) that occurred before" in "\n".join(facts.notes(single))
    assert facts.store_facts(single)["duplicate_documents"] == 60
    assert "duplicate_documents" not in facts.store_facts(whole)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"data\.deduplicate=near or --near needs datasketch, .*\[data\]"):
        kept(["a"], "near")
