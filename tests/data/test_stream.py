"""The order of rows: complete epochs, the same at any rank count and after a resume."""

from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from psychecore.data.stream import Stream, balanced_shares, share


def test_every_epoch_holds_each_row_once_in_another_order():
    stream = Stream(17, seed=3)
    epochs = [stream.take(17) for _ in range(3)]
    assert all(sorted(epoch) == list(range(17)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert stream.epoch == 3.0


def test_a_resumed_stream_goes_on_where_it_was():
    whole = Stream(10, seed=1)
    expected = whole.take(37)
    first = Stream(10, seed=1)
    taken = first.take(13)
    assert taken + Stream(10, seed=1, position=first.position).take(24) == expected


def test_shares_cover_a_batch_and_differ_by_at_most_one():
    batch = list(range(11))
    shares = [share(batch, rank, 4) for rank in range(4)]
    assert sorted(item for part in shares for item in part) == batch
    assert {len(part) for part in shares} == {2, 3}
    assert share([1], 3, 4) == []


def test_the_worked_example_of_balanced_shares():
    assert balanced_shares([7, 5, 4, 3, 3], 2) == [[0, 3], [1, 2, 4]]


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.integers(1, 3000), max_size=60), world_size=st.integers(1, 9))
def test_balanced_shares_are_a_partition_in_the_order_of_the_batch(lengths, world_size):
    shares = balanced_shares(lengths, world_size)
    assert len(shares) == world_size
    assert sorted(i for part in shares for i in part) == list(range(len(lengths)))
    assert all(part == sorted(part) for part in shares)
    loads = [sum(lengths[i] for i in part) for part in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0)  # the last item moved went to the smallest load


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=7), world_size=st.integers(1, 3))
@example(lengths=[5, 5, 4, 4, 3, 3, 3], world_size=3)  # Graham's worst case: 11, where 9 is possible
def test_the_largest_share_is_near_the_smallest_possible(lengths, world_size):
    def largest(ranks):
        return max(sum(n for n, rank in zip(lengths, ranks, strict=True) if rank == r) for r in range(world_size))

    best = min(largest(ranks) for ranks in product(range(world_size), repeat=len(lengths)))
    greedy = max(sum(lengths[i] for i in part) for part in balanced_shares(lengths, world_size))
    assert best <= greedy <= best * (4 / 3 - 1 / (3 * world_size)) + 1e-9


def test_items_of_equal_length_are_shared_as_evenly_as_their_number_allows():
    assert sorted(map(len, balanced_shares([8] * 11, 4))) == [2, 3, 3, 3]
    assert balanced_shares([8], 3) == [[0], [], []]


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="at least one row"):
        Stream(0, seed=0)
