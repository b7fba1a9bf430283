"""What paired times say."""

from __future__ import annotations

import pytest

from lib_accel.bench import stats
from lib_accel.bench.stats import FLOOR, interval, never_slower, paired


def test_a_ratio_above_one_means_that_ours_is_faster() -> None:
    assert paired([30.0, 30.0], [20.0, 20.0]).ratio == 1.5


def test_the_ratio_is_the_median_of_the_pairs_and_not_the_ratio_of_the_medians() -> None:
    assert paired([10.0, 20.0, 30.0], [10.0, 5.0, 30.0]).ratio == 1.0


def test_each_side_keeps_its_own_median() -> None:
    figures = paired([1.0, 5.0, 9.0], [2.0, 3.0, 4.0])
    assert (figures.stock_ms, figures.accelerated_ms) == (5.0, 3.0)


def test_times_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired([1.0, 2.0], [1.0])


def test_the_same_numbers_give_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "DRAWS", 40)  # so few that other draws would show
    ratios = [1 + (0.618034 * n % 1) ** 3 for n in range(200)]
    assert interval(ratios) == interval(ratios)


def test_the_interval_lies_around_the_median() -> None:
    low, high = interval([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6])
    assert 1.0 <= low < 1.3 < high <= 1.6


def test_the_interval_of_equal_ratios_is_that_ratio() -> None:
    assert interval([1.2] * 5) == (1.2, 1.2)


def test_one_outlier_does_not_move_the_interval_far() -> None:
    assert interval([1.0] * 14 + [9.0]) == (1.0, 1.0)


def test_the_lower_end_is_what_a_pair_is_judged_by() -> None:
    stock = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]
    assert paired(stock, [1.0] * 7).ratio_low95 == interval(stock)[0]


def test_a_case_whose_interval_reaches_below_the_floor_is_named() -> None:
    cases = [{"name": "slow", "ratio_low95": FLOOR - 0.001}, {"name": "fast", "ratio_low95": 1.2}]
    assert never_slower(cases) == {"holds": False, "floor": FLOOR, "slower": ["slow"]}


def test_a_case_at_the_floor_is_not_slower() -> None:
    assert never_slower([{"name": "even", "ratio_low95": FLOOR}])["holds"]
