"""Control tokens: special tokens that only lmjax itself writes between texts."""

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

#: The control tokens of conversations, in the order in which a vocabulary reserves them.
CONTROL = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


def special(name: str) -> AddedToken:
    """Return a special token, which no normalizer changes."""
    return AddedToken(name, normalized=False, special=True)


def reserve(backend: Backend, count: int) -> Backend:
    """Append `count` control tokens: those of conversations, then unnamed ones."""
    if count:
        names = [*CONTROL, *(f"<|reserved_{number}|>" for number in range(len(CONTROL), count))]
        backend.add_special_tokens([special(name) for name in names[:count]])
    return backend
