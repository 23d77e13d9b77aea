"""True rewards of generated data, where they are known; a policy never sees them."""

from collections.abc import Callable

from lmjax.config import ChatConfig
from lmjax.config.chat import AnyDataConfig
from lmjax.data.sources import reviews

#: (text of the prompt, text of the answer) -> the true reward.
Truth = Callable[[str, str], float]


def known(data: AnyDataConfig) -> Truth | None:
    """Return the true reward of answers to the prompts of data, or None if it is not known."""
    if not isinstance(data, ChatConfig) or data.files or data.source != "reviews":
        return None
    return lambda prompt, answer: reviews.true_reward(answer, reviews.dish_of(prompt))
