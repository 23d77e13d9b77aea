"""Every task that comes with lmjax can be loaded, says what it measures, and gives prompts at one and at five shots."""

from pathlib import Path

import pytest

from lmjax.config import UserError
from lmjax.tasks import catalog, shots
from lmjax.tasks.catalog import load, names


def test_every_bundled_task_is_whole() -> None:
    found = names()
    assert {"random_map", "copying"} <= set(found)
    for name, measures in found.items():
        made = load(name)
        assert made.config.name == name
        assert measures == made.config.measures != ""
        assert "\n" not in measures
        assert len(made.documents) >= 200
        document = made.documents[0]
        one, five = (shots.render_prompt(made, document, count) for count in (1, 5))
        assert one.endswith(document.prompt)
        assert len(five) > len(one)
        assert made.config.chance > 0 or not document.choices


def test_a_share_of_a_bundled_task_is_held_out() -> None:
    for name in ("random_map", *[name for name in catalog.names() if (catalog.BUNDLED / name).exists()][:1]):
        tested, trained = (load(name, held_out_share=0.25, held_out=held_out) for held_out in (True, False))
        assert not {one.key for one in tested.documents} & {one.key for one in trained.documents}


def test_a_path_means_the_same_task_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of bundled tasks and of the hub stay, and so does a name that is no file."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "copying").mkdir()  # a bundled task comes first
    monkeypatch.chdir(tmp_path)
    assert catalog.located("mine") == catalog.located("./mine/") == str(tmp_path / "mine")
    bundled = next(iter(names()))
    assert [*map(catalog.located, ["copying", bundled, "hub:mine", "none", ""])] == [
        *("copying", bundled, "hub:mine", "none", "")
    ]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no task 'copyin'; did you mean 'copying'\?"):
        catalog.load("copyin")
