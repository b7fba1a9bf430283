"""Reading networks: what is taken from a file, and what each unreadable one is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from lib_accel.errors import AccelError
from lib_accel.lora.formats import Layer, LoraError, Network, read_network

STEM = "lora_unet_mid_block_attentions_0_proj_in"


def tensors(stem: str = STEM, **changes: Tensor) -> dict[str, Tensor]:
    """A network of one linear layer of rank 2."""
    parts = {"lora_down.weight": torch.ones(2, 6), "lora_up.weight": torch.ones(4, 2), **changes}
    return {f"{stem}.{name.replace('__', '.')}": tensor for name, tensor in parts.items()}


def only_layer(network: Network) -> Layer:
    (layer,) = network.layers.values()
    return layer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A network in a file."""
    path = tmp_path / "style.safetensors"
    save_file(tensors(), path)
    return path


def test_file_gives_the_tensors_that_were_saved(file: Path) -> None:
    layer = only_layer(read_network(file))
    assert torch.equal(layer.tensors["down"], torch.ones(2, 6))
    assert torch.equal(layer.tensors["up"], torch.ones(4, 2))


def test_path_may_be_text_and_its_ending_in_capitals(file: Path) -> None:
    capital = file.rename(file.with_suffix(".SAFETENSORS"))
    assert len(read_network(str(capital)).layers) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_factors_keep_their_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in tensors().items()}, tmp_path / "a.safetensors")
    layer = only_layer(read_network(tmp_path / "a.safetensors"))
    assert {tensor.dtype for tensor in layer.tensors.values()} == {dtype}


def test_tensors_of_a_file_are_mapped_not_copied(file: Path) -> None:
    layer, content = only_layer(read_network(file)), file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    starts = [header[f"{STEM}.lora_{role}.weight"]["data_offsets"][0] for role in ("down", "up")]
    assert layer.tensors["up"].data_ptr() - layer.tensors["down"].data_ptr() == starts[1] - starts[0]


def test_name_is_that_of_the_file_unless_one_is_given(file: Path) -> None:
    assert read_network(file).name == "style"
    assert read_network(file, name="other").name == "other"


def test_layer_key_has_component_path_and_the_spelling_of_the_file() -> None:
    (key,) = read_network(tensors("base_model.model.mid_block.attentions.0.proj_in")).layers
    assert key.component == "unet"
    assert key.path == "mid_block_attentions_0_proj_in"
    assert key.spelled == "base_model.model.mid_block.attentions.0.proj_in"


def test_alpha_is_that_of_the_file() -> None:
    assert only_layer(read_network(tensors(alpha=torch.tensor(0.5)))).alpha == 0.5


def test_alpha_without_one_in_the_file_is_the_rank() -> None:
    assert only_layer(read_network(tensors())).alpha == 2.0


def test_alpha_may_stand_in_the_config_beside_a_file_of_peft(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    save_file(tensors("base_model.model.mid_block.attentions.0.proj_in"), file)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 7}))
    assert only_layer(read_network(file)).alpha == 7.0


def test_config_beside_a_file_of_another_name_does_not_count(file: Path) -> None:
    file.with_name("adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 7}))
    assert only_layer(read_network(file)).alpha == 2.0


def identity(source: Path | str | dict[str, Tensor]) -> object:
    return only_layer(read_network(source)).identity


def test_same_file_read_again_is_the_same_network(file: Path) -> None:
    assert identity(file) == identity(str(file))


def test_file_written_anew_is_another_network(file: Path) -> None:
    before = identity(file)
    os.utime(file, ns=(1, 1))
    assert identity(file) != before


def test_copy_of_a_file_is_another_network(file: Path) -> None:
    copy = file.with_name("copy.safetensors")
    copy.write_bytes(file.read_bytes())
    os.utime(copy, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    assert identity(file) != identity(copy)


def test_same_tensors_given_again_are_the_same_network() -> None:
    given = tensors(alpha=torch.tensor(1.0))
    assert identity(given) == identity(dict(given))


@pytest.mark.parametrize("role", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_tensors_that_were_written_to_are_another_network(role: str) -> None:
    given = tensors(alpha=torch.tensor(1.0))
    before = identity(given)
    given[f"{STEM}.{role}"].mul_(2)
    assert identity(given) != before


def test_equal_tensors_are_another_network() -> None:
    one, other = tensors(), tensors()
    assert identity(one) != identity(other)


def test_tensors_that_are_no_part_of_a_layer_are_listed() -> None:
    extra = {"bundle_emb.cat.string_to_param": torch.ones(1), "lora_te_x.alpha": torch.tensor(1.0)}
    assert set(read_network(tensors() | extra).ignored) == set(extra)


BROKEN = {
    "no 'up'": {"lora_unet_x.lora_down.weight": torch.ones(2, 6)},
    "no 'down'": {"lora_unet_x.lora_up.weight": torch.ones(2, 6)},
    "'down' holds NaN": tensors(lora_down__weight=torch.full((2, 6), torch.nan)),
    "'up' holds NaN or infinity": tensors(lora_up__weight=torch.full((4, 2), -torch.inf)),
    "'alpha' holds NaN": tensors(alpha=torch.tensor(torch.nan)),
    "'mid' holds NaN": tensors(lora_mid__weight=torch.full((2, 2, 3, 3), torch.nan)),
    "'down' is torch.int8": tensors(lora_down__weight=torch.ones(2, 6, dtype=torch.int8)),
    r"up \(4, 3\) do not belong": tensors(lora_up__weight=torch.ones(4, 3)),
    r"up \(4, 2, 3, 3\) do not": tensors(lora_up__weight=torch.ones(4, 2, 3, 3)),
    r"down \(2, 6, 1\)": tensors(lora_down__weight=torch.ones(2, 6, 1)),
    r"mid \(3, 2, 3, 3\) do not": tensors(lora_mid__weight=torch.ones(3, 2, 3, 3)),
    r"alpha \(2,\) do not": tensors(alpha=torch.ones(2)),
    "'down' is empty": tensors(lora_down__weight=torch.ones(0, 6), lora_up__weight=torch.ones(4, 0)),
    "two 'down' tensors": tensors(lora_A__one__weight=torch.ones(2, 6)),
    "no LoRA layer among its 0": {},
    "no LoRA layer among its 1 tensors": {"model.diffusion_model.out.2.weight": torch.ones(1)},
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_network_is_told_what_is_wrong(fault: str) -> None:
    with pytest.raises(LoraError, match=f"'style'.*{fault}"):
        read_network(BROKEN[fault], name="style")


def test_file_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(LoraError, match=r"absent\.safetensors.*no such file"):
        read_network(tmp_path / "absent.safetensors")


def test_folder_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(LoraError, match=r"is a folder; give the \.safetensors file"):
        read_network(tmp_path)


@pytest.mark.parametrize("length", [0, 7, 60, -1])
def test_file_that_is_cut_short_is_told_so(tmp_path: Path, length: int) -> None:
    (tmp_path / "style.safetensors").write_bytes(save(tensors())[:length])
    with pytest.raises(LoraError, match=r"'style'.*cut short or no safetensors file.*download it again"):
        read_network(tmp_path / "style.safetensors")


@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt", ".bin", ".CKPT"])
def test_pickle_is_not_read_but_to_be_converted(tmp_path: Path, ending: str) -> None:
    torch.save(tensors(), tmp_path / f"style{ending}")
    with pytest.raises(LoraError, match=r"is a pickle.*convert it to \.safetensors"):
        read_network(tmp_path / f"style{ending}")


def test_file_of_another_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "style.txt").write_text("hello")
    with pytest.raises(LoraError, match=r"ends with '\.txt'; expected a \.safetensors file"):
        read_network(tmp_path / "style.txt")


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_settings_in_the_header_that_say_nothing_are_refused(tmp_path: Path, text: str) -> None:
    save_file(tensors(), tmp_path / "style.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(LoraError, match=r"'style'.*header are no JSON object"):
        read_network(tmp_path / "style.safetensors")


def test_every_error_is_one_line_of_this_library() -> None:
    for broken in BROKEN.values():
        with pytest.raises(AccelError) as caught:
            read_network(broken)
        assert "\n" not in str(caught.value)
