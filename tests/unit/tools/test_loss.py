"""The loss lab's results and tables, from made-up measurements."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tools.bench import loss_plot
from tools.bench.loss import (
    CONFIGURATIONS,
    NAMED_CONFIGURATIONS,
    NAMED_SCENARIOS,
    SCENARIOS,
    about_seconds,
    fitting,
    main,
)
from tools.bench.loss_report import (
    Cell,
    Configuration,
    Delays,
    LossResult,
    Stream,
    Way,
    gap_ms,
    mbit,
    of_arrivals,
    of_pings,
    table,
)
from tools.bench.loss_testbed import SOCKET_LINE
from tools.bench.machine import Machine
from tools.lab.namespace import LabError
from tools.load.generators import Arrival, Pings, Sample

MS = 1_000_000
WITHOUT_MATPLOTLIB = (
    "import sys; sys.modules['matplotlib'] = None; from tools.bench.{} import main; sys.exit(main({!r}))"
)


def arrivals(**delays_by_number: float) -> list[Arrival]:
    return [
        Arrival(number=int(name[1:]), time_ns=position * MS, delay_ms=delay)
        for position, (name, delay) in enumerate(delays_by_number.items())
    ]


def samples(*points: tuple[int, int]) -> list[Sample]:
    return [Sample(time_ns=when * MS, bytes=total) for when, total in points]


def way(lost: int = 20, late: int = 0) -> Way:
    return Way(offered=1100, lost=lost, queue_full=100, silenced=0, writes=1000, writes_late=late, worst_late_ms=7)


def stream(**fields) -> Stream:
    light = Delays(sent=200, lost=3, p50=20.25, p99=81.5, max=1250.0)
    return Stream(
        **{
            "light": light,
            "light_gap_ms": 140.4,
            "bulk_mbit": 43.26,
            "bulk_gap_ms": 310.0,
            "bulk_survived": True,
            "client_cpu": 4.25,
            "server_cpu": 5.5,
            **fields,
        }
    )


def result(*cells: Cell) -> LossResult:
    named = {scenario.name: scenario for scenario in SCENARIOS}
    return LossResult(
        machine=Machine(cores=2, cpu="Some CPU", kernel="6.18", python="3.11.7"),
        rate_mbit=50,
        rtt_ms=40,
        queue_bytes=625_000,
        congestion="cubic",
        seconds=4,
        seed=1,
        settings=[],
        scenarios=[named[name] for name in dict.fromkeys(cell.scenario for cell in cells)],
        configurations=list(CONFIGURATIONS),
        cells=list(cells),
    )


def loss_cell(configuration: str = "five", scenario: str = "random-2", **fields) -> Cell:
    ping = Delays(sent=200, lost=0, p50=40.5, p99=101.5, max=104.0)
    return Cell(
        **{
            "scenario": scenario,
            "configuration": configuration,
            "ping": ping,
            "alone": stream(),
            "beside": stream(),
            "to_server": way(),
            "to_client": way(lost=21),
            **fields,
        }
    )


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_scenarios_are_random_and_bursty_ones_a_path_that_fades_and_two_events() -> None:
    losses = {(one.loss_percent, one.burst > 1) for one in SCENARIOS if not one.event and not one.burst_ms}
    assert [one.name for one in SCENARIOS if one.burst_ms] == ["fade-2"]
    assert losses == {(0, False), *((loss, bursty) for loss in (0.5, 1, 2, 5) for bursty in (False, True))}
    assert [one.event for one in SCENARIOS if one.event] == ["cut", "black-hole"]
    assert len({one.name for one in SCENARIOS}) == len(SCENARIOS)


def test_worse_paths_and_other_carriers_are_measured_if_they_are_asked_for(capsys: pytest.CaptureFixture) -> None:
    assert {one.name for one in NAMED_SCENARIOS} == {"random-10", "random-20", "reorder-5"}
    assert {one.name: one.in_datagrams for one in NAMED_CONFIGURATIONS}["tcp"] is False
    assert not {one.name for one in NAMED_SCENARIOS} & {one.name for one in SCENARIOS}
    names = [one.name for one in (*CONFIGURATIONS, *NAMED_CONFIGURATIONS)]
    assert len(set(names)) == len(names)
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(one.name in said for one in (*NAMED_SCENARIOS, *NAMED_CONFIGURATIONS))


def test_a_packet_that_came_twice_counts_once_and_by_its_first_arrival() -> None:
    found = of_arrivals(5, [*arrivals(n0=20, n2=25, n3=90), *arrivals(n2=400)])
    assert found == Delays(sent=5, lost=2, p50=25, p99=90, max=90)


def test_what_never_arrived_has_no_delay() -> None:
    assert of_arrivals(7, []) == Delays(sent=7, lost=7, p50=None, p99=None, max=None)
    assert of_pings(Pings(sent=3, rtts_ms=[40, 50], lost=[2])).lost == 1


def test_throughput_is_what_arrived_between_begin_and_end() -> None:
    came = samples((0, 1000), (100, 2000), (600, 1_002_000), (1100, 2_002_000), (1500, 9_000_000))
    assert mbit(came, 100 * MS, 1100 * MS) == pytest.approx(16)
    assert mbit(came, 1600 * MS, 2000 * MS) == 0
    assert mbit([], 0, MS) == 0


def test_silence_from_beginning_to_end_is_all_of_it() -> None:
    assert gap_ms([], 100 * MS, 350 * MS) == 250
    assert gap_ms(samples((90, 1), (120, 2), (300, 3)), 100 * MS, 350 * MS) == 180


def test_local_port_and_bytes_are_read_from_what_ss_says() -> None:
    said = (
        "0 0          10.77.0.2:36404   10.77.0.1:9000 \t bbr wscale:10,10 rto:244 rtt:40.3/11.4 mss:1448 cwnd:12 "
        "bytes_sent:140 bytes_acked:141 segs_out:6\n"
        "0 0    [::ffff:10.77.0.2]:36418 [::ffff:10.77.0.1]:9000 \t cubic cwnd:11 bytes_sent:35 bytes_retrans:7\n"
    )
    assert SOCKET_LINE.findall(said) == [("36404", "140"), ("36418", "35")]


def test_the_table_shows_every_measurement_and_the_links_own_loss() -> None:
    lines = rows(table(result(loss_cell())))
    assert (
        "five 40.5 101.5 104.0 0 | 20.2 81.5 1250 3 | 20.2 81.5 1250 3 | 43.3 310 | 4.2 5.5 | 2.00 2.10 100"
    ) in lines
    assert "five connections=5 fec=off" in lines


def test_the_table_of_an_event_has_the_gaps_of_both_streams() -> None:
    cell = loss_cell(scenario="cut", ping=None, alone=stream(light_gap_ms=22.0))
    assert "five 20.2 81.5 1250 3 22 | 20.2 81.5 1250 3 140 | 43.3 310" in rows(table(result(cell)))


def test_a_configuration_that_does_not_work_says_so_and_the_others_stay() -> None:
    broken = Cell(scenario="random-2", configuration="auto", error="the server did not start")
    lines = rows(table(result(loss_cell(), broken)))
    assert "auto: FAILED: the server did not start" in lines
    assert any(line.startswith("five 40.5") for line in lines)


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (loss_cell(scenario="black-hole", beside=stream(resumed=False)), "not everything flowed again"),
        (loss_cell(beside=stream(bulk_survived=False)), "connection broke"),
        (loss_cell(to_server=way(late=30)), "30 writes of the emulated link came late"),
        (loss_cell(alone=stream(pause_ms=31.0)), "waited for a core: alone 31 ms"),
    ],
)
def test_what_a_number_does_not_say_stands_below_it(cell: Cell, says: str) -> None:
    assert says in table(result(cell))
    assert says not in table(result(loss_cell()))


def test_the_json_carries_its_schema_version_and_comes_back_the_same() -> None:
    found = result(loss_cell(), loss_cell("bare", counters={"server": {"fec.blocks_whole": 3}}))
    text = msgspec.json.encode(found)
    assert msgspec.json.decode(text)["schema_version"] == 1
    assert msgspec.json.decode(text, type=LossResult) == found


def test_the_whole_table_is_said_to_take_a_quarter_of_an_hour_at_most() -> None:
    every = result()
    every.scenarios, every.seconds = list(SCENARIOS), 3
    assert 300 < about_seconds(every, 1) <= 900
    assert about_seconds(every, 5) < about_seconds(every, 1)


def test_the_bare_link_has_no_part_in_events() -> None:
    lossy, event = SCENARIOS[1], SCENARIOS[-1]
    bare, tunnel = Configuration("bare", None), Configuration("one", ())
    assert fitting([bare, tunnel], lossy) == [bare, tunnel]
    assert fitting([bare, tunnel], event) == [tunnel]


def test_no_connection_is_struck_where_none_carries_the_load() -> None:
    udp = next(one for one in CONFIGURATIONS if one.in_datagrams)
    assert fitting([udp], SCENARIOS[1]) == [udp] and fitting([udp], SCENARIOS[-1]) == []


def test_a_line_of_the_plot_has_its_losses_in_order_and_begins_at_none() -> None:
    cells = [
        loss_cell(scenario=name, ping=Delays(sent=1, lost=0, p50=1, p99=p99, max=1))
        for name, p99 in (("random-2", 80.0), ("burst-2", 120.0), ("loss-0", 41.0), ("random-0.5", 60.0))
    ]
    found = result(*cells, loss_cell(scenario="random-5", ping=None))

    def p99(cell: Cell) -> float | None:
        return cell.ping.p99 if cell.ping is not None else None

    assert loss_plot.points(found, "five", False, p99) == [(0, 41), (0.5, 60), (2, 80)]
    assert loss_plot.points(found, "five", True, p99) == [(0, 41), (2, 120)]
    assert loss_plot.points(found, "auto", False, p99) == []


def test_the_plot_is_drawn_with_whatever_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cells = [loss_cell(scenario=name) for name in ("loss-0", "random-2", "burst-2", "cut")]
    saved, drawn = tmp_path / "result.json", tmp_path / "plot.svg"
    saved.write_bytes(msgspec.json.encode(result(*cells, Cell(scenario="cut", configuration="auto", error="x"))))
    assert loss_plot.main([str(saved), str(drawn)]) == 0
    assert "<svg" in drawn.read_text()
    loss_plot.plot(result(loss_cell()), str(tmp_path / "loss.png"))
    with pytest.raises(LabError, match=r"plot.nonsense"):
        loss_plot.plot(result(loss_cell()), str(tmp_path / "plot.nonsense"))


@pytest.mark.parametrize(
    ("module", "says", "argv"),
    [("loss", "bench fec", ["--plot", "x.png"]), ("loss_plot", "loss_plot", ["r.json", "x.png"])],
)
def test_without_matplotlib_one_line_says_what_to_install(
    module: str, says: str, argv: list[str], tmp_path: Path
) -> None:
    (tmp_path / "r.json").write_bytes(msgspec.json.encode(result(loss_cell())))
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_MATPLOTLIB.format(module, argv)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    if done.returncode == 77:
        pytest.skip("the loss lab needs root")
    assert done.returncode == 1
    assert done.stderr == (
        f"{says}: --plot: matplotlib is not installed; install it (pip install 'tunnel-supervisor[plot]')\n"
    )


@pytest.mark.parametrize("argv", [["--seconds", "0"], ["--at-once", "0"], ["--only", "six"], ["--scenario", "loss-3"]])
def test_an_option_that_cannot_be_is_refused(argv: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as refused:
        main(argv)
    assert refused.value.code == 2
    assert argv[0] in capsys.readouterr().err
