"""Every task that comes with lmjax can be loaded, says what it measures, and gives prompts at one and at five shots."""

import pytest

from lmjax.config import UserError
from lmjax.prompting import bundled, shots, task


def test_every_bundled_task_is_whole() -> None:
    found = task.names()
    assert {"random_map", "copying"} <= set(found)
    for name, measures in found.items():
        made = task.load(name)
        assert made.config.name == name
        assert measures == made.config.measures != ""
        assert "\n" not in measures
        assert len(made.documents) >= 200
        document = made.documents[0]
        one, five = (shots.prompt(made, document, count) for count in (1, 5))
        assert one.endswith(document.prompt)
        assert len(five) > len(one)
        assert made.config.chance > 0 or not document.choices


def test_a_share_of_a_bundled_task_is_held_out() -> None:
    for name in ("random_map", *[name for name in bundled.names() if (bundled.WORDS / name).exists()][:1]):
        tested, trained = (task.load(name, held_out_share=0.25, held_out=held_out) for held_out in (True, False))
        assert not {one.key for one in tested.documents} & {one.key for one in trained.documents}


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no bundled task 'copyin'; did you mean 'copying'\?"):
        bundled.load("copyin")
