from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from precision_lab import PreflightReport, StorageConfig, TensorFileError, audit, preflight, round_to, update_report
from precision_lab.analysis.hyperparameters import OPTIMIZERS
from precision_lab.numerics.codec import codec
from precision_lab.training.optimizers import SGD, _grow, _multiply, start, update, updated_parameters
from precision_lab.training.preflight import ROLES, Outcome, Standstill, Way
from precision_lab.training.storage import CONFIGURATIONS

BF16 = CONFIGURATIONS["pure_bf16"].weights
FP32 = CONFIGURATIONS["fp32"].weights


def ask(weights: Any, **options: Any) -> PreflightReport:
    """With hyperparameters of which bf16 and fp16 lose nothing themselves, if not said otherwise."""
    return preflight(weights, **({"lr": 1e-3, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.0} | options))


def spread(count: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(1)
    w = (rng.standard_normal(count) * 2.0 ** rng.integers(-14, 6, count)).astype(np.float32)
    w[: count // 2] = round_to(w[: count // 2], "bf16")
    w[:40] = 2.0 ** np.arange(-20, 20)
    w[40:44] = 0
    return w


# ---- what is counted ----


@pytest.mark.parametrize("size", [1e-3, 2.0**-9, 1e-5, 3e-7])
def test_frozen_weights_are_those_that_a_brute_force_finds(size: float) -> None:
    w = spread()
    total = ask({"w": w}, lr=size).total
    for name in ("bf16", "fp16", "fp32"):
        stored = np.asarray(round_to(w.astype(np.float64), name))
        up, down = (np.asarray(round_to(stored + u, name)) == stored for u in (size, -size))
        way = next(way for way in total if str(way) == name)
        fits = np.isfinite(stored)
        assert total[way] == Standstill(int(fits.sum()), int(((up | down) & fits).sum()), int((up & down & fits).sum()))


def test_recorded_updates_are_counted_one_by_one() -> None:
    w = spread()
    u = (np.random.default_rng(2).standard_normal(w.size) * 1e-3).astype(np.float32)
    u[::7] = 0
    report = ask({"w": w}, updates={"w": u})
    stored = np.asarray(round_to(w.astype(np.float64), "bf16"))
    lost = int(((np.asarray(round_to(stored + u, "bf16")) == stored) & (u != 0)).sum())
    assert report.total[Way(BF16)] == Standstill(int((u != 0).sum()), lost, lost)
    assert not report.sizes
    # the other ways lose less, and what they lose is lost by ties_to_even too
    others = [report.total[Way(BF16, name)].frozen for name in ("stochastic", "kahan", "collage_light")]
    assert others[1] == others[2]
    assert all(n < lost for n in others)


def test_tensors_that_are_counted_together_have_the_counts_that_each_has_alone() -> None:
    """Empty, tiny, large and in two dtypes; some begin in one lot and end in the next."""
    rng = np.random.default_rng(4)
    sizes = [0, 1, 1, 3, 4000, 0, 90, 30, 10_000, 0, 1, 4095, 1, *[1] * 200, 1 << 21, 5, 0]
    weights: dict[str, Any] = {}
    for i, size in enumerate(sizes):
        w = rng.standard_normal(size).astype(np.float32)
        weights[f"t{i}"] = w.astype(ml_dtypes.bfloat16) if i % 3 == 1 else w.astype(np.float64) if i % 7 == 2 else w
    updates = {
        name: (w.astype(np.float64) * 2.0 ** rng.integers(-30, -3, w.size)).astype(np.float32)
        for name, w in weights.items()
    }
    weights["t3"][1] = np.array(0x7F800001, np.uint32).view(np.float32)  # a signalling NaN, counted beside float64
    report = ask(weights, updates=updates, storage="weights=fp16,update=kahan")
    assert [tensor.info.name for tensor in report.tensors] == list(weights)
    for tensor in report.tensors:
        w, u = weights[tensor.info.name], updates[tensor.info.name]
        for way, found in tensor.standstill.items():
            far = (np.asarray(round_to(u, way.format)) if way.two_words else u).astype(np.float64) * way.reach
            counted, reached = (update_report(w, x, way.format) for x in (u, far))
            lost = counted.nonzero - (reached.nonzero - reached.lost)
            assert found == Standstill(counted.nonzero, lost, lost)
            if way.update == "ties_to_even":
                assert lost == counted.lost


def test_an_update_that_the_second_word_flushes_is_lost() -> None:
    storage = StorageConfig.parse("weights=fp16,update=kahan")
    tiny = 2.0**-26
    by_size = ask({"w": np.full(3, 2.0**-20)}, storage=storage, lr=tiny).total[Way(storage.weights, "kahan")]
    one_by_one = ask({"w": np.full(3, 2.0**-20)}, storage=storage, updates={"w": np.full(3, tiny)})
    assert by_size == one_by_one.total[Way(storage.weights, "kahan")] == Standstill(3, 3, 3)


# ---- the criterion, against what the optimizers do ----


@pytest.mark.parametrize("way", ["kahan", "collage_light"])
@pytest.mark.parametrize("weight", [1.0, 1.0078125, 1.5, -1.25, 0.15625])
def test_two_words_take_updates_from_half_a_gap_over_2_to_the_p_on(way: str, weight: float) -> None:
    """Constant updates move w for ever above the threshold; below it an even w stands still after half a gap."""
    storage = StorageConfig.parse(f"weights=bf16,update={way}")
    half = 2.0 ** (math.frexp(weight)[1] - 1 - 8)

    def distance(u: float, steps: int) -> float:
        state = start(np.array([weight], np.float32), SGD(u), storage)
        for _ in range(steps):
            state, _ = update(state, np.array([-math.copysign(1, weight)], np.float32), SGD(u), storage)
        return float(abs(updated_parameters(state, storage)[0] - np.float32(weight)))

    steps = 800
    above, below = 1.5 * half * 2.0**-8, half * 2.0**-9
    assert distance(above, steps) > 0.8 * steps * above
    blocked = [ask({"w": [weight]}, storage=storage, lr=u).total[Way(BF16, way)].blocked for u in (above, below)]
    assert blocked == [0, 1]
    assert distance(below, 2 * steps) <= 2 * half  # a gap at most, where 1600 steps come to three half gaps


def test_stochastic_rounding_moves_nothing_below_2_to_minus_16_of_a_gap() -> None:
    half = 2.0**-8  # of 1 in bf16
    for u, moves in ((half * 2.0**-14, True), (half * 2.0**-16, False)):
        rounded = round_to(np.full(1 << 18, 1 + u), "bf16", "stochastic", rng=3)
        assert bool((rounded != 1).any()) is moves
        found = ask({"w": [1.0]}, lr=u).total[Way(BF16, "stochastic")]
        assert found.frozen == (0 if moves else 1)


@pytest.mark.parametrize(("rate", "settles"), [(1e-3, True), (3.1e-4, True), (2e-5, False)])
def test_the_second_moment_in_two_words_settles_where_the_criterion_says(rate: float, settles: bool) -> None:
    to = codec(BF16)
    g2 = np.linspace(1, 2, 8, endpoint=False, dtype=np.float32)
    v, r = to.round(np.float32(0.85) * g2), np.zeros(8, np.float32)
    for _ in range(int(1.5 / rate) if settles else 3000):
        v, r = _multiply(v, r, 1 - rate, BF16)
        v, r = _grow(v, r, to.round(np.float32(rate) * g2), to)
    reached = (v.astype(np.float64) + r) / g2
    assert bool((abs(reached - 1) < 0.1).all()) is settles
    rejected = [f for f in ask({"w": [0.5]}, beta2=1 - rate)["collage_plus"].findings if f.rejects]
    assert bool(rejected) is not settles


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_number_of_an_audit_has_a_role_or_is_a_bias_correction(optimizer: str) -> None:
    options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.1} if optimizer == "sgd" else {"weight_decay": 0.1}
    expressions = {finding.expression for finding in audit("bf16", optimizer=optimizer, **options).findings}
    rest = expressions - {expression for role in ROLES.values() for expression in role}
    # sgd adds the decay with the gradient: it is part of the update
    assert all("^t" in expression for expression in rest - {"1 - lr*weight_decay/(1 - momentum)"})


def test_constants_are_judged_in_the_format_of_their_role() -> None:
    report = ask({"w": [0.5]}, storage=("bf16_fp32_moments", "pure_bf16"), beta2=0.999, weight_decay=0.1)
    assert {f.finding.expression for f in report["pure_bf16"].findings if f.rejects} == {
        *("beta2", "beta2*v + (1 - beta2)*g^2", "1 - lr*weight_decay")
    }
    assert {f.finding.expression for f in report["bf16_fp32_moments"].findings if f.rejects} == {"1 - lr*weight_decay"}
    assert not [f for f in report["master_bf16"].findings if f.rejects]
    # stochastically rounded, the decay is not rounded apart
    assert not [f for f in report["bf16_stochastic"].findings if f.role == "weights"]


def test_what_is_fatal_in_fp32_too_rejects_nothing_and_is_said() -> None:
    report = ask({"w": [2.0**-20]}, lr=1e-7, weight_decay=1e-3)
    assert report["pure_bf16"].outcome is Outcome.KEEPS
    assert "fp32 itself loses: 1 - lr*weight_decay becomes 1" in report.verdict


# ---- the verdict ----


def outcomes(report: PreflightReport) -> set[str]:
    return {c.name for c in report.candidates if c.outcome is Outcome.KEEPS}


def test_small_weights_stay_in_bf16() -> None:
    report = ask({"w": np.full(8, 2.0**-10)})
    assert report.cheapest.name == "pure_bf16"
    assert report.verdict.startswith(
        "pure_bf16 is the cheapest that loses nothing that fp32 keeps: 8 bytes per parameter"
    )
    assert outcomes(report) == {name for name in CONFIGURATIONS if "fp16" not in name and "fp8" not in name}


def test_large_weights_need_help_and_which_depends_on_beta2() -> None:
    report = ask({"w": np.ones(8)})
    assert report["pure_bf16"].reasons == (
        "bf16 loses the updates of 100 % of the weights that fp32 moves, 'w' the most",
    )
    assert report.cheapest.name == "bf16_stochastic"
    assert "on average, with noise; without chance: bf16_kahan, 10 bytes" in report.verdict
    report = ask({"w": np.ones(8)}, beta2=0.999, storage="pure_bf16")
    assert report.cheapest.name == "collage_plus"  # as the experiment `storage` finds
    assert "pure_bf16 is not it: bf16 loses" in report.verdict
    assert "never decays" in report.verdict


def test_where_only_fp32_will_do() -> None:
    report = ask({"w": np.ones(8)}, lr=1e-7)
    assert report.cheapest.name == "fp32"
    assert report.verdict.startswith("Nothing cheaper than fp32 (16 bytes per parameter)")
    assert "autocast_bf16, master_bf16" in report.verdict


def test_the_range_of_the_weights() -> None:
    fp16 = ask({"w": np.array([1e5, 1e-9, 0.5, np.inf], np.float32)})["pure_fp16"]
    assert fp16.outcome is Outcome.LOSES
    assert fp16.reasons[:2] == ("1 weights overflow in fp16", "1 weights become 0 in fp16")
    # the copy that forward sees may flush, but not overflow
    assert "1 weights overflow in fp16" in ask({"w": [1e5]})["master_fp16"].reasons
    assert ask({"w": [1e-9]})["master_fp16"].outcome is Outcome.UNKNOWN


def test_gradients_decide_about_fp16() -> None:
    w = {"w": np.full(4, 2.0**-10)}
    assert ask(w)["master_fp16"].reasons == ("gradients in fp16: give gradients to know which loss scale saves them",)
    good = ask(w, gradients={"w": np.array([1e-9, 1e-4, 0, 1e-3], np.float32)})
    assert good["master_fp16"].outcome is Outcome.KEEPS
    assert good.gradients is not None
    wide = ask(w, gradients={"w": np.array([1e-12, 1e4, 0, 1], np.float32)})
    assert wide["master_fp16"].reasons == ("25 % of the gradients are lost in fp16 at the best loss scale, 1",)
    assert wide["pure_bf16"].outcome is Outcome.KEEPS
    unscaled = StorageConfig.parse("master_fp16,loss_scale=none")
    lost = ask(w, gradients={"w": np.array([1e-9, 1e-4, 0, 1e-3], np.float32)}, storage=unscaled)
    assert lost[lost.asked[0]].reasons == ("25 % of the gradients are lost in fp16",)


def test_a_tolerance_is_a_share_of_all_weights() -> None:
    w = {"small": np.full(9, 2.0**-10), "large": np.ones(1)}
    assert ask(w).cheapest.name == "bf16_stochastic"
    assert ask(w, tolerance=0.1).cheapest.name == "pure_bf16"
    assert ask(w)["pure_bf16"].lost == 0.1
    assert "'large' the most" in ask(w)["pure_bf16"].reasons[0]


def test_what_nearly_does_is_said() -> None:
    w = {"w": np.concatenate([np.full(9999, 2.0**-10), [1.0]])}
    assert "Nearly so: pure_bf16 (8 bytes), but bf16 loses the updates of 0.01 %" in ask(w, lr=1e-5, beta2=0.95).verdict


def test_fp8_and_narrow_sums_are_not_known() -> None:
    storage = StorageConfig.parse("weights=bf16,accumulator=bf16")
    report = ask({"w": [2.0**-10]}, storage=storage)
    assert report["fp8_hybrid"].outcome is report[report.asked[0]].outcome is Outcome.UNKNOWN


def test_memory_is_that_of_the_ledger() -> None:
    report = ask({"a": np.zeros((3, 4)), "b": np.ones(5)})
    assert report.parameters == 17
    assert {c.name: c.ledger.total for c in report.candidates}["collage_plus"] == 12 * 17
    assert [c.ledger.bytes_per_parameter for c in report.candidates] == sorted(
        c.ledger.bytes_per_parameter for c in report.candidates
    )
    sgd = preflight({"w": [1.0]}, optimizer="sgd", lr=0.1, gradients={"w": [0.5]})
    assert sgd["fp32"].ledger.bytes_per_parameter == 8


# ---- where updates come from ----


def adam_files(folder: Path, **extra: Any) -> dict[str, np.ndarray]:
    w = {"a": spread(60).reshape(6, 10), "b": spread(90)[60:]}
    save_file(w, folder / "w.safetensors")
    rng = np.random.default_rng(5)
    state: dict[str, np.ndarray] = {}
    for name, value in w.items():
        state[f"{name}.exp_avg"] = (rng.standard_normal(value.shape) * 1e-3).astype(np.float32)
        state[f"{name}.exp_avg_sq"] = (rng.random(value.shape) * 1e-6).astype(np.float32)
        state[f"{name}.step"] = np.array(7, np.float32)
    np.savez(folder / "state.npz", **(state | extra))
    return w | state


def test_adams_moments_give_its_updates(tmp_path: Path) -> None:
    data = adam_files(tmp_path)
    h: dict[str, Any] = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-3}
    report = ask(tmp_path / "w.safetensors", optimizer_state=tmp_path / "state.npz", **h)
    for tensor in report.tensors:
        m, v = (data[f"{tensor.info.name}.{part}"].astype(np.float64) for part in ("exp_avg", "exp_avg_sq"))
        u = -1e-3 * (m / (1 - 0.9**7)) / (np.sqrt(v / (1 - 0.95**7)) + 1e-3)
        recorded = ask({"w": data[tensor.info.name]}, updates={"w": u.astype(np.float32)})
        assert dict(tensor.standstill) == recorded.total
    assert "moments" in report.updates


def test_without_the_step_there_are_no_bias_corrections(tmp_path: Path) -> None:
    state = {"state.w.exp_avg": np.full(2, 0.5), "state.w.exp_avg_sq": np.full(2, 0.25)}
    plain = ask({"w": [1.0, 2.0**-10]}, optimizer_state=state, eps=0.0)
    assert plain.total == ask({"w": [1.0, 2.0**-10]}, updates={"w": np.full(2, -1e-3, np.float32)}).total


def test_weights_without_moments_are_left_out_and_said(tmp_path: Path) -> None:
    weights = {"w": np.ones(2), "running_mean": np.ones(3)}
    report = ask(weights, optimizer_state={"w.exp_avg": np.ones(2), "w.exp_avg_sq": np.ones(2)})
    assert [(i.name, i.skipped) for i in report.skipped] == [
        ("running_mean", "no optimizer state: a buffer, or never trained")
    ]
    assert report.parameters == 2


def test_state_that_lies_beside_the_weights_is_no_weight() -> None:
    content = {"model.w": np.ones(2), "optimizer.state.0.exp_avg": np.ones(2), "optimizer.state.0.step": np.ones(1)}
    report = ask(content)
    assert [t.info.name for t in report.tensors] == ["model.w"]
    assert {i.skipped for i in report.skipped} == {"state of the optimizer, no weights"}


def test_sgd_takes_the_gradients() -> None:
    w, g = np.ones(3), np.array([1.0, 0.1, 0.0], np.float32)
    report = preflight({"w": w}, optimizer="sgd", lr=0.01, gradients={"w": g})
    assert report.total[Way(BF16)] == Standstill(2, 1, 1)  # 0.01 moves 1 in bf16, 0.001 does not


# ---- what it takes, and refuses ----


class Module:
    """Looks like torch.nn.Module where it matters."""

    def named_parameters(self) -> Any:
        return iter([("layer.weight", np.ones((2, 2), np.float32)), ("layer.bias", np.zeros(2, ml_dtypes.bfloat16))])


def test_a_module_is_its_named_parameters() -> None:
    report = ask(Module())
    assert [(t.info.name, t.info.dtype, t.info.shape) for t in report.tensors] == [
        ("layer.weight", "float32", (2, 2)),
        ("layer.bias", "bfloat16", (2,)),
    ]
    assert report.labels == ("layer.weight", "layer.bias")


def test_progress_and_json(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    adam_files(tmp_path)
    report = ask(tmp_path / "w.safetensors", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (90, 90)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["verdict"] == report.verdict
    assert data["cheapest"] == report.cheapest.name
    assert {c["name"] for c in data["candidates"]} == set(CONFIGURATIONS)
    with pytest.raises(KeyError, match="pure_bf16"):
        report["nonsense"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"storage": "pure_bf17"}, "pure_bf17"),
        ({"lr": -1.0}, "lr must be a number above 0"),
        ({"optimizer": "lion"}, "adamw"),
        ({"momentum": 0.9}, "adamw has no momentum"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"updates": {"w": np.ones(3)}}, "shape"),
        ({"updates": {"v": np.ones(2)}}, "'w'"),
        ({"updates": {"w": np.ones(2)}, "optimizer_state": {}}, "not both"),
        ({"optimizer_state": {"w": np.ones(2)}}, "no Adam moments"),
        ({"optimizer_state": {"v.exp_avg": np.ones(2), "v.exp_avg_sq": np.ones(2)}}, "moments of 'v'"),
        ({"optimizer_state": {"w.exp_avg": np.ones(3), "w.exp_avg_sq": np.ones(2)}}, "shape"),
        ({"optimizer_state": {"0.exp_avg": np.ones(2), "0.exp_avg_sq": np.ones(2)}}, "numbered, not named"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        ask({"w": np.ones(2)}, **options)
    assert "\n" not in str(caught.value)


def test_sgd_needs_to_know_the_updates() -> None:
    several: list[dict[str, Any]] = [{}, {"optimizer_state": {}}]
    for options in several:
        with pytest.raises(ValueError, match="gradients"):
            preflight({"w": np.ones(2)}, optimizer="sgd", lr=0.1, **options)


@pytest.mark.parametrize("weights", [{}, {"w": np.arange(3)}, {"w": np.zeros(0)}])
def test_no_weights(weights: Any) -> None:
    with pytest.raises(TensorFileError, match="no weights"):
        ask(weights)


@pytest.mark.parametrize("weights", [3, None, {"w": "text"}, {"w": [None]}])
def test_what_is_no_model(weights: Any) -> None:
    with pytest.raises(ValueError, match=r"mapping of names|array of numbers"):
        ask(weights)
