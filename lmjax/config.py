"""The schema of a run: small frozen dataclasses, one per concern.

A configuration is complete and typed: every setting is a field below, `apply_overrides` changes fields from
`a.b=value` strings, `to_json` and `from_json` are exact inverses. Nothing of lmjax (and no JAX) is imported here,
so that a typing error is answered at once.
"""

import dataclasses
import difflib
import json
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal


class UserError(ValueError):
    """A user's mistake: the command line prints its message as one line and exits with status 2."""


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids.

    kind: `bpe` trains a byte-level BPE of `vocab_size` entries on the corpus; `bytes` needs no training (256 + 1);
        `characters` takes every character of the corpus; `file` loads `path`.
    path: a tokenizer.json, a folder with GPT-2's `encoder.json` + `vocab.bpe` (or `vocab.json` + `merges.txt`),
        or a `.tiktoken` rank file.
    """

    kind: Literal["bpe", "bytes", "characters", "file"] = "bpe"
    vocab_size: int = 2048
    path: str = ""


@dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture; the fields mean what they mean in `DataConfig`."""

    source: str = "docstrings"
    files: tuple[str, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class DataConfig:
    """What the model reads.

    source: `docstrings` (English that comes with Python), or `hub:NAME` / `hub:NAME:SUBSET` (a dataset of the hub).
    files: local text, jsonl, json or parquet files, folders or globs, plain or .gz/.zst; given, `source` is unused.
    text_field: the column that holds the text in jsonl, parquet and hub data.
    document: what one document of a plain text file is: a blank-line separated paragraph, a line, or the file.
    mixture: several sources with weights, instead of `source` and `files`; exact over every window of samples.
    mixture_changes: announced changes, ((from_token, (weight, ...)), ...).
    validation: `hash` sends a document to validation by a hash of its content; `tail` cuts the last tokens off.
    packed: attention stays inside documents (segment ids); otherwise windows cut from the stream attend across.
    exclude: half-open ranges of sample ids that are never trained on.
    cache: where prepared tokens are kept; default: the user's cache directory.
    """

    source: str = "docstrings"
    files: tuple[str, ...] = ()
    text_field: str = "text"
    document: Literal["paragraph", "line", "file"] = "paragraph"
    mixture: tuple[SourceConfig, ...] = ()
    mixture_changes: tuple[tuple[int, tuple[float, ...]], ...] = ()
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    validation: Literal["hash", "tail"] = "hash"
    validation_fraction: float = 0.05
    packed: bool = False
    exclude: tuple[tuple[int, int], ...] = ()
    cache: str = ""


@dataclass(frozen=True)
class GPTConfig:
    """A decoder-only Transformer, GPT-2 style or LLaMA style.

    vocab_size: 0 takes the tokenizer's. key_heads: 0 means one per head. head_dim: 0 means width / heads.
    mlp_width: 0 means 4 x width. scan: one compiled block scanned over the layers (fast to compile) or unrolled.
    remat: what the backward pass recomputes: nothing, everything but matrix products, everything.
    dtype: of the matrix products; parameters, softmax and loss are always float32.
    """

    family: Literal["gpt"] = "gpt"
    layers: int = 12
    width: int = 768
    heads: int = 12
    key_heads: int = 0
    head_dim: int = 0
    mlp_width: int = 0
    context: int = 1024
    vocab_size: int = 0
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_epsilon: float = 1e-5
    positions: Literal["learned", "rotary"] = "learned"
    rope_theta: float = 10_000.0
    activation: Literal["gelu", "gelu_tanh", "relu", "swiglu"] = "gelu_tanh"
    bias: bool = True
    tied: bool = True
    qk_norm: bool = False
    dropout: float = 0.0
    init_std: float = 0.02
    scan: bool = True
    remat: Literal["none", "dots", "full"] = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss. z_loss: weight of log(Z)^2 (PaLM, section 5: 1e-4), which keeps the logits near normalised."""

    z_loss: float = 0.0


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer; the defaults are those of GPT-3 (appendix B) and LLaMA (section 2.3).

    Weight decay spares biases, norms and embeddings, by name. ema: decay of an average of the parameters that
    evaluation then uses (0: none). muon_learning_rate_ratio: Muon's matrices learn at this multiple of the peak.
    """

    name: Literal["adamw", "adam", "lion", "adafactor", "muon"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    ema: float = 0.0
    muon_learning_rate_ratio: float = 1.0


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run.

    warmup: share of the run spent rising linearly to `peak`; the first update is never zero.
    shape: `wsd` holds the peak and decays linearly over the last `decay` share of the run.
    final: the rate at the end as a share of the peak (not used by `constant` and `inverse_sqrt`).
    unit: progress counted in updates, or in tokens (the two differ while the batch grows).
    """

    peak: float = 6e-4
    warmup: float = 0.005
    shape: Literal["cosine", "linear", "inverse_sqrt", "wsd", "constant"] = "cosine"
    final: float = 0.1
    decay: float = 0.2
    unit: Literal["updates", "tokens"] = "tokens"


@dataclass(frozen=True)
class BatchConfig:
    """Tokens per update, growing with the tokens seen, in equal microbatches.

    tokens: ((from_token, batch_tokens), ...). growth: jump at each point, or rise linearly between the points.
    microbatch: sequences computed at once over all devices; batch growth changes only how many microbatches an
        update accumulates, so nothing is compiled again.
    """

    tokens: tuple[tuple[int, int], ...] = ((0, 32_768),)
    growth: Literal["steps", "linear"] = "steps"
    microbatch: int = 32


@dataclass(frozen=True)
class TrainConfig:
    """The length of the run and what happens along the way.

    updates: optimizer updates; 0 derives them from `tokens`. evaluate_every: 0 evaluates at the end only.
    evaluate_batches: microbatches of the validation split per evaluation during the run (0: all of it); the last
        evaluation always reads the whole split. profile: (first, last) update of a `jax.profiler` trace.
    baselines: measure the byte unigram and the Kneser-Ney 5-gram on the same split at the end.
    """

    updates: int = 0
    tokens: int = 0
    evaluate_every: int = 0
    evaluate_batches: int = 0
    log_every: int = 1
    sample_tokens: int = 200
    sample_prompt: str = ""
    profile: tuple[int, ...] = ()
    baselines: bool = True


@dataclass(frozen=True)
class CheckpointConfig:
    """every: updates between checkpoints (0: at the end only). keep: the last N. keep_every: and every K-th update."""

    every: int = 0
    keep: int = 3
    keep_every: int = 0


@dataclass(frozen=True)
class GuardConfig:
    """What happens to an update whose loss or gradient is not finite: `skip` leaves the state as it was."""

    policy: Literal["skip", "off"] = "skip"


@dataclass(frozen=True)
class ParallelConfig:
    """devices: how many share each microbatch (data parallel); 0 takes all that divide it."""

    devices: int = 0


@dataclass(frozen=True)
class TrackConfig:
    """Trackers beside metrics.jsonl (extra `[track]`). wandb: the project's name; stays offline without a login."""

    tensorboard: bool = False
    wandb: str = ""


@dataclass(frozen=True)
class Config:
    """A whole run: with `seed` and the journal it determines every bit."""

    name: str = "run"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: GPTConfig = field(default_factory=GPTConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    track: TrackConfig = field(default_factory=TrackConfig)


# ---- JSON -------------------------------------------------------------------------------------------------------


def to_json(config: Any) -> str:
    """The configuration as JSON text; `from_json` gives the same object back."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, cls: type = Config) -> Any:
    """The configuration that `to_json` wrote. UserError: not JSON, an unknown key or a wrong type."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"not a configuration in JSON: {error}") from None
    return _decode(tree, cls, "")


def differences(old: Config, new: Config) -> list[str]:
    """The keys whose values differ, one readable line each."""
    before, after = _flatten(dataclasses.asdict(old)), _flatten(dataclasses.asdict(new))
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys]


# ---- Overrides --------------------------------------------------------------------------------------------------


def apply_overrides(config: Config, overrides: typing.Sequence[str]) -> Config:
    """The configuration with `a.b=value` applied in turn. UserError names the nearest valid key."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"'{override}' is not of the form key.path=value")
        config = _replace(config, key.strip().split("."), value.strip(), key.strip())
    return config


def keys(config: Any, prefix: str = "") -> list[str]:
    """Every key that can be overridden, as dotted paths."""
    result = []
    for item in fields(config):
        value = getattr(config, item.name)
        result += keys(value, f"{prefix}{item.name}.") if is_dataclass(value) else [prefix + item.name]
    return result


def nearest(word: str, choices: typing.Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the choices if none is near."""
    choices = list(choices)
    tail = {choice.rsplit(".", 1)[-1]: choice for choice in reversed(choices)}
    found = difflib.get_close_matches(word, choices, 1) or [
        tail[name] for name in difflib.get_close_matches(word.rsplit(".", 1)[-1], tail, 1)
    ]
    return f"; did you mean '{found[0]}'?" if found else f"; choose from {', '.join(choices)}"


def _replace(node: Any, path: list[str], value: str, key: str, root: Any = None) -> Any:
    root = node if root is None else root
    hints = typing.get_type_hints(type(node))
    name = path[0]
    child = getattr(node, name, None) if name in hints else None
    if name not in hints or (len(path) > 1 and not is_dataclass(child)):
        raise UserError(f"unknown key '{key}'{nearest(key, keys(root))}")
    if len(path) > 1:
        return dataclasses.replace(node, **{name: _replace(child, path[1:], value, key, root)})
    if is_dataclass(child):
        inner = ", ".join(f"{key}.{item.name}" for item in fields(child))
        raise UserError(f"'{key}' is a group of keys; set one of {inner}")
    return dataclasses.replace(node, **{name: _parse(value, hints[name], key)})


def _parse(text: str, hint: Any, key: str) -> Any:
    """A value of type `hint` from command-line text: the type decides how the text is read."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
        parts = _split(inner)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_parse(part, args[0], key) for part in parts)
        if len(parts) != len(args):
            raise UserError(f"{key}: expected {len(args)} values, got '{text}'")
        return tuple(_parse(part, arg, key) for part, arg in zip(parts, args, strict=True))
    if is_dataclass(hint):
        return from_json(text, typing.cast(type, hint))
    if hint is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif hint is int:
        try:
            return int(text)
        except ValueError:
            pass
        try:  # 1e6 is an integer to everyone who types it
            if float(text).is_integer():
                return int(float(text))
        except (ValueError, OverflowError):
            pass
    elif hint is float:
        try:
            return float(text)
        except ValueError:
            pass
    else:
        quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
        return _decode(text[1:-1] if quoted else text, hint, key)
    raise UserError(f"{key}: expected {_describe(hint)}, got '{text}'")


def _split(text: str) -> list[str]:
    """Splits at the commas outside brackets and quotes; a trailing comma is allowed."""
    parts, depth, start, quote = [], 0, 0, ""
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and not text[start:i].strip():
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


# ---- Types ------------------------------------------------------------------------------------------------------


def _decode(value: Any, hint: Any, key: str) -> Any:
    """`value` (as JSON gives it) as an instance of the type `hint`; UserError where it is not one."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        family = value.get("family") if isinstance(value, dict) else None
        members = {typing.get_args(typing.get_type_hints(arg)["family"])[0]: arg for arg in args}
        if family not in members:
            raise UserError(f"{key}.family: '{family}' is unknown{nearest(str(family), members)}")
        return _decode(value, members[family], key)
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{key or 'configuration'}: expected an object, got {value!r}")
        hints = typing.get_type_hints(hint)
        for name in value:
            if name not in hints:
                raise UserError(f"unknown key '{f'{key}.{name}'.lstrip('.')}'{nearest(name, hints)}")
        decoded = {name: _decode(item, hints[name], f"{key}.{name}".lstrip(".")) for name, item in value.items()}
        return typing.cast(type, hint)(**decoded)
    if origin is tuple and isinstance(value, list | tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_decode(item, args[0], key) for item in value)
        if len(value) == len(args):
            return tuple(_decode(item, arg, key) for item, arg in zip(value, args, strict=True))
    elif origin is Literal:
        if value in args:
            return value
        raise UserError(f"{key}: '{value}' is not one of {', '.join(map(str, args))}")
    elif (hint is float and isinstance(value, int) and not isinstance(value, bool)) or type(value) is hint:
        return hint(value)
    raise UserError(f"{key}: expected {_describe(hint)}, got {value!r}")


def _describe(hint: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, "a list" if typing.get_origin(hint) is tuple else str(hint))


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
