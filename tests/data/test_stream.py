"""The order of rows: complete epochs, the same at any rank count and after a resume."""

import pytest

from psychecore.data.stream import Stream, share


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


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="at least one row"):
        Stream(0, seed=0)
