"""Rotary position settings: three generations of keys, with transformers 5's precedence.

`rope_parameters` is the object of transformers 5; `rope_scaling` that of transformers 4, which replaces it unless it is
empty. Outside of both, `rope_theta` (GPT-NeoX: `rotary_emb_base`) counts if the object has no `rope_theta`.
"""

from typing import Any

from lmjax.config import UserError
from lmjax.config.errors import nearest
from lmjax.interop.huggingface.settings import Settings

_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def rotary(s: Settings, context: int, *, neox: bool = False) -> dict[str, Any]:
    """Read the rotary settings of GPTConfig.

    Args:
        s: Content of config.json.
        context: `max_position_embeddings`.
        neox: Whether the model is a GPT-NeoX, whose keys and defaults differ.

    Raises:
        UserError: A setting is malformed or not supported.
    """
    rope = _table(s)
    base, share = ("rotary_emb_base", "rotary_pct") if neox else ("rope_theta", "partial_rotary_factor")
    rotated = rope.number("partial_rotary_factor", s.number(share, 0.25 if neox else 1.0))
    if rotated != 1:
        raise UserError(f"config.json: lmjax rotates all features of a head, the model {rotated} of them ({share})")
    theta = rope.number("rope_theta", s.number(base, 10_000.0))
    if neox and s.number("rope_theta", theta) != theta:  # which transformers ignores
        raise UserError(
            f"config.json: 'rope_theta' is {s.values['rope_theta']}, but GPT-NeoX uses {theta} (rotary_emb_base); "
            "remove one of them"
        )
    if theta <= 0:
        raise UserError(f"config.json: 'rope_theta' is {theta}, which must be above 0")
    return {"positions": "rotary", "rope_theta": theta, "rope_scaling": _scaling(s, rope, context)}


def _table(s: Settings) -> Settings:
    """The kind and the scaling: `rope_scaling` unless empty, else `rope_parameters`."""
    tables = {name: s.values.get(name) for name in ("rope_scaling", "rope_parameters")}
    for name, table in tables.items():
        if not isinstance(table, dict | None):
            raise UserError(f"config.json: '{name}' must be an object")
        for key, value in (table or {}).items():
            if isinstance(value, dict):
                raise UserError(
                    f"config.json: '{name}' has settings for {key!r:.80} alone; lmjax has the same in all layers"
                )
    name = "rope_scaling" if tables["rope_scaling"] else "rope_parameters"
    return Settings(tables[name] or {}, f"config.json: '{name}'")


def _scaling(s: Settings, rope: Settings, context: int) -> tuple[float, ...]:
    kind = rope.text("rope_type", rope.text("type", "default"))
    match kind:
        case "default":
            return ()
        case "linear":
            scaling: tuple[float, ...] = (rope.number("factor"),)
        case "llama3":
            *factors, original = _LLAMA3
            old = s.number(original, rope.number(original, context))  # of both, transformers takes the outer one
            scaling = (*(rope.number(name) for name in factors), old)
        case _:
            raise UserError(f"config.json: lmjax has no rope_type {kind!r:.80}{nearest(kind, ('linear', 'llama3'))}")
    if min(scaling) <= 0:
        raise UserError(f"config.json: a scaling of positions by {scaling} is invalid; all numbers must be above 0")
    return scaling
