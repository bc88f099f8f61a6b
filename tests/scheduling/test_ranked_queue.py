"""The queue compared with a dictionary that is searched each time."""

from hypothesis import given
from hypothesis import strategies as st

from ftpkit.scheduling.ranked_queue import RankedQueue

steps = st.lists(
    st.tuples(st.sampled_from(["push", "pop", "discard"]), st.integers(0, 5)), max_size=80
)


@given(steps)
def test_it_orders_by_rank_and_by_age(operations: list[tuple[str, int]]) -> None:
    queue: RankedQueue[str] = RankedQueue()
    model: dict[str, tuple[float, int, str]] = {}
    for ticket, (operation, number) in enumerate(operations):
        name = f"item{number}"
        if operation == "push":
            queue.push(name, number % 3, ticket)
            model[name] = (number % 3, ticket, name)
        elif operation == "discard":
            queue.discard(name)
            model.pop(name, None)
        elif operation == "pop" and model:
            best = queue.best()
            assert best == min(model.values())
            queue.discard(best[2])
            del model[best[2]]
        assert list(queue.by_age.items()) == list(model.items())


def test_discarded_items_do_not_accumulate() -> None:
    queue: RankedQueue[int] = RankedQueue()
    queue.push(-1, 0, -1)
    for number in range(10_000):
        queue.push(number, 1, number)
        queue.discard(number)
    assert len(queue._heap) < 50
    assert queue.best() == (0, -1, -1)


def test_items_are_never_compared() -> None:
    queue: RankedQueue[object] = RankedQueue()
    items = [object() for _ in range(100)]
    for ticket, item in enumerate(items):
        queue.push(item, 0, ticket)
    for item in items:
        assert queue.best()[2] is item
        queue.discard(item)
