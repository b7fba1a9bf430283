"""The stand-in for CUDA graphs: it replays what was done, and spoils whatever a graph would not keep."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_accel.errors import CaptureError
from lib_accel.graphs.recorder import Recorder, TapeRecording

CPU = torch.device("cpu")
WEIGHT = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
PLACES = torch.tensor([0, 0, 1, 1])
LAYER = nn.MultiheadAttention(8, 2, batch_first=True).eval().requires_grad_(False)


def given(seed: int = 1) -> Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))


def recorded(recorder: Recorder, function: Callable[[Tensor], Any]) -> tuple[TapeRecording, Tensor]:
    """A recording, and its input."""
    x = given()

    def outputs() -> Sequence[Tensor]:
        result = function(x)
        return result if isinstance(result, (tuple, list)) else (result,)

    with torch.no_grad():
        return recorder.record(outputs, [x], CPU), x


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def in_place(x: Tensor) -> Tensor:
    y = x * 2
    y += x
    y[:, 0] = x[:, 1]
    y[:, 3].fill_(1.5)
    y[1:].mul_(3)
    return y.clamp_(max=2)


def through_views(x: Tensor) -> Tensor:
    low, high = (x @ WEIGHT).view(2, 2, 2).transpose(1, 2).chunk(2, dim=1)
    return torch.cat([high, low.unsqueeze(-1).squeeze(-1)], dim=1).permute(2, 0, 1)


def into_given_memory(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    torch.add(x, 1, out=y)
    torch._foreach_mul_([y, y[:1]], 2.0)
    return y


def with_parts_of_weights(x: Tensor) -> Tensor:
    first, second = WEIGHT.split(2)
    same = WEIGHT.to(torch.float32).contiguous().detach().reshape(4, 4)
    return (
        x @ torch.cat([second, first])
        + x @ same
        + x @ WEIGHT.expand(4, 4)
        + x @ first.T @ second[:, :2].T @ first
    )


def of_layers(x: Tensor) -> Tensor:
    image = F.conv2d(x.view(1, 2, 2, 2), torch.ones(2, 2, 1, 1))
    tokens = F.group_norm(image, 2).flatten(2).repeat(1, 1, 2)
    return LAYER(tokens, tokens, tokens, need_weights=False)[0] + F.silu(tokens)


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "in place": in_place,
    "views": through_views,
    "given memory": into_given_memory,
    "weights": with_parts_of_weights,
    "layers": of_layers,
    "a view that says it is new": lambda x: x @ torch.ops.aten._unsafe_view(WEIGHT, [4, 4]),
    "a constant": lambda x: torch.zeros(3) + 1,
    "several": lambda x: [x + 1, (x * 2).view(-1), x.max(dim=1).values, *x.topk(2)],
    "a part of an output": lambda x: (x * 2)[:, 1:3].T,
    "the input itself": lambda x: (x, x[:1], x + 1),
    "autocast": lambda x: _under_autocast(x),
    "integers": lambda x: (x > 0).long() * 3,
}


def _under_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        return F.linear(x, WEIGHT)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_replay_computes_the_function_of_what_is_in_the_inputs(recorder: Recorder, name: str) -> None:
    function = FUNCTIONS[name]
    recording, x = recorded(recorder, function)
    for seed in (2, 3, 2):
        x.copy_(given(seed))
        recording.replay()
        expected = function(given(seed))
        pairs = zip(
            recording.outputs, expected if isinstance(expected, (tuple, list)) else [expected], strict=True
        )
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
        recorder.spoil()
    assert recorder.replays == 3


def test_a_replay_does_not_run_the_function(recorder: Recorder) -> None:
    runs: list[int] = []
    recording, _ = recorded(recorder, lambda x: (runs.append(1), x + 1)[1])
    recording.replay()
    assert len(runs) == 1


FORBIDDEN: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda x: x * x.sum().item(),
    "a branch": lambda x: x if x.sum() > 0 else -x,
    "a float": lambda x: x * float(x[0, 0]),
    "places": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 0],
    "a selection": lambda x: torch.masked_select(x, x > 0),
    "a comparison": lambda x: x if torch.equal(x, x) else -x,
    "closeness": lambda x: x if torch.allclose(x, x) else -x,
    "different values": lambda x: torch.unique(x),
    "repeats": lambda x: torch.repeat_interleave(torch.ones(4, dtype=torch.int64)) + x[0, 0],
    "a new number": lambda x: x + torch.tensor(3.0),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_waits_for_the_device_cannot_be_recorded(recorder: Recorder, name: str) -> None:
    with pytest.raises(CaptureError, match="waits for the device"):
        recorded(recorder, FORBIDDEN[name])
    assert not recorder.is_recording(CPU)


def test_repeats_by_a_number_are_recorded(recorder: Recorder) -> None:
    recording, _ = recorded(recorder, lambda x: x.repeat_interleave(2, dim=0) + x[PLACES])
    recording.replay()
    assert torch.equal(recording.outputs[0], 2 * given().repeat_interleave(2, dim=0))


def test_masks_that_only_choose_where_to_write_are_recorded(recorder: Recorder) -> None:
    recording, x = recorded(recorder, lambda x: x.masked_fill(x > 0, 1.0).where(x < 1, 0.0))
    x.copy_(given(2))
    recording.replay()
    assert torch.equal(recording.outputs[0], given(2).masked_fill(given(2) > 0, 1.0).where(given(2) < 1, 0.0))


def test_a_result_from_elsewhere_is_refused(recorder: Recorder) -> None:
    with pytest.raises(CaptureError, match="not computed by operations that can be seen"):
        recorded(recorder, lambda x: PLACES)


def test_an_error_of_the_function_comes_out(recorder: Recorder) -> None:
    def fail(x: Tensor) -> Tensor:
        raise ValueError("bad prompt")

    with pytest.raises(ValueError, match="bad prompt"):
        recorded(recorder, fail)
    assert not recorder.is_recording(CPU)


# What is spoiled


def is_nan(tensor: Tensor) -> bool:
    return bool(tensor.isnan().all())


def test_results_and_inputs_are_spoiled_when_a_turn_ends(recorder: Recorder) -> None:
    with recorder.turn(CPU):
        recording, x = recorded(recorder, lambda x: (x + 1, (x * 2)[:1]))
        recording.replay()
        assert not x.isnan().any()
        assert not any(each.isnan().any() for each in recording.outputs)
    assert all(map(is_nan, (x, *recording.outputs)))


def test_a_turn_spoils_also_if_it_ends_with_an_error(recorder: Recorder) -> None:
    recording, x = recorded(recorder, lambda x: x + 1)
    with pytest.raises(ValueError, match="other"), recorder.turn(CPU):
        raise ValueError("other")
    assert is_nan(x)
    assert is_nan(recording.outputs[0])
    with recorder.turn(CPU) as is_ours:
        assert is_ours


def test_a_replay_spoils_what_others_have_left(recorder: Recorder) -> None:
    first, x = recorded(recorder, lambda x: x + 1)
    second, y = recorded(recorder, lambda x: x - 1)
    first.replay()
    assert is_nan(y)
    y.copy_(given(2))
    second.replay()
    assert is_nan(x)
    assert is_nan(first.outputs[0])
    assert not y.isnan().any()


def test_memory_that_is_not_computed_anew_is_noticed(recorder: Recorder) -> None:
    held: list[Tensor] = []

    def remembering(x: Tensor) -> Tensor:
        held[:] = held or [x * 2]
        return x + held[0]

    first, _ = recorded(recorder, remembering)
    second, _ = recorded(recorder, remembering)  # reads what the first recording holds
    first.replay()
    second.replay()
    assert is_nan(second.outputs[0])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_weights_are_not_spoiled(recorder: Recorder, name: str) -> None:
    before = WEIGHT.clone(), [each.clone() for each in LAYER.parameters()]
    with recorder.turn(CPU):
        recording, _ = recorded(recorder, FUNCTIONS[name])
        recording.replay()
    recording.drop()
    assert torch.equal(WEIGHT, before[0])
    assert all(map(torch.equal, LAYER.parameters(), before[1]))


def test_weights_that_are_the_input_are_not_spoiled(recorder: Recorder) -> None:
    recording, _ = recorded(recorder, lambda x: WEIGHT.view(2, 8) + WEIGHT.detach().view(2, 8))
    recording.spoil()
    assert not WEIGHT.isnan().any()


def test_a_dropped_recording_is_spoiled_and_cannot_be_replayed(recorder: Recorder) -> None:
    recording, _ = recorded(recorder, lambda x: x + 1)
    (output,) = recording.outputs
    recording.drop()
    assert is_nan(output)
    assert (recording.outputs, recording.size_bytes) == ((), 0)
    with pytest.raises(AssertionError, match="replayed after it was dropped"):
        recording.replay()
    recording.drop()


def test_size_is_that_of_all_that_was_computed(recorder: Recorder) -> None:
    recording, x = recorded(recorder, lambda x: (x + 1).view(-1)[:2] * 2)
    assert recording.size_bytes == x.nbytes + 2 * 4


# Whose turn it is


def test_one_turn_at_a_time(recorder: Recorder) -> None:
    with recorder.turn(CPU) as first, recorder.turn(CPU) as second:
        assert (first, second) == (True, False)
    with recorder.turn(CPU) as again:
        assert again


def test_who_gets_no_turn_spoils_nothing(recorder: Recorder) -> None:
    with recorder.turn(CPU):
        recording, _ = recorded(recorder, lambda x: x + 1)
        with recorder.turn(CPU):
            pass
        assert not recording.outputs[0].isnan().any()


def test_only_the_thread_that_records_is_recording(recorder: Recorder) -> None:
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        other = threading.Thread(target=lambda: seen.append(recorder.is_recording(CPU)))
        other.start()
        other.join()
        seen.append(recorder.is_recording(CPU))
        return x + 1

    recorded(recorder, look)
    assert seen == [False, True]
    assert not recorder.is_recording(CPU)
