"""The report counts blocks and reasons, says them in one line, and can be sent as it is."""

import json

import pytest

from lib_accel.report import Generation, ModelReport, Report, Tally


def tally(direct: int = 0, host: int = 0, reason: str = "a reason") -> Tally:
    counted = Tally()
    for _ in range(direct):
        counted.add([])
    for _ in range(host):
        counted.add([reason])
    return counted


def report(
    models: list[ModelReport] | None = None,
    generation: Generation | None = None,
    *,
    enabled: bool = True,
    stand_aside: tuple[str, ...] = (),
) -> Report:
    return Report("1.2.3", enabled, list(stand_aside), models or [], generation or Generation())


UNET = ModelReport("UNet", tally(direct=20, host=5, reason="a hook"))


def test_block_without_reasons_is_counted_as_direct() -> None:
    counted = tally(direct=2)
    assert (counted.direct, counted.host) == (2, 0)
    assert not counted.reasons


def test_block_with_two_reasons_is_one_block_and_counts_each_reason() -> None:
    counted = Tally()
    counted.add(["a hook", "dropout"])
    counted.add(["a hook"])
    assert (counted.direct, counted.host) == (0, 2)
    assert counted.reasons == {"a hook": 2, "dropout": 1}


def test_tallies_do_not_share_their_reasons() -> None:
    first, second = Tally(), Tally()
    first.add(["a hook"])
    assert not second.reasons


@pytest.mark.parametrize(
    ("shown", "summary"),
    [
        (report([UNET], enabled=False, stand_aside=("training",)), "off"),
        (report([UNET], stand_aside=("training", "an old torch")), "standing aside: training; an old torch"),
        (report(), "waiting for a model"),
        (report([ModelReport("UNet", tally(direct=25))]), "UNet: 25 of 25 blocks fast"),
        (report([UNET]), "UNet: 20 of 25 blocks fast · mostly because: a hook"),
        (
            report([ModelReport("UNet", tally(direct=25)), ModelReport("ControlNet", tally(direct=13))]),
            "UNet, ControlNet: 38 of 38 blocks fast",
        ),
        (
            report([ModelReport("UNet", tally(direct=25))], Generation(networks=2, fuse_s=0.1234)),
            "UNet: 25 of 25 blocks fast · 2 LoRAs merged in 123 ms",
        ),
        (
            report([ModelReport("UNet", tally(direct=25))], Generation(networks=1, fuse_s=0.0001)),
            "UNet: 25 of 25 blocks fast · 1 LoRA merged",
        ),
        (
            report([ModelReport("UNet", tally(direct=25))], Generation(direct=300, host=100)),
            "UNet: 25 of 25 blocks fast · 75 % of the last picture's blocks fast",
        ),
        (
            report([ModelReport("UNet", tally(direct=25))], Generation(direct=400)),
            "UNet: 25 of 25 blocks fast",
        ),
    ],
)
def test_summary_says_the_state_in_one_line(shown: Report, summary: str) -> None:
    assert shown.summary == summary


def test_summary_names_the_most_common_reason_of_all_models_and_the_picture() -> None:
    generation = Generation(direct=1)
    for _ in range(4):
        generation.add(["a preview"])
    models = [ModelReport(name, tally(host=3, reason="dropout")) for name in ("UNet", "ControlNet")]
    assert report(models, generation).summary.endswith("mostly because: dropout")


def test_summary_of_a_picture_at_host_speed_says_only_that() -> None:
    generation = Generation()
    generation.add(["the device is mps"])
    assert report([UNET], generation).summary == "standing aside in the last picture: the device is mps"


def test_report_can_be_sent_as_json_and_comes_back_equal() -> None:
    generation = Generation(networks=1, fuse_s=0.5, model_calls=40)
    generation.add(["a preview"])
    sent = report([UNET], generation, stand_aside=("training",)).as_dict()
    assert json.loads(json.dumps(sent)) == sent


def test_sent_report_has_every_number_under_its_name() -> None:
    generation = Generation(direct=7, networks=1, fuse_s=0.5, load_s=0.25, model_calls=40, control_models=2)
    generation.replayed = 3
    generation.add(["a preview"])
    sent = report([UNET], generation).as_dict()
    assert (sent["version"], sent["enabled"], sent["stand_aside"]) == ("1.2.3", True, [])
    blocks = {"direct": 20, "compiled": 0, "host": 5}
    assert sent["models"] == [{"name": "UNet", "blocks": blocks, "reasons": {"a hook": 5}}]
    assert sent["generation"] == {
        "blocks": {"direct": 7, "compiled": 0, "host": 1},
        "reasons": {"a preview": 1},
        "model_calls": 40,
        "replayed": 3,
        "fuse_s": 0.5,
        "load_s": 0.25,
        "networks": 1,
        "control_models": 2,
    }
    assert sent["summary"] == report([UNET], generation).summary


def test_asking_for_the_report_does_not_change_it() -> None:
    shown = report([UNET])
    before = dict(UNET.blocks.reasons)
    shown.as_dict()["models"][0]["reasons"].clear()
    assert shown.summary == shown.summary
    assert UNET.blocks.reasons == before
