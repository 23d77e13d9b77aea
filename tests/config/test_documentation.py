"""The documentation of every key, as the command line and the documentation site show it."""

import typing
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, make_dataclass

import pytest

from lmjax.config import Config, CustomModelConfig, codec, presets
from lmjax.config.documentation import Key, documented_keys, summary

KEYS = list(documented_keys(Config))


def of(name: str, choice: str = "") -> Key:
    (key,) = {key for key in KEYS if (key.name, key.choice) == (name, choice)}
    return key


def test_every_key_of_every_preset_has_a_meaning() -> None:
    documented = {key.name for key in KEYS if key.meaning.endswith(".")}
    for preset in presets.names():
        assert set(codec.keys(presets.load(preset))) <= documented


def test_the_documentation_is_that_of_the_source() -> None:
    assert of("schedule.peak") == Key(
        "schedule.peak", "", "float", (), False, "0.0006", "> 0", "Highest learning rate."
    )
    shape = of("schedule.shape")
    assert shape.options[:5] == ("cosine", "linear", "inverse_sqrt", "wsd", "constant")
    assert shape.is_open
    assert "holds the peak and decays linearly over the last" in shape.meaning  # of two lines
    assert of("model.cell", "model.family=rnn").options == ("tanh", "lstm", "gru")
    assert of("batch.tokens").limits == "sizes >= 1"


def test_the_families_of_a_key_inside_a_family_are_listed() -> None:
    assert {key.choice for key in KEYS if key.name == "objective.reward.tolerance"} == {
        "objective.reward.family=number"
    }
    assert {key.choice for key in KEYS if key.name == "model.key_heads"} == {"model.family=gpt"}


def test_the_objects_of_a_list_have_keys_of_their_own() -> None:
    assert of("data.mixture", "data.family=text").type == "list of (source, files, weight, text_field)"
    assert of("data.mixture[].weight", "data.family=text").default == "1.0"


@pytest.mark.parametrize("hint", [hint for hint in typing.get_type_hints(Config).values() if is_dataclass(hint)])
def test_every_group_has_a_summary(hint: type) -> None:
    assert summary(hint)


@dataclass(frozen=True)
class Derived(CustomModelConfig):
    """A family of a user."""

    family: str = "derived"
    #: Something of its own.
    own: int = 3


def test_the_family_of_a_user_has_the_keys_of_its_base_class() -> None:
    keys = {key.name: key for key in documented_keys(Derived, "model.")}
    assert (keys["model.own"].meaning, keys["model.own"].default) == ("Something of its own.", "3")
    assert keys["model.width"].meaning == next(documented_keys_of(CustomModelConfig, "model.width")).meaning
    assert summary(Derived) == "A family of a user."


def test_a_class_without_source_code_has_keys_without_meaning() -> None:
    made = make_dataclass("Made", [("own", int, 3)], bases=(CustomModelConfig,), frozen=True)
    keys = {key.name: key for key in documented_keys(made, "model.")}
    assert keys["model.own"].meaning == ""
    assert keys["model.width"].meaning
    assert summary(made)


def documented_keys_of(hint: type, name: str) -> Iterator[Key]:
    return (key for key in documented_keys(hint, "model.") if key.name == name)
