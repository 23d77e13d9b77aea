"""Generated tasks: their rules against independent ones, and that what is held out stays apart."""

import hashlib
from collections import Counter
from collections.abc import Callable

import pytest

from lmjax.config import UserError
from lmjax.tasks import draws, symbolic
from lmjax.tasks.draws import Choices
from lmjax.tasks.spec import Document

SHARE = 0.25


def items(document: Document) -> list[tuple[str, str]]:
    """(input, answer) of every example, then of the query."""
    return [(d.prompt.removesuffix(":"), d.answers[0]) for d in (*document.examples, document)]


@pytest.mark.parametrize("name", symbolic.NAMES)
def test_a_row_is_a_function_of_its_number_alone(name: str) -> None:
    task = symbolic.load(name, count=40)
    assert task.documents == tuple(symbolic.document(name, i) for i in range(40))
    assert task.documents[:7] == symbolic.load(name, count=7).documents
    assert [d.id for d in task.documents] == [str(i) for i in range(40)]
    assert all(len(d.examples) == (8 if name == "random_map" else 16) for d in task.documents)
    assert len({tuple(items(d)) for d in task.documents}) == 40


def test_rows_are_the_same_everywhere() -> None:
    # What models were trained and judged on: a change of any row asks for a new FORMAT.
    text = repr([items(symbolic.document(name, i, held_out_share=SHARE)) for name in symbolic.NAMES for i in range(5)])
    assert (symbolic.FORMAT, hashlib.sha256(text.encode()).hexdigest()[:16]) == (1, "0e53a0f0849e0e66")


@pytest.mark.parametrize("name", symbolic.NAMES)
def test_both_sides_have_no_item_in_common(name: str) -> None:
    found = {}
    for held_out in (True, False):
        rows = [symbolic.document(name, i, held_out_share=SHARE, held_out=held_out) for i in range(60)]
        keys = {item.key for row in rows for item in (*row.examples, row)}
        assert {draws.held_out(key, SHARE) for key in keys} == {held_out}
        found[held_out] = {pair for row in rows for pair in items(row)}
    if name in ("random_map", "copying"):  # there the input with its answer is the item; elsewhere it is with the rule
        assert not found[True] & found[False]


def test_random_maps_show_each_pair_once_a_round() -> None:
    queries: Counter[int] = Counter()
    for i in range(400):
        document = symbolic.document("random_map", i, shots=19, held_out_share=SHARE)
        pairs = dict(items(document))
        assert len(pairs) == 8 == len(set(pairs.values()))
        shown = items(document)[:-1]
        assert sorted(shown[:8]) == sorted(shown[8:16]) == sorted(pairs.items())
        assert len(set(shown[16:])) == 3
        assert items(document)[-1] in shown[:8]
        assert document.choices == tuple(sorted(pairs.values()))
        assert document.gold is not None
        assert document.answers == (document.choices[document.gold],)
        assert all(draws.held_out(f"{document.prompt} {value}", SHARE) for value in document.choices)
        queries[document.gold] += 1
    assert min(queries.values()) > 20  # an eighth of 400 is 50, less four deviations of 6.6


TEXT: dict[str, Callable[[str], object]] = {
    "vowel first": lambda text: text.startswith(tuple("aeiou")),
    "vowel last": lambda text: text.endswith(tuple("aeiou")),
    "long": lambda text: len(text) >= 5,
    "with a": lambda text: text.count("a") > 0,
}
NUMBERS: dict[str, Callable[[str], object]] = {
    "even": lambda text: text[-1] in "02468",
    "above 499": lambda text: text[0] in "56789",
    "last above 4": lambda text: text[-1] in "56789",
}


def test_labels_follow_a_rule_and_their_names_say_nothing() -> None:
    right = Counter()
    for i in range(200):
        document = symbolic.document("invented_labels", i, held_out_share=SHARE)
        rules = NUMBERS if document.prompt[0].isdigit() else TEXT
        labels = document.choices
        assert any(len({(rule(text), label) for text, label in items(document)}) == 2 for rule in rules.values())
        assert all({a for _, a in items(document)[n : n + 2]} == set(labels) for n in range(0, 16, 2))
        right[document.gold] += 1
    assert 70 < right[0] < 130  # half of 200, four deviations of 7


STRINGS: list[Callable[[str], str]] = [
    lambda s: "".join(reversed(s)),
    lambda s: f"{s}{s}",
    lambda s: "".join(s[(i + 1) % len(s)] for i in range(len(s))),
    lambda s: "".join(s[i - 1] for i in range(len(s))),
    lambda s: s[:1] + s[-1:],
    lambda s: s.replace(s[0], "", 1),
    lambda s: s[: len(s) - 1],
    lambda s: "".join(s[i // 2] for i in range(2 * len(s))),
    lambda s: "".join(c * s.count(c) for c in "abcdefghijklm"),
    lambda s: s[-1] + s[-1] + s[-1],
    lambda s: f"x{s}",
    lambda s: s.translate(str.maketrans("abcdefghijklm", "bcdefghijklmn")),
]
LISTS: list[Callable[[list[int]], list[int]]] = [
    lambda x: list(reversed(x)),
    lambda x: [n for n in range(10) for _ in range(x.count(n))],
    lambda x: sorted(x)[-1:],
    lambda x: sorted(x)[:1],
    lambda x: [sum(x)],
    lambda x: [len(x)],
    lambda x: [x[0]],
    lambda x: [x[-1]],
    lambda x: [n for i, n in enumerate(x) if i],
    lambda x: [x[0], x[-1]],
    lambda x: [n - -1 for n in x],
    lambda x: [n + n for n in x],
]
SEQUENCES: list[Callable[[int, int], int]] = [
    lambda a, b: b + (b - a),
    lambda a, b: a + b,
    lambda a, b: a,
    lambda a, b: b,
    lambda a, b: b - a,
    *(lambda a, b, k=k: b + k for k in range(1, 10)),
]


def _list(function: Callable[[list[int]], list[int]], text: str) -> str:
    return " ".join(str(n) for n in function([int(part) for part in text.split()]))


FUNCTIONS: dict[str, list[Callable[[str], str]]] = {
    "string_function": STRINGS,
    "list_function": [lambda text, f=f: _list(f, text) for f in LISTS],
    "sequence": [lambda text, f=f: str(f(*map(int, text.split()))) for f in SEQUENCES],
    "copying": [lambda text: text],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_row_follows_one_function_that_its_examples_single_out(name: str) -> None:
    used = set()
    for i in range(150):
        *examples, (query, answer) = items(symbolic.document(name, i, held_out_share=SHARE))
        assert len({text for text, _ in examples} | {query}) == 17
        fitting = [n for n, f in enumerate(FUNCTIONS[name]) if all(f(text) == shown for text, shown in examples)]
        assert {FUNCTIONS[name][n](query) for n in fitting} == {answer}
        used |= set(fitting)
    assert used == set(range(len(FUNCTIONS[name])))


def test_mistakes() -> None:
    with pytest.raises(UserError, match="did you mean 'random_map'"):
        symbolic.load("random_maps")
    for name in ("random_map", "sequence"):
        with pytest.raises(UserError, match="leaves too few items"):
            symbolic.load(name, held_out_share=1e-4)


def test_choices_are_even_and_do_not_run_out() -> None:
    draw = Choices("dice")
    counts = Counter(draw.below(6) for _ in range(60_000))
    assert all(abs(counts[n] - 10_000) < 400 for n in range(6))  # above four deviations of 91
    assert sorted(draw.some("abcdef", 6)) == list("abcdef")
    orders = Counter("".join(Choices(f"order {i}").some("abc", 2)) for i in range(3000))
    assert len(orders) == 6
    assert min(orders.values()) > 400  # 500 each, less four deviations of 20
