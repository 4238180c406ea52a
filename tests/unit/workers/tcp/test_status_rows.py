"""Status rows: each connection has one while there are any, and all are refreshed in turn."""

from __future__ import annotations

import pytest

from pipeline.transport.connection import CLOSED, Connection
from tests.harness.run import Run
from workers.tcp.link_publisher import LinkPublisher
from workers.tcp.status_rows import ROWS_PER_REFRESH, StatusRows

LANE = 1


@pytest.fixture
def rows(run: Run) -> StatusRows:
    return StatusRows(LinkPublisher(run.attach(f"tcp-{LANE}")))


def assigned(run: Run, rows: StatusRows, count: int) -> list[Connection]:
    connections = [run.connection() for _ in range(count)]
    for connection in connections:
        rows.assign(connection)
    return connections


def serials(run: Run) -> set[int]:
    return {row.serial for row in run.memory.peer_table.connections(LANE)}


def test_a_row_appears_when_it_is_written_and_disappears_when_it_is_released(run: Run, rows: StatusRows) -> None:
    (connection,) = assigned(run, rows, 1)
    assert serials(run) == set()
    rows.write(connection)
    assert serials(run) == {connection.serial}
    rows.release(connection)
    assert serials(run) == set()


def test_a_connection_beyond_the_last_row_has_none_and_releases_none(run: Run, rows: StatusRows) -> None:
    *_, last = assigned(run, rows, run.plan.peer_table.status_rows + 1)
    assert last.receive.status_row == -1
    rows.release(last)
    (another,) = assigned(run, rows, 1)
    assert another.receive.status_row == -1


def test_all_rows_are_refreshed_in_turn(run: Run, rows: StatusRows) -> None:
    count = ROWS_PER_REFRESH + 3
    assert run.plan.peer_table.status_rows >= count
    connections = assigned(run, rows, count)
    rows.refresh(connections)
    assert serials(run) == {connection.serial for connection in connections[:ROWS_PER_REFRESH]}
    rows.refresh(connections)
    assert serials(run) == {connection.serial for connection in connections}
    connections[0].send.byte_count = 7
    rows.refresh(connections)
    assert 7 in {row.sent_bytes for row in run.memory.peer_table.connections(LANE)}


def test_a_connection_that_ended_while_it_waited_for_its_turn_is_not_written(run: Run, rows: StatusRows) -> None:
    connections = assigned(run, rows, ROWS_PER_REFRESH + 1)
    rows.refresh(connections)
    connections[-1].state = CLOSED
    rows.refresh(connections)
    assert connections[-1].serial not in serials(run)
