"""Error messages: one line, the closest match, all valid names."""

import pytest

from envs.errors import UserError, unknown


@pytest.mark.parametrize(
    "typed, meant", [("reach-multivew", "reach-multiview"), ("ANT-V5", "Ant-v5"), ("reech", "reach-multiview")]
)
def test_names_the_closest_match(typed, meant):
    error = unknown("environment", typed, ["reach-multiview", "Ant-v5", "Humanoid-v5"])
    assert isinstance(error, UserError)
    assert f"unknown environment '{typed}'" in str(error) and f"did you mean '{meant}'?" in str(error)
    assert str(error).endswith("valid: reach-multiview, Ant-v5, Humanoid-v5")


def test_asks_nothing_when_nothing_is_close():
    message = str(unknown("camera", "zzzz", ["left", "front"]))
    assert "did you mean" not in message and message.endswith("valid: left, front")
    assert "\n" not in message


def test_says_so_when_there_is_nothing_valid():
    assert str(unknown("task", "x", [])).endswith("valid: (none)")
