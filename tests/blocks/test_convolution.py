"""`convolve` equals torch's convolution, whichever way it takes, and takes each way where it should."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_accel.blocks import convolution
from lib_accel.blocks.convolution import ConvSpec, convolve

TOLERANCE = 1e-5  # of the norm, in float32: sums of up to 400 products, in another order


class Counter:
    """Stands in front of the product way and counts how often it is taken."""

    def __init__(self) -> None:
        self.calls = 0
        self._real = convolution._convolve_by_product

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
        self.calls += 1
        return self._real(x, weight, bias, spec)


@pytest.fixture
def by_product(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter()
    monkeypatch.setattr(convolution, "_convolve_by_product", counter)
    return counter


@pytest.fixture(params=["small weight", "large weight"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as weights below the threshold are convolved, once as those above it are."""
    if request.param == "large weight":
        monkeypatch.setattr(convolution, "_LARGE_WEIGHT_BYTES", 0)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    return F.conv2d(x, weight, bias, spec.stride, spec.padding, spec.dilation, spec.groups)


def is_near(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).norm() <= TOLERANCE * theirs.norm())


SPECS = [
    (kernel, ConvSpec(stride, padding, dilation, groups))
    for kernel, stride, padding, dilation, groups in product(
        ((1, 1), (3, 3), (2, 5)), ((1, 1), (2, 3)), ((0, 0), (1, 2)), ((1, 1), (2, 1)), (1, 4)
    )
]


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "spec"), SPECS)
def test_convolve_equals_conv2d(kernel: tuple[int, int], spec: ConvSpec, batch: int) -> None:
    weight, bias = torch.randn(12, 8 // spec.groups, *kernel), torch.randn(12)
    x = torch.randn(batch, 8, 7, 9)
    assert is_near(convolve(x, weight, bias, spec), reference(x, weight, bias, spec))


@pytest.mark.usefixtures("_either_way")
def test_convolve_without_bias_equals_conv2d() -> None:
    x, weight = torch.randn(2, 8, 7, 9), torch.randn(12, 8, 3, 3)
    assert is_near(convolve(x, weight, None, ConvSpec()), F.conv2d(x, weight))


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize(("kernel", "padding", "stride"), [(3, 1, 1), (3, 1, 2), (5, (2, 1), 1), (1, 0, 1)])
def test_circular_padding_equals_that_of_a_live_layer(kernel: int, padding: int, stride: int) -> None:
    layer = nn.Conv2d(8, 12, kernel, stride, padding, padding_mode="circular")
    x = torch.randn(2, 8, 5, 6)
    spec = ConvSpec(layer.stride, layer.padding, circular=True)
    with torch.no_grad():
        assert is_near(convolve(x, layer.weight, layer.bias, spec), layer(x))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None, ConvSpec]:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, dilation, padding = pair(1, 4), pair(1, 2), pair(0, 3)
    groups = draw(st.sampled_from([1, 1, 2]))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    height, width = (draw(st.integers(low, low + 6)) for low in least)
    noise = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(draw(st.integers(1, 3)), 4, height, width, generator=noise)
    if draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    weight = torch.randn(6, 4 // groups, *kernel, generator=noise)
    bias = torch.randn(6, generator=noise) if draw(st.booleans()) else None
    return x, weight, bias, ConvSpec(pair(1, 3), padding, dilation, groups)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(case=cases(), is_large=st.booleans())
def test_convolve_equals_conv2d_for_any_shape(
    case: tuple[Tensor, Tensor, Tensor | None, ConvSpec], is_large: bool
) -> None:
    before = [None if each is None else each.clone() for each in case[:3]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_LARGE_WEIGHT_BYTES", 0 if is_large else 2**40)
        ours = convolve(*case)
    assert is_near(ours, reference(*case))
    # The strides of a single pixel are both layouts at once, of an image as of a weight.
    assert ours.is_contiguous() or (1, 1) in (case[0].shape[2:], case[1].shape[2:])
    assert all(old is new or torch.equal(old, new) for old, new in zip(before, case[:3], strict=True))


WEIGHT_BYTES = 12 * 8 * 9 * 4


@pytest.mark.parametrize(("threshold", "calls"), [(WEIGHT_BYTES - 1, 1), (WEIGHT_BYTES, 0)])
def test_product_is_taken_only_above_the_threshold(
    threshold: int, calls: int, by_product: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "_LARGE_WEIGHT_BYTES", threshold)
    convolve(torch.randn(1, 8, 5, 6), torch.randn(12, 8, 3, 3), None, ConvSpec())
    assert by_product.calls == calls


@pytest.mark.parametrize(("batch", "calls"), [(2, 1), (3, 0)])
def test_product_is_taken_only_for_few_positions_in_the_whole_batch(
    batch: int, calls: int, by_product: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "_LARGE_WEIGHT_BYTES", 0)
    convolve(torch.randn(batch, 8, 4, 4), torch.randn(12, 8, 3, 3), None, ConvSpec(padding=(1, 1)))
    assert by_product.calls == calls


def test_positions_are_counted_after_the_stride(by_product: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_LARGE_WEIGHT_BYTES", 0)
    spec = ConvSpec(stride=(2, 2), padding=(1, 1))
    convolve(torch.randn(1, 8, 10, 10), torch.randn(12, 8, 3, 3), None, spec)
    assert by_product.calls == 1


@pytest.mark.parametrize(
    ("dtype", "groups", "channels_last"),
    [
        (torch.bfloat16, 1, False),
        (torch.float64, 1, False),
        (torch.float32, 2, False),
        (torch.float32, 1, True),
    ],
)
def test_product_is_left_to_contiguous_float32_weights_of_one_group(
    dtype: torch.dtype,
    groups: int,
    channels_last: bool,
    by_product: Counter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convolution, "_LARGE_WEIGHT_BYTES", 0)
    weight = torch.randn(12, 8 // groups, 3, 3, dtype=dtype)
    if channels_last:
        weight = weight.to(memory_format=torch.channels_last)
    convolve(torch.randn(1, 8, 7, 9, dtype=dtype), weight, None, ConvSpec(groups=groups))
    assert by_product.calls == 0


def test_weight_of_the_real_models_size_goes_by_product(by_product: Counter) -> None:
    weight = torch.zeros(1280, 1280, 3, 3)
    assert convolve(torch.zeros(2, 1280, 1, 1), weight, None, ConvSpec(padding=(1, 1))).shape[1] == 1280
    assert by_product.calls == 1


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last_image_gives_a_contiguous_result_on_cpu(batch: int) -> None:
    x = torch.randn(batch, 8, 7, 9).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(12, 8, 3, 3), torch.randn(12)
    result = convolve(x, weight, bias, ConvSpec())
    assert result.is_contiguous()
    assert is_near(result, F.conv2d(x, weight, bias))


@pytest.mark.usefixtures("_either_way")
def test_batch_of_none_gives_a_batch_of_none() -> None:
    assert convolve(torch.randn(0, 8, 7, 9), torch.randn(12, 8, 3, 3), None, ConvSpec()).shape == (
        0,
        12,
        5,
        7,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [True, False])
def test_product_is_never_taken_on_a_gpu(
    channels_last: bool, by_product: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "_LARGE_WEIGHT_BYTES", 0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(1, 8, 7, 9, device="cuda").to(memory_format=layout)
    weight = torch.randn(12, 8, 3, 3, device="cuda")
    assert torch.equal(convolve(x, weight, None, ConvSpec()), F.conv2d(x, weight))
    assert by_product.calls == 0


@pytest.mark.parametrize("batch", [1, 2])
def test_images_that_leave_a_model_lie_channels_first_whatever_its_weights_do(batch: int) -> None:
    weight = torch.randn(4, 8, 3, 3).to(memory_format=torch.channels_last)
    x = torch.randn(batch, 8, 7, 9).to(memory_format=torch.channels_last)
    assert convolve(x, weight, None, ConvSpec()).is_contiguous()
    assert not convolve(
        x, weight.repeat(3, 1, 1, 1).to(memory_format=torch.channels_last), None, ConvSpec()
    ).is_contiguous()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(case=cases(), is_last=st.booleans())
def test_the_memory_format_of_a_result_is_foreseen(
    case: tuple[Tensor, Tensor, Tensor | None, ConvSpec], is_last: bool
) -> None:
    x, weight, _, spec = case
    if is_last:
        weight = weight.to(memory_format=torch.channels_last)
    foreseen, image = convolution.result_like(x, weight, spec, x.dtype), convolve(x, weight, None, spec)
    assert foreseen.shape == image.shape
    assert foreseen.stride() == image.stride() or 1 in image.shape
