"""An unknown key is answered with the key that is meant: names of other tools, other families, misspellings."""

import re

import pytest

from lmjax.config import BERTConfig, Config, DirectConfig, UserError
from lmjax.config.codec import apply_overrides, every_key, from_json, keys
from lmjax.config.synonyms import _GROUPS, SYNONYMS, advice

EVERY = {place.name for place in every_key(Config)}
OPTIONS = {"--run-dir", "--resume", "--checkpoint", "--max-tokens"}


def answer(key: str, config: Config | None = None) -> str:
    with pytest.raises(UserError) as caught:
        apply_overrides(config or Config(), [f"{key}=1"])
    message = str(caught.value)
    assert message.startswith(f"unknown key '{key}'; ")
    assert "\n" not in message
    return message.partition("; ")[2]


def test_a_name_of_another_tool_leads_to_keys_that_exist() -> None:
    own, elsewhere = keys(Config()), {place.name: [place.choice] for place in every_key(Config) if place.choice}
    for name, target in SYNONYMS.items():
        named = set(re.findall(r"\b[a-z_]+(?:\.[a-z_0-9]+)+|^(?:seed|name|init_from)\b", target))
        options = set(re.findall(r"--[a-z-]+", target))
        assert named <= EVERY, name
        assert options <= OPTIONS, name
        assert named or options or target.startswith("nothing"), name
        assert name not in EVERY
        assert advice(name, own, elsewhere) == f"; use {target}"
        for group in ("schedule", "model", "train"):
            if f"{group}.{name}" not in EVERY:
                assert advice(f"{group}.{name}", own, elsewhere) == f"; use {target}"


def test_a_name_has_one_meaning() -> None:
    names = [name for names, _ in _GROUPS for name in names.split()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("learning_rate", "use schedule.peak"),
        ("schedule.lr", "use schedule.peak"),
        ("optimizer.lr", "use schedule.peak"),
        ("optimizer.Learning-Rate", "use schedule.peak"),
        (
            "batch_size",
            "use batch.tokens (tokens of an update) and batch.microbatch (sequences computed at a time, over",
        ),
        ("max_steps", "use train.updates"),
        ("peak", "did you mean 'schedule.peak'?"),
        ("dropout", "did you mean 'model.dropout'?"),
        ("tokens", "did you mean 'batch.tokens' or 'train.tokens'?"),
        ("modle.layers", "did you mean 'model.layers'?"),
        ("schedule.paek", "did you mean 'schedule.peak'?"),
        ("train.every", "did you mean 'train.evaluate_every', 'train.log_every' or 'train.sample_every'?"),
        ("model.cell", "it is a key of model.family=rnn, which this configuration does not have"),
        ("data.limit", "it is a key of data.family=records, chat or preferences, which"),
        ("cell", "did you mean 'model.cell' (a key of model.family=rnn)?"),
        ("objective.beta", "it is a key of objective.family=dpo, which"),
        ("beta", "use objective.beta (of objective.family=dpo)"),
        ("gate", "`lmjax explain` lists the keys"),
        ("optimizer.x", "`lmjax explain` lists the keys"),
        ("x" * 1000, "`lmjax explain` lists the keys"),
    ],
)
def test_the_answer_names_what_is_meant(key: str, expected: str) -> None:
    assert answer(key).startswith(expected)


def test_the_answer_depends_on_the_families_of_the_configuration() -> None:
    assert "objective.beta" in keys(Config(objective=DirectConfig()))
    assert answer("beeta", Config(objective=DirectConfig())).startswith("did you mean 'objective.beta'")
    assert answer("model.key_heads", Config(model=BERTConfig())).startswith("it is a key of model.family=gpt")


def test_a_file_is_answered_like_the_command_line() -> None:
    for text, expected in (
        ('{"lr": 1e-3}', "unknown key 'lr'; use schedule.peak"),
        ('{"train": {"max_iters": 5}}', "unknown key 'train.max_iters'; use train.updates"),
        ('{"model": {"cell": "gru"}}', "unknown key 'model.cell'; it is a key of model.family=rnn, which"),
        ('{"model": {"layer": 5}}', "unknown key 'model.layer'; did you mean 'model.layers'?"),
    ):
        with pytest.raises(UserError, match=re.escape(expected)):
            from_json(text, Config)
