"""True rewards are known for generated reviews only."""

from lmjax.config import ChatConfig, DataConfig
from lmjax.data.sources import reviews
from lmjax.rl import truth


def test_the_truth_is_that_of_the_dish_in_the_prompt() -> None:
    known = truth.known(ChatConfig(source="reviews"))
    assert known is not None
    answer = "The soup was perfect and tasty. It was cheap."
    assert known("<|user|>How was the soup?<|assistant|>", answer) == reviews.true_reward(answer, "soup") == 2.25
    assert known("<|user|>How was the pie?<|assistant|>", answer) == reviews.true_reward(answer, "pie") == -0.5


def test_other_data_have_no_known_truth() -> None:
    assert truth.known(ChatConfig()) is None
    assert truth.known(ChatConfig(source="reviews", files=("chats.jsonl",))) is None
    assert truth.known(DataConfig()) is None
