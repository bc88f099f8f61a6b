"""Uploads in simulated time, and their outcomes."""

import math

import pytest

from ftpkit.compare.schedules import ScheduleResult, large_from, outcomes, simulate
from ftpkit.compare.trace import Arrival, make_trace
from ftpkit.scheduling.policies import POLICIES

RATE = 12.5e6


def measured(load: float, flows: int) -> dict[tuple[str, str], ScheduleResult]:
    trace = make_trace(flows, load=load, bytes_per_s=RATE, seed=1)
    return {
        (outcome.policy, outcome.size_class): outcome
        for name, policy in POLICIES.items()
        for outcome in outcomes(name, load, trace, simulate(trace, policy, RATE), RATE)
    }


@pytest.mark.parametrize("policy", POLICIES)
def test_every_file_completes_within_the_rate(policy: str) -> None:
    trace = make_trace(500, load=2, bytes_per_s=RATE, seed=3)
    through_s = simulate(trace, POLICIES[policy], RATE)
    assert all(each.at_s < end < math.inf for each, end in zip(trace, through_s, strict=True))
    total_s = sum(each.size for each in trace) / RATE
    assert max(through_s) == pytest.approx(total_s, rel=0.02)


def test_simultaneous_files_follow_the_policy() -> None:
    sizes = [3_000_000, 1_000_000, 2_000_000]
    trace = [Arrival(0.0, size, "ann") for size in sizes]
    first, second, third = simulate(trace, POLICIES["fcfs"], RATE)
    assert first < second < third
    first, second, third = simulate(trace, POLICIES["sjf"], RATE)
    assert second < third < first


def test_outcomes_of_known_files() -> None:
    trace = [Arrival(0.0, 12_500, "ann"), Arrival(1.0, 50_000, "ann"), Arrival(2.0, 10**7, "ann")]
    everything, small, large = outcomes("rr", 0.5, trace, [0.0, 1.006, 3.0], RATE)
    assert [everything.size_class, small.size_class, large.size_class] == ["all", "small", "large"]
    assert (everything.policy, everything.load, everything.flows) == ("rr", 0.5, 3)
    # The last turn takes its time: 1 ms, 4 ms, and the 5.2 ms of a quantum.
    assert small.mean_s == pytest.approx((0.001 + 0.010) / 2)
    assert small.median_s == small.mean_s
    assert small.p99_s == pytest.approx(0.010)
    assert small.mean_slowdown == pytest.approx((1 + 2.5) / 2)
    assert small.p99_slowdown == pytest.approx(2.5)
    assert small.max_wait_s == pytest.approx(0.006)
    assert small.jain == pytest.approx((1 + 0.4) ** 2 / (2 * (1 + 0.16)))
    assert (small.makespan_s, everything.makespan_s) == (1.006, 3.0)
    assert large.mean_s == pytest.approx(1 + 65536 / RATE)


def test_a_class_without_files_is_left_out() -> None:
    trace = [Arrival(0.0, 10, "ann")] * 5
    assert [each.size_class for each in outcomes("rr", 1, trace, [1.0] * 5, RATE)] == [
        "all",
        "small",
    ]


def test_large_is_the_largest_hundredth() -> None:
    trace = [Arrival(0.0, size * 1000, "ann") for size in range(1, 1001)]
    assert large_from(trace) == 991_000
    assert sum(each.size >= 991_000 for each in trace) == 10


def test_at_a_low_load_all_policies_are_alike() -> None:
    found = measured(0.01, 2000)
    means = [found[policy, "small"].mean_slowdown for policy in POLICIES]
    assert max(means) < 1.05


def test_policies_differ_at_a_high_load() -> None:
    found = measured(0.8, 5000)
    mean = {policy: found[policy, "all"].mean_s for policy in POLICIES}
    assert mean["sjf"] < mean["mlfq"] < mean["fair"] < mean["rr"] < mean["fcfs"]
    assert found["fcfs", "small"].p99_s > 5 * found["fair", "small"].p99_s


@pytest.mark.slow
def test_each_policy_is_best_at_its_aim() -> None:
    found = measured(0.8, 100_000)

    def mean_s(policy: str, size_class: str) -> float:
        return found[policy, size_class].mean_s

    # Ideal processor sharing has a mean slowdown of 5.
    assert found["rr", "all"].mean_slowdown == pytest.approx(5, rel=0.25)
    assert mean_s("sjf", "all") <= 0.5 * mean_s("rr", "all")
    assert mean_s("mlfq", "small") <= 1.15 * mean_s("sjf", "small")
    makespan_s = found["fcfs", "all"].makespan_s
    for policy in POLICIES:
        assert found[policy, "all"].makespan_s == pytest.approx(makespan_s, rel=0.03)
        if policy not in ("fcfs", "rr"):
            assert 5 * found[policy, "small"].p99_s <= found["fcfs", "small"].p99_s
            assert mean_s(policy, "large") <= 1.3 * mean_s("rr", "large")
