"""The account of each peer's bytes, and quotas, on a real hub: compared with the kernel's counters, through kills."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.accounting import FILE_NAME
from pipeline.accounting.outbox import WRITE_NS
from tests.netns.harness.checked_flow import Flow, transfer
from tests.netns.harness.hub import PLAIN, Hub, established, reaches
from tests.netns.harness.instance import Instance, command
from tests.support import eventually
from tools.lab.network import Lab

MB = 1_000_000
LOST_SECONDS = 10.0  # that a kill of the supervisor may cost, at most
SHARE = 0.03  # frames, headers of super-packets, and packets that a successor sends again
SLACK = MB // 10
STILL_SECONDS = WRITE_NS / 1e9 + 1.0
RATE = {"rate_mbit": 100}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(names=("hub", "one", "two")) as made:
        yield made


def account(instance: Instance, *words: str) -> dict[str, dict[str, Any]]:
    """What `peers --month --json` says, by peer."""
    done = instance.command("peers", "--month", "--json", *words)
    assert done.returncode == 0, done.stderr
    return {row["peer"]: row for row in json.loads(done.stdout)["rows"]}


def total(instance: Instance, peer: str) -> int:
    """Bytes of a peer in the book, in both directions; 0 while there is no book."""
    done = instance.command("peers", "--month", "--json")
    rows = json.loads(done.stdout)["rows"] if done.returncode == 0 else []
    return sum(row["received_bytes"] + row["sent_bytes"] for row in rows if row["peer"] == peer)


def booked(instance: Instance) -> int:
    """Bytes of all peers in the book, whether the instance runs or not."""
    done = command("peers", "--month", "--json", "--config", instance.file)
    return sum(row["received_bytes"] + row["sent_bytes"] for row in json.loads(done.stdout)["rows"])


def carried(instance: Instance) -> int:
    """Bytes of packets, as the kernel counts them on the TUN device, in both directions."""
    device = instance.device()
    return device["rx_bytes"] + device["tx_bytes"]


def wait_for_the_rest(instance: Instance, peer: str) -> None:
    """Until a whole batch has brought nothing more. One that is cut in the middle of a flow is about all of it, too."""
    last = [0.0, -1]

    def is_still() -> bool:
        now = total(instance, peer)
        if now != last[1]:
            last[:] = time.monotonic(), now
        return time.monotonic() - last[0] > STILL_SECONDS

    eventually(is_still, 30, f"no more bytes of {peer} in the book")


def about(bytes_: int) -> Any:
    return pytest.approx(bytes_, rel=SHARE, abs=SLACK)


@pytest.mark.slow
def test_the_account_agrees_with_the_kernel_whatever_is_killed(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, **RATE) as hub:
        one = hub.join(lab["one"], **PLAIN)
        with Flow(one, hub.server) as flow, Flow(hub.server, one) as back:
            for name in ("tcp-0", "tun-0", "tcp-0", "tun-0"):
                pid = hub.server.signal_worker(name, 9)
                hub.server.wait_until_replaced(name, pid)
                flow.wait_for(MB)
                back.wait_for(MB)
        eventually(lambda: total(hub.server, "one") == about(carried(hub.server)), 20, "the account of the hub")
        host = hub.server.node.address
        eventually(lambda: total(one, host) == about(carried(one)), 20, "the account of the client")
        wait_for_the_rest(hub.server, "one")
        row, device = account(hub.server)["one"], hub.server.device()
        assert row["received_bytes"] == about(device["rx_bytes"])
        arrived = one.device()["rx_bytes"]  # a killed worker takes with it what it had read and not sent
        assert arrived * (1 - SHARE) - SLACK <= row["sent_bytes"] <= device["tx_bytes"] * (1 + SHARE) + SLACK
        transfer(one, hub.server, streams=1, size=10 * MB)
        transfer(hub.server, one, streams=1, size=5 * MB)

        def moved() -> tuple[int, int]:
            now = account(hub.server)["one"]
            return now["received_bytes"] - row["received_bytes"], now["sent_bytes"] - row["sent_bytes"]

        later = hub.server.device()
        both = about(later["rx_bytes"] - device["rx_bytes"]), about(later["tx_bytes"] - device["tx_bytes"])
        eventually(lambda: moved() == both, 20, "both directions in the account")

        # the supervisor, under load: no more than ten seconds are missing, and nothing is there twice
        before = total(hub.server, "one")
        zero = carried(hub.server)
        with pytest.raises((OSError, AssertionError)), Flow(one, hub.server, limit=1 << 40) as flow:
            flow.wait_for(2 * MB)
            surely = (carried(hub.server) - zero) * (1 - SHARE) - SLACK
            eventually(lambda: booked(hub.server) - before >= surely, LOST_SECONDS, "what was carried is in the book")
            carried_at_last = carried(hub.server) - zero
            hub.server.kill()
            raise AssertionError("the stream ends with the hub")
        added = booked(hub.server) - before
        assert MB < surely <= added <= carried_at_last * (1 + SHARE) + SLACK

        hub.start_again()
        assert total(hub.server, "one") == about(before + added)
        transfer(one, hub.server, streams=1, size=5 * MB)
        now = carried(hub.server)
        assert hub.server.stop() == 0
        assert booked(hub.server) == about(before + added + now)
        state = Path(hub.server.config["state_dir"])
        assert sorted(file.name for file in state.iterdir() if file.name.startswith(FILE_NAME)) == [FILE_NAME]
        hub.start_again()


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def test_a_full_disk_costs_the_account_alone_and_nothing_is_missing_when_there_is_room(
    lab: Lab, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk, Hub(lab, tmp_path, state_dir=str(disk / "state")) as hub:
        one = hub.join(lab["one"], **PLAIN)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        for path in (disk / "state").glob(f"{FILE_NAME}*"):
            path.unlink()  # a new one finds no room at all
        with Flow(one, hub.server) as flow:
            flow.wait_for(5 * MB)
            hub.server.wait_for_log("cannot be written", 15)
            flow.wait_for(MB)
        notes = hub.server.running()["notes"]
        assert any("accounting" in note and "cannot be written" in note for note in notes), notes
        assert hub.server.running()["accounting"]["failures"] > 0
        filler.unlink()
        eventually(lambda: total(hub.server, "one") == about(carried(hub.server)), 20, "the whole account")
        hub.server.wait_for_log("is written again")  # the file has it a moment before the supervisor knows
        assert hub.server.log.count("cannot be written") == 1


def used_up(hub: Hub, peer: str) -> bool:
    return hub.peers()[peer]["quota_state"] != "open"


def test_a_peer_that_has_used_up_its_quota_is_out_and_told_until_it_gets_a_greater_one(
    lab: Lab, tmp_path: Path
) -> None:
    with Hub(lab, tmp_path) as hub:
        one = hub.join(lab["one"], "", "--quota", "0.01", **PLAIN)
        two = hub.join(lab["two"], **PLAIN)
        with pytest.raises((OSError, AssertionError)), Flow(one, hub.server, limit=1 << 40):
            eventually(lambda: used_up(hub, "one"), what="the quota is used up")
            raise AssertionError("the stream ends with the session")
        eventually(lambda: not established(one), what="it is out")
        one.wait_for_log("refused by the server: the quota of 10 MB is used up until 1 ")
        eventually(
            lambda: "the quota of 10 MB is used up" in str(one.running()["server"]["trouble"]), what="its status"
        )
        assert hub.server.log.count("peer one: 100 % of its quota of 10 MB is used up, until 1 ") == 1
        shown = hub.server.command("peers").stdout
        assert "quota" in shown.splitlines()[0] and "of 10.0 MB, stopped" in shown
        assert reaches(two.node, hub.server.address)

        # after a restart as well, and the mark is not told again
        hub.server.stop()
        hub.clients.pop("one")  # which cannot come back
        hub.start_again()
        eventually(lambda: used_up(hub, "one"), what="the quota is used up")
        refused = hub.server.counter("tcp.connections_refused")
        eventually(lambda: hub.server.counter("tcp.connections_refused") > refused, what="refused again")
        assert used_up(hub, "one") and not established(one) and "of its quota" not in hub.server.log

        # another quota, at a reload
        file = Path(hub.server.config["state_dir"]) / "peers" / "one.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "quota_gb": 1}))
        assert hub.server.command("reload").returncode == 0
        eventually(lambda: established(one), what="it is back")
        assert reaches(one.node, hub.server.address)


def test_a_peer_that_is_slowed_down_has_its_rate_over_all_lanes_and_loses_nothing(lab: Lab, tmp_path: Path) -> None:
    settings = {"quota_gb": 0.01, "quota_action": "slow", "quota_rate_mbit": 4, "lanes": 2}
    with Hub(lab, tmp_path, **settings) as hub:
        one = hub.join(lab["one"], lanes=2, **PLAIN)
        with Flow(one, hub.server) as flow:
            eventually(lambda: used_up(hub, "one"), what="the quota is used up")
            flow.pause()
        assert hub.peers()["one"]["quota_state"] == "slowed" and established(one)

        def seconds() -> float:
            began = time.monotonic()
            transfer(one, hub.server, streams=4, size=MB // 2)
            return time.monotonic() - began

        # workers follow a rate within a tenth of a second; two buckets of 256 KiB, each way, are free
        least = (2 * MB - 2 * 2 * 262144) / (4 * MB / 8)
        slow = eventually(lambda: found if (found := seconds()) > least else 0, what="a slow transfer")
        hub.configure(quota_gb=0)
        assert hub.peers()["one"]["quota_state"] == "open"
        eventually(lambda: seconds() < slow / 2, what="a quick transfer")
