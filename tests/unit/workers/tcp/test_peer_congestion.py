"""The congestion control of real sockets, by losses that the test invents: what the kernel refuses goes to the
supervisor, of which the test plays the part."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from pipeline.counters import ID
from pipeline.policy.congestion import CALM_LEAST_NS, algorithm
from pipeline.transport import socket_options
from pipeline.transport.connection import ESTABLISHED, Connection
from pipeline.transport.socket_options import congestion_control
from pipeline.transport.tcp_info import TcpInfo
from pipeline.wire.uplink import Uplink
from tests.harness.tls_ends import tcp_pair
from workers.tcp import peer_congestion
from workers.tcp.peer_congestion import AGAIN_NS, PeerCongestion

TICK = 100_000_000
MSS = 1448
LOST = TcpInfo(0, 0, MSS, 0, 40_000, 10, 0, 0, 40_000, 400)
WHOLE = LOST._replace(total_retrans=0)


class Ends:
    """The connections to a peer on a host whose control is `host`. The kernel of the test has `algorithms` only, and
    lets this process choose `chosen` alone. Real sockets are set by the real kernel where it has them as well."""

    def __init__(self, setting: str, monkeypatch: pytest.MonkeyPatch, host: str = "cubic") -> None:
        self.host = host
        self.has: dict[socket.socket, str] = {}
        self.choosable = {"cubic", "bbr"}
        self.handed: list[tuple[str, socket.socket]] = []
        self.supervisor: Callable[[str, socket.socket], bool] = self._refuse
        self.counters = memoryview(bytearray(2048)).cast("Q")
        self.sockets: list[socket.socket] = []
        self.infos: dict[Connection, TcpInfo] = {}
        self.now = TICK
        self.congestion = PeerCongestion(setting, 0, lambda *handed: self.supervisor(*handed), self.counters)
        monkeypatch.setattr(peer_congestion, "congestion_control", lambda sock: self.has.get(sock, self.host))
        monkeypatch.setattr(peer_congestion, "set_congestion_control", self._choose)

    def _choose(self, sock: socket.socket, name: str) -> bool:
        if name in self.choosable:
            self.has[sock] = name
        return name in self.choosable

    def _refuse(self, name: str, sock: socket.socket) -> bool:
        self.handed.append((name, sock))
        return True

    def grant(self, name: str, sock: socket.socket) -> bool:
        self.handed.append((name, sock))
        self.has[sock] = name
        return True

    def connect(self, uplink: Uplink | None = None) -> Connection:
        near, far = tcp_pair()
        self.sockets += [near, far]
        made = Connection(near, near.getpeername(), ESTABLISHED, len(self.sockets), 0)
        made.uplink = uplink
        self.infos[made] = TcpInfo(0, 0, MSS, 0, 40_000, 0, 0, 0, 40_000, 0)
        self.congestion.begin(made, self.now)
        return made

    def tick(self, times: int = 1, grows: TcpInfo = WHOLE) -> list[str]:
        """So many updates, with counts that grow so; what each connection has then."""
        for _ in range(times):
            self.now += TICK
            for connection, info in self.infos.items():
                self.infos[connection] = grows._replace(
                    total_retrans=info.total_retrans + grows.total_retrans,
                    data_segs_out=info.data_segs_out + grows.data_segs_out,
                )
            self.congestion.update(self.infos, self.now)
        return [self.has.get(connection.socket, self.host) for connection in self.infos]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ends]]:
    made: list[Ends] = []

    def make(setting: str = "auto", host: str = "cubic") -> Ends:
        made.append(Ends(setting, monkeypatch, host))
        return made[-1]

    yield make
    for each in made:
        for sock in each.sockets:
            sock.close()


@pytest.mark.parametrize(("host", "calm"), [("cubic", "cubic"), ("bbr", "cubic")])
def test_all_connections_follow_the_path_there_and_back(ends: Callable[..., Ends], host: str, calm: str) -> None:
    path = ends(host=host)
    path.connect(), path.connect()
    assert path.tick(10) == [calm, calm]
    assert path.tick(10, LOST) == ["bbr", "bbr"]
    path.connect()
    assert path.tick() == ["bbr"] * 3, "a connection that comes later knows the path"
    assert path.tick(2 * CALM_LEAST_NS // TICK) == [calm] * 3
    assert path.counters[ID["tcp.controls_changed"]] == 2
    assert path.handed == []


def test_a_connection_on_one_of_several_uplinks_has_bbr_from_its_beginning(ends: Callable[..., Ends]) -> None:
    path = ends()
    path.connect(uplink=Uplink(0, "eth0", False))
    assert path.tick() == ["bbr"]
    path.tick(2 * CALM_LEAST_NS // TICK)
    assert path.tick(100, WHOLE._replace(data_segs_out=20_000)) == ["bbr"]
    assert path.congestion.worn is None


def test_a_name_is_set_on_each_connection_whatever_is_lost(ends: Callable[..., Ends]) -> None:
    path = ends("bbr")
    path.connect()
    assert path.tick() == ["bbr"]
    assert path.tick(10, LOST) == ["bbr"]
    assert path.counters[ID["tcp.controls_changed"]] == 0


def test_what_the_kernel_refuses_a_worker_the_supervisor_sets(ends: Callable[..., Ends]) -> None:
    path = ends()
    path.choosable.clear()
    path.supervisor = path.grant
    first = path.connect()
    assert path.tick(10, LOST) == ["bbr"]
    assert path.handed == [("bbr", first.socket)]
    assert path.congestion.idle_may_be_skipped
    assert path.tick(CALM_LEAST_NS // TICK + 50) == ["cubic"]
    assert path.handed[1:] == [("cubic", first.socket)]


def test_a_connection_that_cannot_have_it_keeps_what_the_host_has_and_asks_seldom(ends: Callable[..., Ends]) -> None:
    path = ends()
    path.choosable.clear()
    path.connect()
    assert path.tick(10, LOST) == ["cubic"]
    assert not path.congestion.idle_may_be_skipped
    assert path.tick(3 * AGAIN_NS // TICK, LOST) == ["cubic"]
    assert 3 <= len(path.handed) <= 4
    path.choosable.add("bbr")  # the module has been loaded
    assert path.tick(AGAIN_NS // TICK, LOST) == ["bbr"]
    assert path.congestion.idle_may_be_skipped


def test_a_supervisor_that_has_no_room_is_asked_again_at_once(ends: Callable[..., Ends]) -> None:
    path = ends()
    path.choosable.clear()
    path.supervisor = lambda name, sock: False
    path.connect()
    assert path.tick(10, LOST) == ["cubic"]
    path.supervisor = path.grant
    assert path.tick(1, LOST) == ["bbr"]


def test_a_connection_that_has_ended_is_forgotten(ends: Callable[..., Ends]) -> None:
    path = ends()
    path.choosable.clear()
    gone = path.connect()
    path.tick(10, LOST)
    del path.infos[gone]
    path.congestion.end(gone)
    assert path.congestion.idle_may_be_skipped
    assert path.tick(2 * AGAIN_NS // TICK) == []
    assert len(path.handed) == 1


def test_connections_that_have_had_bbr_are_worn_on_a_fast_path_the_first_one_first(ends: Callable[..., Ends]) -> None:
    path = ends()
    first, second = path.connect(), path.connect()
    fast = WHOLE._replace(data_segs_out=20_000)
    path.tick(10, fast)
    assert path.congestion.worn is None, "none has had BBR"
    assert path.tick(10, LOST) == ["bbr", "bbr"]
    assert path.congestion.worn is None, "it has BBR"
    path.tick(2 * CALM_LEAST_NS // TICK)
    assert path.congestion.worn is None, "the path is slow"
    path.tick(100, fast)
    assert path.congestion.worn is first
    del path.infos[first]
    path.congestion.end(first)
    path.connect()
    path.tick(1, fast)
    assert path.congestion.worn is second
    path.congestion.end(second)
    assert path.congestion.worn is None


def test_a_connection_is_worn_by_bbr_that_it_has_had_and_not_by_bbr_that_it_was_refused(
    ends: Callable[..., Ends],
) -> None:
    path = ends()
    path.choosable.clear()
    refused = path.connect()
    fast = WHOLE._replace(data_segs_out=20_000)
    assert path.tick(10, LOST) == ["cubic"]
    path.tick(2 * CALM_LEAST_NS // TICK)
    path.tick(100, fast)
    assert path.congestion.worn is None
    path.supervisor = path.grant
    assert path.tick(10, LOST) == ["bbr"]
    path.tick(2 * CALM_LEAST_NS // TICK)
    assert path.tick(100, fast) == ["cubic"]
    assert path.congestion.worn is refused


def test_a_connection_whose_kernel_has_found_that_long_segments_vanish_is_kept(ends: Callable[..., Ends]) -> None:
    path = ends()
    first, second = path.connect(), path.connect()
    fast = WHOLE._replace(data_segs_out=20_000)
    path.tick(10, LOST)
    path.infos[first] = path.infos[first]._replace(snd_mss=1024)
    path.congestion.update(path.infos, path.now)
    path.tick(2 * CALM_LEAST_NS // TICK)
    path.tick(100, fast)
    assert path.congestion.worn is second
    path.congestion.end(second)
    assert path.congestion.worn is None


def test_a_connection_that_is_to_have_bbr_is_never_worn(ends: Callable[..., Ends]) -> None:
    path = ends("bbr")
    path.connect()
    path.tick(20, WHOLE._replace(data_segs_out=20_000))
    assert path.congestion.worn is None


def test_the_kernel_changes_a_living_connection() -> None:
    near, far = tcp_pair()
    with near, far:
        host = congestion_control(near)
        first = algorithm(host, lossy=False)
        for name in (first, "reno", first):
            assert socket_options.set_congestion_control(near, name)
            near.sendall(b"x")
            assert far.recv(1) == b"x"
            assert congestion_control(near) == name
