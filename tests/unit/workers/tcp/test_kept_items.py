"""Items are kept until the kernel of the other end has acknowledged them, by real numbers of real connections."""

from __future__ import annotations

from pipeline.transport.connection import ESTABLISHED, Connection
from pipeline.transport.tcp_info import read_acknowledged
from tests.harness.send_queues import OutboundRing, frame, numbers
from tests.harness.tls_ends import tcp_pair
from tests.support import eventually
from workers.tcp.kept_items import READ_NS, KeptItems
from workers.tcp.send_queue import SendQueue

MORE_THAN_A_WINDOW = 64 << 20


def test_the_kernel_acknowledges_what_was_sent_and_the_rest_is_kept_whole() -> None:
    near, far = tcp_pair()
    with near, far:
        connection = Connection(near, near.getpeername(), ESTABLISHED, 1, 0)
        near.setblocking(False)
        queue = SendQueue(connection)
        kept = queue.kept = KeptItems(connection)
        ring = OutboundRing(slots=4)
        sent = 0
        while sent < MORE_THAN_A_WINDOW:
            queue.bulk.append(ring.item(frame(sent, 3000), head=20, shards=1))
            try:
                while not queue.idle:
                    queue.send()
            except BlockingIOError:
                break  # nobody reads at the far end
            ring.release()
            sent += 1
        assert sent > 10

        def waits() -> int:
            kept.drop_acknowledged(0)
            return len(kept)

        eventually(lambda: 0 < waits() < sent)
        answered = read_acknowledged(near)
        assert answered is not None and answered.rtt_us > 0
        found = kept.take()
        kept_numbers = [number for _, item in found for _, number in numbers(bytes(item.head or b"") + item.body)]
        assert kept_numbers == list(range(sent - len(found), sent))
        assert len(kept) == 0
        kept.drop_acknowledged(READ_NS + 1)
        assert kept.take_arrived() == [], "the process at the far end has read it long ago"


def test_nothing_is_known_of_a_socket_that_is_closed() -> None:
    near, far = tcp_pair()
    far.close()
    near.close()
    assert read_acknowledged(near) is None
