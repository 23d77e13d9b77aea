"""The schema of verifiable rewards: each member is read back, and a function is registered by name."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lmjax.config import codec, extensions, rewards, user_files
from lmjax.config.errors import UserError
from lmjax.config.ranges import check_ranges


@dataclass(frozen=True)
class Settings:
    reward: rewards.VerifiableConfig = field(default_factory=rewards.ExactMatchConfig)


@pytest.mark.parametrize(
    "reward",
    [
        rewards.ExactMatchConfig(column="solution", after="####", ignore_case=True),
        rewards.NumberConfig(tolerance=0.5, separators="'"),
        rewards.RegexConfig(pattern=r"^\d+$", complete=True),
        rewards.JSONSchemaConfig(schema='{"type": "object"}'),
        rewards.FunctionConfig(name="mine"),
    ],
    ids=lambda reward: reward.family,
)
def test_a_reward_is_read_back(reward: rewards.VerifiableConfig) -> None:
    assert codec.from_json(codec.to_json(Settings(reward)), Settings) == Settings(reward)


def test_a_reward_is_selected_on_the_command_line() -> None:
    changed = codec.apply_overrides(Settings(), ["reward.family=number", "reward.tolerance=0.5"])
    assert changed.reward == rewards.NumberConfig(tolerance=0.5)
    with pytest.raises(UserError, match=r"reward.family: 'numbr' is unknown; did you mean 'number'"):
        codec.apply_overrides(Settings(), ["reward.family=numbr"])
    with pytest.raises(UserError, match=r"reward.tolerance = -1"):
        check_ranges(Settings(rewards.NumberConfig(tolerance=-1.0)))


def test_a_file_registers_a_reward(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from lmjax.config.extensions import register_reward\nregister_reward('short', lambda text, row: -len(text))\n"
    )
    with extensions.foreign():
        user_files.load([str(path)])
        assert extensions.get("reward", "short")("abc", {}) == -3
        extension = extensions.find("reward", "short")
        assert extension is not None
        assert extension.path == path
    assert extensions.get("reward", "short") is None
