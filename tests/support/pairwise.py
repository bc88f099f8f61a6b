"""A seeded sample of a product of cases in which every pair of parameter values meets."""

import heapq
import random
from collections.abc import Sequence
from itertools import combinations


def pairwise(cases: Sequence[Sequence[str]], seed: int = 1) -> set[int]:
    """Return the positions of cases that together have every pair of values found in ``cases``.

    A greedy set cover: the case with the most new pairs is next. A case has ever fewer of them,
    so one that has as many as when it was last counted has the most.
    """
    pairs = [set(combinations(enumerate(case), 2)) for case in cases]
    order = random.Random(seed).sample(range(len(cases)), len(cases))
    candidates = [(-len(pairs[at]), rank, at) for rank, at in enumerate(order)]
    heapq.heapify(candidates)
    covered: set[object] = set()
    chosen: set[int] = set()
    while candidates:
        counted, rank, at = heapq.heappop(candidates)
        new = pairs[at] - covered
        if len(new) < -counted:
            heapq.heappush(candidates, (-len(new), rank, at))
        elif new:
            covered |= new
            chosen.add(at)
    return chosen
