"""Buffers are borrowed, returned and reused."""

import pytest

from ftpkit.net.buffer_pool import BufferPool
from ftpkit.net.frame_stream import PIECE


def test_a_returned_buffer_is_reused() -> None:
    pool = BufferPool()
    with pool.borrow() as first:
        assert len(first) == PIECE
        first[0] = 7
    with pool.borrow() as second:
        assert second is first


def test_two_borrowed_buffers_are_different_memory() -> None:
    pool = BufferPool()
    with pool.borrow() as one, pool.borrow() as two:
        one[0], two[0] = 1, 2
        assert (one[0], two[0]) == (1, 2)


def test_a_buffer_is_returned_after_an_error() -> None:
    pool = BufferPool()
    with pool.borrow() as first:
        pass
    with pytest.raises(ZeroDivisionError), pool.borrow() as second:
        second[0] = 1 // 0
    with pool.borrow() as again:
        assert again is first
