"""Options are one frozen value, checked when they are made."""

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from lib_accel.errors import AccelError, OptionError
from lib_accel.options import Options


def test_options_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Options().enabled = False  # type: ignore[misc]


def test_equal_options_are_one_key() -> None:
    kept = {Options(enabled=True): "first", Options(enabled=False): "second"}
    kept[Options(enabled=True)] = "third"
    assert list(kept.values()) == ["third", "second"]


def test_options_are_given_by_name_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        Options(True)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1, "enabled: got 1 (int), expected bool"),
        ("no", "enabled: got 'no' (str), expected bool"),
        (None, "enabled: got None (NoneType), expected bool"),
    ],
    ids=repr,
)
def test_wrong_value_is_refused_with_option_value_and_what_is_expected(value: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Options(enabled=value)
    assert str(caught.value) == message


def test_wrong_option_is_an_error_of_ours_and_a_value_error() -> None:
    with pytest.raises(OptionError) as caught:
        Options(enabled="no")  # type: ignore[arg-type]
    assert isinstance(caught.value, AccelError)
    assert isinstance(caught.value, ValueError)


def test_changed_copy_is_checked_too() -> None:
    with pytest.raises(OptionError, match="enabled"):
        replace(Options(), enabled=0)


@pytest.mark.parametrize("option", fields(Options), ids=lambda option: option.name)
def test_each_option_has_what_the_settings_page_shows(option: Any) -> None:
    assert option.metadata["label"]
    assert option.metadata["help"]
