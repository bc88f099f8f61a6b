"""The sample of a product that the fast run takes."""

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pairwise import pairwise


def product_of(sizes: list[int]) -> list[tuple[str, ...]]:
    return list(product(*(map(str, range(size)) for size in sizes)))


def pairs_of(cases: list[tuple[str, ...]]) -> set[object]:
    return {pair for case in cases for pair in combinations(enumerate(case), 2)}


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(0, 9), st.data())
def test_every_pair_of_values_meets_in_the_sample(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    whole = product_of(sizes)
    cases = [case for case in whole if data.draw(st.booleans())]
    sample = pairwise(cases, seed)
    assert pairs_of([cases[at] for at in sample]) == pairs_of(cases)


@pytest.mark.parametrize(
    ("sizes", "most"), [([3, 13, 2, 13], 185), ([11, 10, 3], 120), ([2, 2, 2, 2], 7)]
)
def test_the_sample_is_small_and_always_the_same(sizes: list[int], most: int) -> None:
    cases = product_of(sizes)
    sample = pairwise(cases)
    assert len(sample) <= most
    assert sample == pairwise(cases)
    assert sample != pairwise(cases, seed=2)
