"""The vocabulary beside the code is CLIP's."""

from __future__ import annotations

import pytest

from lib_accel.demo.tokenizer import END, EXCLAMATION, load_tokenizer


def test_words_have_clips_tokens() -> None:
    ids = load_tokenizer()("a photo of a CAT").input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407]


@pytest.mark.parametrize(("pad", "expected"), [(END, 49407), (EXCLAMATION, 0)])
def test_prompt_is_filled_up_with_the_asked_token(pad: str, expected: int) -> None:
    ids = load_tokenizer(pad)("cat", padding="max_length").input_ids
    assert ids == [49406, 2368, 49407, *[expected] * 74]


def test_long_prompt_is_cut_at_77_tokens() -> None:
    ids = load_tokenizer()("cat " * 100, truncation=True).input_ids
    assert (len(ids), ids[-1]) == (77, 49407)
