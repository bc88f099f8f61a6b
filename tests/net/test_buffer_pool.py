"""Buffers: lent, given back, and lent again."""

import pytest

from ftpkit.net.buffer_pool import BufferPool
from ftpkit.net.frame_stream import PIECE


def test_a_buffer_that_was_given_back_is_lent_again() -> None:
    buffers = BufferPool()
    with buffers.borrow() as first:
        assert len(first) == PIECE
        first[0] = 7
    with buffers.borrow() as second:
        assert second is first


def test_two_buffers_lent_at_once_are_not_the_same_memory() -> None:
    buffers = BufferPool()
    with buffers.borrow() as one, buffers.borrow() as two:
        one[0], two[0] = 1, 2
        assert (one[0], two[0]) == (1, 2)


def test_a_buffer_comes_back_after_an_error() -> None:
    buffers = BufferPool()
    with buffers.borrow() as first:
        pass
    with pytest.raises(ZeroDivisionError), buffers.borrow() as second:
        second[0] = 1 // 0
    with buffers.borrow() as again:
        assert again is first
