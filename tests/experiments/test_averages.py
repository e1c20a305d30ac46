"""Running averages in few bits against the gaps, exact arithmetic, closed forms; what stands still, what does not."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from precision_lab.experiments.averages import (
    BEGINNINGS,
    AveragesConfig,
    AveragesResult,
    Floats,
    Followed,
    Keeping,
    averages,
    decay_weights,
    exact_average,
    follow,
    least_rates,
    run,
)
from precision_lab.numerics.formats import get_format
from precision_lab.presentation.tables.averages import averages_tables
from precision_lab.training.config import TrainingConfig
from precision_lab.training.hyperparameters.arithmetic import frozen_share
from precision_lab.training.loop import train

SMALL = AveragesConfig(
    decays=(0.9, 0.99, 0.999), hidden=(8,), steps=80, rates=(2.0**-20, 0.001, 0.01, 0.1), decay_steps=200
)
BF16, FP16, FP32, RANDOM, KAHAN = map(
    Keeping, ("bf16", "fp16", "fp32", "bf16", "bf16"), (*["ties_to_even"] * 3, "stochastic", "kahan")
)
TWICE = Keeping("bf16", order="mul_add")


@pytest.fixture(scope="module")
def result() -> AveragesResult:
    return run(SMALL)


@pytest.fixture(scope="module")
def weights() -> Floats:
    """Those of the run, from a training of the test's own."""
    training = train(
        TrainingConfig(hidden=(8,), optimizer="adam", learning_rate=1e-3, steps=80, snapshot_steps=tuple(range(80)))
    )
    every = [*(s.parameters for s in training.snapshots), training.parameters]
    return np.stack([np.concatenate([array.ravel() for array in parameters.values()]) for parameters in every])


def floats(numbers: Any) -> Floats:
    return np.array(numbers, np.float32)


def path_to(share: float, steps: int = 300, count: int = 2000) -> Floats:
    """Weights that travel in a straight line, by a share of themselves or a little less."""
    rng = np.random.default_rng(3)
    first = rng.uniform(0.02, 0.4, count) * rng.choice([-1, 1], count)
    far = first * share * rng.choice([-1, 1], count) * rng.uniform(0.9, 1, count)
    return floats(first + np.linspace(0, 1, steps + 1)[:, None] * far)


def ends(rows: Floats, keeping: Keeping, decay: float) -> Floats:
    *_, last = averages(rows, keeping, decay)
    return last


def moves(e: float, w: float, keeping: Keeping, decay: float) -> bool:
    return bool(ends(floats([[e], [w]]), keeping, decay)[0] != np.float32(e))


# ---- what is expected, from elsewhere ----


def test_the_exact_average_of_a_constant_is_the_closed_form() -> None:
    rows = floats([[1.0, -2.0]] + 200 * [[3.0, 0.5]])
    for decay in (0.5, 0.99, 0.9999):
        left = decay**200
        np.testing.assert_allclose(exact_average(rows, decay), [3 - 2 * left, 0.5 - 2.5 * left], rtol=1e-13)


@pytest.mark.parametrize("keeping", [BF16, FP16], ids=lambda keeping: keeping.format)
@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("begin", [0, 40])
def test_the_gaps_tell_which_averages_move(weights: Floats, keeping: Keeping, decay: float, begin: int) -> None:
    """No average is needed to know it; where both agree to a millionth, a tie or float32 decides."""
    rows = weights[begin:]
    first, *others = averages(rows, keeping, decay)
    moved = np.any([row != first for row in others], axis=0)
    ratio = (1 - decay) / least_rates(rows, keeping.format)
    clear = np.abs(ratio - 1) > 1e-6
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(moved[clear], (ratio > 1)[clear])


@pytest.mark.parametrize(
    ("w", "up"),
    [(2.0, False), (2.015625, True), (1.0, False), (0.5, False), (0.494140625, True)],
)
def test_limits_at_a_power_of_two_by_hand(w: float, up: bool) -> None:
    """Half the gap above 1 is 2^-8, below it 2^-9; both ties go to 1, which is even."""
    assert moves(1.0, w, BF16, 1 - 2.0**-8) is up
    assert float(least_rates(floats([[1.0], [2.0]]), "bf16")[0]) == 2.0**-8
    assert float(least_rates(floats([[1.0], [0.5]]), "bf16")[0]) == 2.0**-8
    assert float(least_rates(floats([[1.0], [1.0]]), "bf16")[0]) == np.inf


def test_the_order_shifts_what_moves_nothing_and_does_not_shrink_it() -> None:
    """In a binade: e stays for w in a range of ulp/(1 - d), around e or off by (d e - R(d e))/(1 - d)."""
    d = float(np.float32(1 - 2.0**-6))
    ulp, rate = Fraction(2) ** -7, 1 - Fraction(d)
    for e in (1.2578125, 1.5, 1.7421875):
        product = Fraction(round(Fraction(d) * Fraction(e) / ulp)) * ulp  # R(d e)
        offset = {BF16: Fraction(0), TWICE: (Fraction(e) * Fraction(d) - product) / rate}
        for keeping, middle in offset.items():
            low, high = (Fraction(e) + middle + side * ulp / 2 / rate for side in (-1, 1))
            assert high - low == ulp / rate
            inside, outside = Fraction(1, 1000), -Fraction(1, 1000)
            assert [moves(e, float(x), keeping, d) for x in (low + inside, high - inside)] == [False, False]
            assert [moves(e, float(x), keeping, d) for x in (low + outside, high - outside)] == [True, True]
    assert any(moves(e, e + 0.2, TWICE, d) != moves(e, e + 0.2, BF16, d) for e in np.arange(1, 2, 2.0**-7).tolist())


def test_near_one_the_product_is_the_average_itself() -> None:
    """1 - d below 2^-9: R(d e) is e, so that a smaller weight never pulls an average down, and a larger one may."""
    assert not moves(1.0, 0.0, TWICE, 0.9985)
    assert not moves(1.9921875, 0.0, TWICE, 0.9985)
    assert moves(1.9921875, -1.0, BF16, 0.9985)
    assert moves(1.0, 3.0, TWICE, 0.9985)
    rows = floats([[1.0]] + 3000 * [[3.0]] + 3000 * [[0.0]])
    values = [float(row[0]) for row in averages(rows, TWICE, 0.9985)]
    assert sorted(values) == values
    assert values[-1] > 1


# ---- what stands still, and what does not ----


def test_a_fine_tuning_is_not_followed_in_bf16() -> None:
    """Weights that travel by 3 % of themselves: 2^-9 / .03 = .065, so that none moves with .95, and some with .85."""
    rows = path_to(0.03)
    still = {
        (k, d): follow(rows, k, d, exact_average(rows, d))[0]
        for k in (BF16, FP16, FP32, KAHAN)
        for d in (0.85, 0.95, 0.995)
    }
    assert still[BF16, 0.95] == still[BF16, 0.995] == 1
    assert still[BF16, 0.85] < 0.7
    assert still[FP16, 0.95] == still[FP32, 0.995] == 0
    assert still[KAHAN, 0.95] == 0


def test_weights_that_become_many_times_larger_are_followed() -> None:
    rows = path_to(30.0)
    still, off = follow(rows, BF16, 0.99, exact_average(rows, 0.99))
    assert still == 0
    assert off < 0.1


def test_standing_still_is_off_by_the_whole_way() -> None:
    rows = path_to(0.03)
    exact = exact_average(rows, 0.995)
    assert follow(rows, BF16, 0.995, exact)[1] == pytest.approx(1, abs=0.15)  # the first value is rounded, too
    # in float32 the weights that move nothing are 2^-24/.005 of themselves away at most, of a way of about 1 %
    assert follow(rows, FP32, 0.995, exact)[1] < 2.0**-24 / 0.005 / 0.01
    assert follow(rows[:1].repeat(5, axis=0), BF16, 0.9, rows[0].astype(float)) == (0.0, 0.0)  # nothing travels


def test_chance_and_second_words_follow() -> None:
    rows = path_to(0.3)
    exact = exact_average(rows, 0.995)
    plain, random, kahan = (follow(rows, k, 0.995, exact)[1] for k in (BF16, RANDOM, KAHAN))
    assert kahan < 0.05 < random < 0.3 < plain
    error = ends(rows, RANDOM, 0.995) - exact
    way = exact - rows[0]
    assert abs(float(error @ way / (way @ way))) < 0.01  # noise, and no bias along the way


def test_stochastic_averages_have_random_numbers_of_their_own() -> None:
    rows = path_to(0.3, steps=40, count=50)
    seeds = [np.stack(list(averages(rows, RANDOM, 0.99, seed))) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(seeds[0], seeds[1])
    assert (seeds[0] != seeds[2]).any()
    same = np.stack(list(averages(np.tile(rows[:, :1], 50), RANDOM, 0.99)))
    assert (same != same[:, :1]).any()  # equal weights, different choices


# ---- decay ----


@pytest.mark.parametrize("fmt", ["bf16", "fp16", "fp32"])
def test_decay_takes_nothing_off_up_to_its_limit(fmt: str) -> None:
    """Beside it what the audit of the constants counts over all significands."""
    precision = get_format(fmt).precision
    every = floats(1 + np.arange(0, 1, 2.0 ** -min(precision - 1, 10)))
    limit = 2.0 ** -(precision + 1)
    for rate, still in ((limit, True), (0.9 * limit, True), (2.1 * limit, False)):
        found = decay_weights(every, Keeping(fmt), rate, 10)
        assert (set(found.norms) == {1.0}) is still
        assert (frozen_share(fmt, 1 - rate) == 1) is still


def test_decay_is_exact_where_it_can_be_and_stops_where_it_must() -> None:
    rng = np.random.default_rng(5)
    values = floats(rng.normal(size=4000))
    found = {k: decay_weights(values, k, 3e-3, 1000) for k in (BF16, FP32, RANDOM, KAHAN)}
    for k in (FP32, RANDOM, KAHAN):
        assert found[k].norms[-1] == pytest.approx(0.997**1000, rel=0.02)
        assert found[k].exact == pytest.approx(0.997**1000, rel=1e-12)
    assert found[BF16].norms[-1] == found[BF16].norms[5] == pytest.approx(0.88, abs=0.02)
    assert found[BF16].steps == tuple(range(0, 1001, 100))
    assert decay_weights(np.zeros(3, np.float32), BF16, 0.1, 10).norms == (0.0,) * 11


# ---- the experiment ----


def test_the_result_is_that_of_the_run(result: AveragesResult, weights: Floats) -> None:
    assert len(result.followed) == 2 * 8 * 3
    for beginning, rows in zip(BEGINNINGS, (weights, weights[40:]), strict=True):
        for keeping in (BF16, TWICE, RANDOM):
            expected = follow(rows, keeping, 0.99, exact_average(rows, 0.99), 0)
            assert result.of(beginning, 0.99)[keeping] == Followed(beginning, keeping, 0.99, *expected)
        (reach,) = (r for r in result.reaches if (r.beginning, r.format) == (beginning, "bf16"))
        travels = (rows != rows[0]).any(axis=0)
        least = least_rates(rows, "bf16")[travels]
        assert reach.still == tuple(int((least >= rate).sum()) / least.size for rate in SMALL.rates)
        assert reach.median == np.sort(least)[least.size // 2]


def test_curves_and_averages_agree(result: AveragesResult) -> None:
    """Rates of the curve that are those of averages; float32 keeps 1 - d of the latter."""
    for beginning in BEGINNINGS:
        (reach,) = (r for r in result.reaches if (r.beginning, r.format) == (beginning, "bf16"))
        for decay, rate in ((0.9, 0.1), (0.99, 0.01), (0.999, 0.001)):
            curve = reach.still[reach.rates.index(rate)]
            assert result.of(beginning, decay)[BF16].still == pytest.approx(curve, abs=2 / 600)


def test_controls_of_the_experiment(result: AveragesResult) -> None:
    """float32 follows, bf16 with .999 does not."""
    found = result.of("initialisation", 0.999)
    assert found[FP32].still == 0
    assert found[FP32].off < 1e-3
    assert found[BF16].still > 0.9
    assert found[BF16].off > 0.9
    assert f"bf16 {found[BF16].still:.0%} (" in result.answer
    assert "fp32 none (none)" in result.answer


def test_the_result_is_json(result: AveragesResult) -> None:
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["kind"] == "precision_lab experiment averages"
    assert plain["followed"][0]["keeping"] == ["bf16", "ties_to_even", "lerp"]
    assert AveragesResult.from_dict(plain) == result


def test_the_tables_say_what_was_found(result: AveragesResult) -> None:
    followed, reaches, decayed = averages_tables(result)
    assert all(len(row) == len(table.columns) for table in (followed, reaches, decayed) for row in table.rows)
    found = result.of("initialisation", 0.9)[BF16]
    assert followed.rows[0][:3] == ("initialisation", "bf16", f"{100 * found.still:.2f} / {found.off:.3g}")
    assert followed.rows[1][1] == "bf16 mul_add"
    assert reaches.rows[0][2] == f"{result.reaches[0].median:.3g}"
    assert decayed.rows[0] == ("bf16", "1", "1", f"{result.decayed[10].norms[-1]:.3g}")
    assert decayed.totals is not None
    assert decayed.totals[1] == f"{0.9999**200:.3g}"


def test_progress_goes_through_all_of_it() -> None:
    seen: list[tuple[int, int]] = []
    config = AveragesConfig(
        hidden=(4,), steps=6, decays=(0.9,), keepings=(BF16,), decay_steps=10, decay_keepings=(BF16,)
    )
    run(config, progress=lambda *done: seen.append(done))
    assert seen == [(step, 11) for step in range(1, 12)]


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"decays": ()}, "decays must be a tuple of numbers between 0 and 1"),
        ({"decays": (1.0,)}, "decays must be"),
        ({"rates": (0.0,)}, "rates must be"),
        ({"weight_decays": [0.1]}, "weight_decays must be"),
        ({"keepings": ()}, "keepings must be a tuple of Keeping"),
        ({"keepings": (Keeping("bf17"),)}, "unknown format"),
        ({"decay_keepings": (Keeping("bf16", "collage_plus"),)}, "rule must be one of"),
        ({"keepings": (Keeping("bf16", order="add"),)}, "order must be one of"),
        ({"keepings": (Keeping("bf16", "kahan", "mul_add"),)}, "with kahan 'lerp'"),
        ({"steps": 1}, "steps must be an integer of at least 2"),
        ({"decay_steps": 9}, "decay_steps must be"),
        ({"learning_rate": 0.0}, "learning_rate of .* must be positive"),
        ({"seed": -1}, "seed must be"),
    ],
    ids=str,
)
def test_bad_configurations_are_refused(options: dict[str, Any], needle: str) -> None:
    with pytest.raises(ValueError, match=needle) as caught:
        AveragesConfig(**({"steps": 60} | options))
    assert str(caught.value).isprintable()
