"""Overrides are typed, JSON is exact, a mistake is answered with the nearest valid key."""

import dataclasses
import json
import types
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.config import (
    BatchConfig,
    Config,
    CustomModelConfig,
    CustomObjectiveConfig,
    GRPOConfig,
    MeshConfig,
    ParallelConfig,
    RNNConfig,
    SourceConfig,
    codec,
)
from lmjax.config.codec import apply_overrides, from_json, to_json
from lmjax.config.errors import UserError
from lmjax.config.policies import PolicyConfig
from lmjax.config.rewards import NumberConfig


def values(hint: object) -> st.SearchStrategy:
    """Any value of a type of the typed."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{item.name: values(hints[item.name]) for item in dataclasses.fields(hint)})
    if origin in (typing.Union, types.UnionType):
        return st.one_of(values(arg) for arg in args if arg not in (CustomModelConfig, CustomObjectiveConfig))
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is tuple:
        if args[1] is Ellipsis:
            return st.lists(values(args[0]), max_size=3).map(tuple)
        return st.tuples(*map(values, args))
    finite = st.floats(allow_nan=False, allow_infinity=False)
    return {
        int: st.integers(),
        float: finite,
        bool: st.booleans(),
        str: st.text(max_size=8),
        types.NoneType: st.none(),
    }[hint]


@given(values(Config))
def test_json_round_trip_is_exact(config: Config) -> None:
    assert from_json(to_json(config), Config) == config


@given(values(Config), st.data())
def test_an_override_sets_one_key_and_reads_back_what_json_prints(config: Config, data: st.DataObject) -> None:
    objective = type(config.objective)()
    if isinstance(objective, PolicyConfig):
        objective = dataclasses.replace(objective, reward=type(config.objective.reward)())
    base = Config(data=type(config.data)(), model=type(config.model)(), objective=objective)
    key = data.draw(st.sampled_from(codec.keys(base)))
    value = config
    for name in key.split("."):
        value = getattr(value, name)
    if isinstance(value, str) and value != value.strip("'\" \t\r\n\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0"):
        return  # the shell's quotes and spaces around a value are not part of it
    text = value if isinstance(value, str) else json.dumps(dataclasses.asdict(Value(value))["value"])
    if isinstance(value, tuple) and "\\" in text:
        return  # JSON's escapes are not those of the command line
    changed = apply_overrides(base, [f"{key}={text}"])
    assert {line.partition(":")[0] for line in codec.differences(base, changed)} <= {key}
    for name in key.split("."):
        changed = getattr(changed, name)
    if not isinstance(value, tuple) or not any(isinstance(item, str | SourceConfig) for item in value):
        assert changed == value


def test_another_family_comes_with_its_own_defaults() -> None:
    changed = apply_overrides(Config(), ["model.layers=7", "model.family=rnn", "model.cell=gru", "data.family=text"])
    assert changed == dataclasses.replace(Config(), model=RNNConfig(cell="gru"))
    with pytest.raises(UserError, match=r"model.family: 'rn' is unknown; did you mean 'rnn'\?"):
        apply_overrides(Config(), ["model.family=rn"])


@dataclasses.dataclass
class Value:
    value: object


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.files=[a.txt, b c.txt]", ("a.txt", "b c.txt")),
        ("data.files=a.txt", ("a.txt",)),
        ("data.files=['a,b.txt']", ("'a,b.txt'"[1:-1],)),
        ("data.files=[]", ()),
        ("batch.tokens=((0, 32_768), (4_000_000, 65_536))", ((0, 32768), (4000000, 65536))),
        ("model.layers=1e1", 10),
        ("schedule.peak=1e-3", 1e-3),
        ("schedule.peak=1", 1.0),
        ("model.bias=False", False),
        ("name='x'", "x"),
        ('data.mixture=[{"files": ["a"], "weight": 2}]', (SourceConfig(files=("a",), weight=2.0),)),
    ],
)
def test_overrides_read_what_a_person_types(override: str, expected: object) -> None:
    value = apply_overrides(Config(), [override])
    for name in override.partition("=")[0].split("."):
        value = getattr(value, name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.layer=3", "unknown key 'model.layer'; did you mean 'model.layers'?"),
        ("layers=3", "unknown key 'layers'; did you mean 'model.layers'?"),
        ("scheduel.peak=1", "did you mean 'schedule.peak'?"),
        ("model.layers.x=3", "unknown key 'model.layers.x'"),
        ("model.layers=x", "model.layers: expected an integer, got 'x'"),
        ("model.layers=1.5", "model.layers: expected an integer, got '1.5'"),
        ("schedule.peak=fast", "schedule.peak: expected a number, got 'fast'"),
        ("model.bias=1", "model.bias: expected true or false, got '1'"),
        ("model.norm=batchnorm", "model.norm: 'batchnorm' is not one of layernorm, rmsnorm"),
        ("batch.tokens=(0,3)", "batch.tokens: expected 2 values"),
        ("model=3", "'model' is a group of keys"),
        ("nonsense", "not of the form key.path=value"),
        ("qqqqqq=1", "`lmjax explain` lists the keys"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_way_out(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_overrides(Config(), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the configuration is not JSON"),
        ("[]", "expected an object"),
        ('{"model": {"layer": 3}}', "unknown key 'model.layer'; did you mean 'model.layers'?"),
        ('{"model": {"layers": "3"}}', "model.layers: expected an integer, got '3'"),
        ('{"model": {"layers": true}}', "model.layers: expected an integer"),
    ],
)
def test_a_damaged_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        from_json(text, Config)


def test_a_batch_size_may_be_one_number() -> None:
    expected = BatchConfig(tokens=((0, 8192),))
    assert apply_overrides(Config(), ["batch.tokens=8192"]).batch == expected
    assert apply_overrides(Config(), ["batch.tokens=8.192e3"]).batch == expected
    assert apply_overrides(Config(), ["batch=tokens=8192"]).batch == expected
    assert from_json('{"batch": {"tokens": 8192}}', Config).batch == expected
    assert json.loads(to_json(Config(batch=expected)))["batch"]["tokens"] == [[0, 8192]]
    with pytest.raises(UserError, match=r"batch\.tokens: '8k' is not a number; give one number"):
        apply_overrides(Config(), ["batch.tokens=8k"])
    for tokens in ('"8"', "true", "8.5"):
        with pytest.raises(UserError, match=r"batch\.tokens: expected a list"):
            from_json(f'{{"batch": {{"tokens": {tokens}}}}}', Config)


@pytest.mark.parametrize(
    "text", ["parallel.mesh=data=2,fsdp=4", "parallel.mesh = data = 2, fsdp = 4", "parallel=mesh=(data=2,fsdp=4)"]
)
def test_a_group_needs_no_brackets(text: str) -> None:
    assert apply_overrides(Config(), [text]).parallel == ParallelConfig(mesh=MeshConfig(data=2, fsdp=4))


def test_a_group_may_name_its_family() -> None:
    changed = apply_overrides(Config(), ["model=family=rnn,cell=gru", "objective=(family=grpo, reward=family=number)"])
    assert changed.model == RNNConfig(cell="gru")
    assert changed.objective == GRPOConfig(reward=NumberConfig())


HINTS: list[typing.Any] = [
    str,
    bool,
    int,
    float,
    bool | None,
    tuple[str, ...],
    tuple[int, ...],
    tuple[tuple[str, float, float], ...],
    tuple[tuple[int, tuple[float, ...]], ...],
    tuple[SourceConfig, ...],
]


@given(st.sampled_from(HINTS).flatmap(lambda hint: st.tuples(st.just(hint), values(hint))))
def test_what_is_written_for_the_command_line_reads_back(pair: tuple[typing.Any, object]) -> None:
    """Apart from texts with both kinds of quotes: the syntax has no escapes."""
    hint, value = pair
    texts = _texts(value)
    quotes = '"\\' if hint == tuple[SourceConfig, ...] else ""  # objects are JSON
    if not any(("'" in text and '"' in text) or text.strip() != text or set(text) & set(quotes) for text in texts):
        assert codec._parse(codec.written(value), hint, "key") == value


def _texts(value: object) -> list[str]:
    """The texts in a value."""
    value = dataclasses.astuple(value) if isinstance(value, SourceConfig) else value
    parts = [text for item in value for text in _texts(item)] if isinstance(value, tuple) else []
    return [value] if isinstance(value, str) else parts


def test_a_group_of_keys_is_changed_at_once() -> None:
    changed = apply_overrides(Config(), ["parallel.mesh=(data=2, fsdp=4)"])
    assert changed == apply_overrides(Config(), ["parallel.mesh.data=2", "parallel.mesh.fsdp=4"])
    assert apply_overrides(changed, ["parallel.mesh=(tensor=2)"]).parallel.mesh == MeshConfig(tensor=2)  # as a value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parallel.mesh=(fsdp)", r"parallel\.mesh: 'fsdp' is not of the form key=value"),
        ("parallel.mesh=(fdsp=2)", r"unknown key 'parallel\.mesh\.fdsp'; did you mean 'parallel\.mesh\.fsdp'"),
        ("parallel.mesh=(fsdp=two)", r"parallel\.mesh\.fsdp: expected an integer, got 'two'"),
        ("parallel.mesh=8", r"'parallel\.mesh' is a group of keys; set one of parallel\.mesh\.data"),
    ],
)
def test_a_wrong_group_is_answered_with_its_key(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply_overrides(Config(), [text])


@pytest.mark.parametrize(
    ("optimizer", "warmup"),
    [({"ema": 0.9}, False), ({"ema": 0.9, "ema_warmup": True}, True), ({"ema": 0.0}, True), ({}, True)],
)
def test_a_file_from_before_the_corrected_average_keeps_its_average(optimizer: dict, warmup: bool) -> None:
    tree = json.loads(to_json(Config()))
    del tree["optimizer"]["ema_warmup"]
    tree["optimizer"] |= optimizer
    assert from_json(json.dumps(tree), Config).optimizer.ema_warmup is warmup
