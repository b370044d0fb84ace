"""The pieces of an answer while it is generated."""

from streamer import redis_keys
from streamer.queues.deltas import Delta, Deltas, DeltaToken


def test_pieces_are_read_in_order_and_announced(redis_client):
    # given a program that waits
    deltas = Deltas(redis_client)
    channel = redis_client.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(redis_keys.deltas("qry_1"))
    channel.get_message(timeout=5)
    # when
    first = Delta(at=0, text="A red", tokens=[DeltaToken(bytes=[65], logprob=-0.5)])
    deltas.add("qry_1", first)
    (entry_id, read), *more = deltas.read("qry_1")
    deltas.add("qry_1", Delta(at=5, text=" car"))
    # then
    assert (read, more) == (first, [])
    assert [each.text for _, each in deltas.read("qry_1", entry_id)] == [" car"]
    assert channel.get_message(timeout=5) is not None
    assert 0 < redis_client.ttl(redis_keys.deltas("qry_1")) <= 600
    deltas.discard("qry_1")
    assert deltas.read("qry_1") == []
    channel.close()


def test_a_reader_passes_over_what_a_second_worker_writes_again():
    # given a reader that has 7 characters and 2 tokens of an answer
    tokens = [DeltaToken(bytes=[n], logprob=-1.0) for n in range(4)]
    again = [
        Delta(at=0, text="A red", tokens=tokens[:1]),
        Delta(at=5, text=" car.", first_token=1, tokens=tokens[1:]),
        Delta(at=10, text=" End", first_token=4),
    ]
    # when
    new = [delta.beyond(7, 2) for delta in again]
    # then
    assert "".join(delta.text for delta in new) == "ar. End"
    assert [delta.at for delta in new] == [7, 7, 10]
    assert [token for delta in new for token in delta.tokens] == tokens[2:]
