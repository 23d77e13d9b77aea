"""Generated tasks that need examples: only they show the rule of a row.

A row is a pure function of the task's name, the row's number and the held-out share, so the number of rows is
unlimited. An item is an input with its answer under a rule; it is identified by its key. Only a hash of the key decides
whether an item is held out. All items of a row, including its examples, are on the same side: held-out items never
occur among the others.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, product
from string import ascii_lowercase, ascii_uppercase

from lmjax.config.errors import UserError, nearest
from lmjax.tasks import draws
from lmjax.tasks.draws import Choices
from lmjax.tasks.spec import Document, Task, TaskConfig

FORMAT = 1  # raise it when a row changes
PAIRS = 8  # pairs of a random map
EXAMPLES = 16  # examples in a row of any other task
TRIES = 20_000  # draws for an item of the right side and class that is not yet in the row

Allowed = Callable[[str], bool]  # whether the item with this key may occur in the row


@dataclass(frozen=True)
class Item:
    """An input with its answer."""

    #: Text whose hash decides whether the item is held out.
    key: str
    #: Input under the rule.
    input: str
    #: Answer under the rule.
    answer: str


@dataclass(frozen=True)
class Row:
    """The items of a row."""

    #: Items in the order of the prompt; the query is last.
    items: tuple[Item, ...]
    #: Answers to choose from (empty: the answer is generated).
    choices: tuple[str, ...] = ()


def load(name: str, *, held_out_share: float = 0.0, held_out: bool = True, count: int = 500) -> Task:
    """Generate the first `count` rows of a task.

    The rows consist of held-out items or of the others; with a share of 0, of all items.

    Raises:
        UserError: The task does not exist, or the share leaves too few items.
    """
    rows = (document(name, i, held_out_share=held_out_share, held_out=held_out) for i in range(count))
    documents = tuple(rows)
    return Task(config_of(name), documents, pool=documents)


def document(
    name: str, index: int, *, shots: int | None = None, held_out_share: float = 0.0, held_out: bool = True
) -> Document:
    """Generate row `index` of a task.

    Args:
        name: The task.
        index: Number of the row.
        shots: Number of examples (None: as many as in `load`). If a random map has fewer pairs, all pairs repeat in
            another order.
        held_out_share: Share of the items that is held out.
        held_out: Whether the row consists of held-out items or of the others.

    Raises:
        UserError: The task does not exist, or the share leaves too few items.
    """
    config = config_of(name)
    draw = Choices(f"{name} {'held out' if held_out else 'trained'} {index}")
    allowed = partial(_on_side, share=held_out_share, held_out=held_out)
    if shots is None:
        shots = PAIRS if name == "random_map" else EXAMPLES
    row = _GENERATORS[name](draw, shots, allowed)
    *examples, query = (_document(config, f"{index}/{n}", item, row.choices) for n, item in enumerate(row.items))
    return dataclasses.replace(query, id=str(index), examples=tuple(examples))


def config_of(name: str) -> TaskConfig:
    """Return the configuration of a task.

    Raises:
        UserError: The task does not exist.
    """
    if name not in NAMES:
        raise UserError(f"unknown task '{name}'{nearest(name, NAMES)}")
    return TaskConfig(
        name=name,
        kind="choose" if name in _CHANCES else "generate",
        description=_DESCRIPTIONS[name],
        prompt=_PROMPTS.get(name, "{input}:"),
        joint="\n",
        max_tokens=24,
        chance=_CHANCES.get(name, 0.0),
        measures=NAMES[name],
    )


def _document(config: TaskConfig, id: str, item: Item, choices: tuple[str, ...]) -> Document:
    return Document(
        id=id,
        prompt=config.prompt.replace("{input}", item.input),
        answers=(item.answer,),
        choices=choices,
        gold=choices.index(item.answer) if choices else None,
        group=item.answer,
        key=item.key,
    )


@lru_cache(4096)  # a random map asks for the same few hundred pairings repeatedly
def _on_side(key: str, *, share: float, held_out: bool) -> bool:
    return not share or draws.held_out(key, share) == held_out


def _distinct(count: int, make: Callable[[int], Item | None], allowed: Allowed) -> tuple[Item, ...]:
    """Draw `count` allowed items with distinct inputs.

    `make(n)` draws the n-th, or None if the draw is unusable.
    """
    items: dict[str, Item] = {}
    for _ in range(TRIES):
        item = make(len(items))
        if item is not None and item.input not in items and allowed(item.key):
            items[item.input] = item
            if len(items) == count:
                return tuple(items.values())
    raise _too_few()


def _too_few() -> UserError:
    return UserError("the held-out share leaves too few items for a row of this task: set it nearer to 0.5")


def _text(draw: Choices, alphabet: str, shortest: int, longest: int) -> str:
    return "".join(draw.of(alphabet) for _ in range(shortest + draw.below(longest - shortest + 1)))


# ---- Random maps ------------------------------------------------------------------------------------------------


def _random_map(draw: Choices, count: int, allowed: Allowed) -> Row:
    """Draw pairs of a small and a capital letter; each round shows all pairs in a new order.

    The pair of the query letter with any of the values is allowed. The held-out share thus rules out no value, and
    without examples all values are equally likely.
    """
    for _ in range(TRIES // 100):
        query = draw.of(ascii_lowercase)
        values = [value for value in ascii_uppercase if allowed(f"{query} {value}")]
        if len(values) >= PAIRS and (pairs := _pairs(draw, query, draw.some(values, PAIRS), allowed)):
            break
    else:
        raise _too_few()
    keys = list(chain.from_iterable(draw.some(sorted(pairs), PAIRS) for _ in range(math.ceil(count / PAIRS))))
    shown = [*keys[:count], query]
    return Row(tuple(Item(f"{key} {pairs[key]}", key, pairs[key]) for key in shown), tuple(sorted(pairs.values())))


def _pairs(draw: Choices, query: str, values: list[str], allowed: Allowed) -> dict[str, str] | None:
    """Pair the query with the first value, and a free key with each other value.

    None if no key is free.
    """
    pairs = {query: values[0]}
    for value in values[1:]:
        free = [key for key in ascii_lowercase if key not in pairs and allowed(f"{key} {value}")]
        if not free:
            return None
        pairs[draw.of(free)] = value
    return pairs


# ---- Labels -----------------------------------------------------------------------------------------------------

_VOWELS = "aeiou"
_LABELS = ["".join(letters) for letters in product("bdfgklmnprstvz", _VOWELS, "bdfgklmnprst")]
_TEXT_RULES: dict[str, Callable[[str], bool]] = {
    "starts with a vowel": lambda text: text[0] in _VOWELS,
    "ends in a vowel": lambda text: text[-1] in _VOWELS,
    "is longer than four letters": lambda text: len(text) > 4,
    "holds an a": lambda text: "a" in text,
}
_NUMBER_RULES: dict[str, Callable[[str], bool]] = {
    "is even": lambda text: int(text) % 2 == 0,
    "is above 499": lambda text: int(text) > 499,
    "ends in a digit above 4": lambda text: int(text[-1]) > 4,
}


def _invented_labels(draw: Choices, count: int, allowed: Allowed) -> Row:
    """Label words or numbers with two nonsense words by a rule.

    Of every two examples, each label has one.
    """
    rules = draw.of((_TEXT_RULES, _NUMBER_RULES))
    name = draw.of(list(rules))
    labels = draw.some(_LABELS, 2)
    classes = [*chain.from_iterable(draw.some((0, 1), 2) for _ in range(count // 2 + 1))]
    classes = [*classes[:count], draw.below(2)]

    def make(n: int) -> Item | None:
        text = _text(draw, "aaeioubdklmnprst", 3, 6) if rules is _TEXT_RULES else str(100 + draw.below(900))
        fits = rules[name](text) == classes[n]
        return Item(f"{name} {text}", text, labels[classes[n]]) if fits else None

    return Row(_distinct(count + 1, make, allowed), tuple(labels))


# ---- Functions --------------------------------------------------------------------------------------------------

_STRING_FUNCTIONS: dict[str, Callable[[str], str]] = {
    "reversed": lambda text: text[::-1],
    "twice": lambda text: text * 2,
    "first letter at the end": lambda text: text[1:] + text[0],
    "last letter in front": lambda text: text[-1] + text[:-1],
    "first and last": lambda text: text[0] + text[-1],
    "without the first": lambda text: text[1:],
    "without the last": lambda text: text[:-1],
    "each letter twice": lambda text: "".join(letter * 2 for letter in text),
    "sorted": lambda text: "".join(sorted(text)),
    "last letter three times": lambda text: text[-1] * 3,
    "an x in front": lambda text: "x" + text,
    "the next letters": lambda text: "".join(chr(ord(letter) + 1) for letter in text),
}


def _string_function(draw: Choices, count: int, allowed: Allowed) -> Row:
    """Apply a function to three to five letters of the first half of the alphabet."""
    name = draw.of(list(_STRING_FUNCTIONS))

    def make(n: int) -> Item:
        text = _text(draw, "abcdefghijklm", 3, 5)
        return Item(f"{name} {text}", text, _STRING_FUNCTIONS[name](text))

    return Row(_distinct(count + 1, make, allowed))


_LIST_FUNCTIONS: dict[str, Callable[[list[int]], list[int]]] = {
    "reversed": lambda numbers: numbers[::-1],
    "sorted": sorted,
    "largest": lambda numbers: [max(numbers)],
    "smallest": lambda numbers: [min(numbers)],
    "sum": lambda numbers: [sum(numbers)],
    "how many": lambda numbers: [len(numbers)],
    "first": lambda numbers: numbers[:1],
    "last": lambda numbers: numbers[-1:],
    "without the first": lambda numbers: numbers[1:],
    "first and last": lambda numbers: [numbers[0], numbers[-1]],
    "one more": lambda numbers: [number + 1 for number in numbers],
    "twice": lambda numbers: [2 * number for number in numbers],
}


def _list_function(draw: Choices, count: int, allowed: Allowed) -> Row:
    """Apply a function to three to five numbers below ten."""
    name = draw.of(list(_LIST_FUNCTIONS))

    def make(n: int) -> Item:
        numbers = [draw.below(10) for _ in range(3 + draw.below(3))]
        text = " ".join(map(str, numbers))
        return Item(f"{name} {text}", text, " ".join(map(str, _LIST_FUNCTIONS[name](numbers))))

    return Row(_distinct(count + 1, make, allowed))


# ---- Copies and sequences ---------------------------------------------------------------------------------------


def _copying(draw: Choices, count: int, allowed: Allowed) -> Row:
    """Repeat three to eight letters."""

    def make(n: int) -> Item:
        text = " ".join(_text(draw, ascii_lowercase, 3, 8))
        return Item(text, text, text)

    return Row(_distinct(count + 1, make, allowed))


_SEQUENCES: dict[str, Callable[[int, int, int], int]] = {
    "the same step again": lambda a, b, k: 2 * b - a,
    "the sum of both": lambda a, b, k: a + b,
    "back to the first": lambda a, b, k: a,
    "the last again": lambda a, b, k: b,
    "the last and a constant": lambda a, b, k: b + k,
    "their distance": lambda a, b, k: b - a,
}


def _sequence(draw: Choices, count: int, allowed: Allowed) -> Row:
    """Continue two rising numbers by the rule of the row."""
    name, constant = draw.of(list(_SEQUENCES)), 1 + draw.below(9)
    rule = f"{name} {constant}" if "constant" in name else name

    def make(n: int) -> Item:
        first = 1 + draw.below(50)
        second = first + 1 + draw.below(30)
        text = f"{first} {second}"
        return Item(f"{rule} {text}", text, str(_SEQUENCES[name](first, second, constant)))

    return Row(_distinct(count + 1, make, allowed))


_GENERATORS: dict[str, Callable[[Choices, int, Allowed], Row]] = {
    "random_map": _random_map,
    "invented_labels": _invented_labels,
    "string_function": _string_function,
    "list_function": _list_function,
    "copying": _copying,
    "sequence": _sequence,
}

NAMES: dict[str, str] = {
    "random_map": "looking up a pair that was shown: letters mapped to letters at random, a new map in every row",
    "invented_labels": "learning a label: two nonsense words for two classes of words or numbers, new in every row",
    "string_function": "finding out which of twelve functions of a string the examples show, and applying it",
    "list_function": "finding out which of twelve functions of a list of numbers the examples show, and applying it",
    "copying": "repeating a sequence of letters that was never seen",
    "sequence": "continuing two numbers by the rule that the examples follow",
}
_DESCRIPTIONS = {
    "random_map": "Every small letter stands for one capital letter.",
    "invented_labels": "Each item belongs to one of two classes with invented names.",
    "string_function": "The same change is made to every string.",
    "list_function": "The same is done with every list of numbers.",
    "copying": "Repeat the letters.",
    "sequence": "Continue each sequence by the same rule.",
}
_PROMPTS = {"random_map": "{input}"}
_CHANCES = {"random_map": 1 / PAIRS, "invented_labels": 0.5}
