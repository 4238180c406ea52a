"""The traffic meter: each byte belongs to one peer, once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy import traffic_meter
from pipeline.policy.traffic_meter import JUMP_MAX, NOTHING, OTHERS, Traffic, TrafficMeter


class Counts:
    """Counts of a peer table, by index."""

    def __init__(self) -> None:
        self.by_index: dict[int, Traffic] = {}

    def __call__(self, index: int) -> Traffic:
        return self.by_index.get(index, NOTHING)

    def grow(self, index: int, received: int, sent: int) -> None:
        self.by_index[index] = self(index) + Traffic(received, sent)


def meter_of(counts: Counts, **peers: int) -> TrafficMeter:
    meter = TrafficMeter(counts)
    for name, index in peers.items():
        meter.begin(index, name)
    return meter


def test_a_byte_is_taken_once() -> None:
    counts = Counts()
    meter = meter_of(counts, ann=0, bob=1)
    counts.grow(0, 10, 100)
    assert meter.take() == {"ann": Traffic(10, 100)}
    assert meter.take() == {}
    counts.grow(0, 1, 0)
    counts.grow(1, 0, 2)
    assert meter.take() == {"ann": Traffic(1, 0), "bob": Traffic(0, 2)}


def test_bytes_before_the_first_peer_of_an_index_belong_to_nobody() -> None:
    counts = Counts()
    counts.grow(3, 7, 7)
    meter = meter_of(counts, ann=3)
    assert meter.take() == {}


def test_the_last_bytes_before_another_peer_gets_an_index_belong_to_the_one_before() -> None:
    counts = Counts()
    meter = meter_of(counts, ann=0)
    counts.grow(0, 5, 0)
    meter.begin(0, "bob")
    counts.grow(0, 7, 0)
    meter.begin(0, "cyd")
    counts.grow(0, 9, 0)
    assert meter.take() == {"ann": Traffic(5, 0), "bob": Traffic(7, 0), "cyd": Traffic(9, 0)}


def test_a_new_session_of_a_peer_at_another_index_goes_on_in_its_account() -> None:
    counts = Counts()
    meter = meter_of(counts, ann=0)
    counts.grow(0, 5, 0)
    meter.begin(4, "ann")
    counts.grow(4, 6, 0)
    counts.grow(0, 1, 0)  # the end of the old session
    assert meter.take() == {"ann": Traffic(12, 0)}


def test_counts_that_shrink_or_jump_are_given_to_nobody_and_counted() -> None:
    counts = Counts()
    meter = meter_of(counts, ann=0)
    counts.by_index[0] = Traffic(1000, 0)
    meter.take()
    counts.by_index[0] = Traffic(0, 5)
    assert meter.take() == {} and meter.implausible == 1
    counts.by_index[0] = Traffic(JUMP_MAX + 1, 5)
    assert meter.take() == {} and meter.implausible == 2
    counts.grow(0, 3, 3)
    assert meter.take() == {"ann": Traffic(3, 3)}


def test_peers_beyond_those_that_are_told_apart_share_an_account() -> None:
    counts = Counts()
    meter = TrafficMeter(counts)
    for number in range(traffic_meter.NAMES_MAX + 2):
        meter.begin(number, f"client:{number}")
        counts.grow(number, 1, 0)
    meter.begin(0, "client:0")  # which is known
    counts.grow(0, 1, 0)
    taken = meter.take()
    assert len(taken) == traffic_meter.NAMES_MAX + 1
    assert taken[OTHERS] == Traffic(2, 0) and taken["client:0"] == Traffic(2, 0)


steps = st.one_of(
    st.tuples(st.just("grow"), st.integers(0, 2), st.integers(0, 1000), st.integers(0, 1000)),
    st.tuples(st.just("begin"), st.integers(0, 2), st.sampled_from(["ann", "bob", "cyd"])),
    st.tuples(st.just("take")),
)


@given(st.lists(steps, max_size=60))
def test_whatever_happens_each_byte_since_the_first_peer_is_in_one_account(found: list[tuple]) -> None:
    counts, expected, owner = Counts(), {}, {}
    meter = TrafficMeter(counts)
    total: dict[str, Traffic] = {}
    for step in [*found, ("take",)]:
        match step:
            case ("grow", index, received, sent):
                counts.grow(index, received, sent)
                if index in owner:
                    name = owner[index]
                    expected[name] = expected.get(name, NOTHING) + Traffic(received, sent)
            case ("begin", index, name):
                meter.begin(index, name)
                owner[index] = name
            case _:
                for name, traffic in meter.take().items():
                    total[name] = total.get(name, NOTHING) + traffic
    assert total == {name: traffic for name, traffic in expected.items() if traffic != NOTHING}
