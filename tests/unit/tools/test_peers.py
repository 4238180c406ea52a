"""bench peers: results, tables, the plot, configurations of other programs, and where those are found."""

from __future__ import annotations

import argparse
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pipeline.credentials.certificates import CertificatePair
from tools.bench import other_programs, peers, peers_plot
from tools.bench.machine import Machine
from tools.bench.other_programs import End, fastd_file, openvpn_client, openvpn_note, openvpn_server
from tools.bench.peers_plot import draw
from tools.bench.peers_report import BARE, MEASURES, OTHER, OURS, Conditions, PeersResult, Row, join, of_bare, table
from tools.bench.programs import PACKAGES, NotHere, Programs, fetched
from tools.lab.namespace import LabError

CONDITIONS = Conditions(
    machine=Machine(cores=2, cpu="a <fast> one", kernel="6.18", python="3.11.2"),
    congestion="cubic",
    rate_mbit=50,
    rtt_ms=40,
    queue_bytes=625_000,
    loss_percent=2,
)
TCP, BULK, LOST = (
    next(one for one in MEASURES if (one.path, one.name) == key)
    for key in (("clean", "tcp"), ("lossy", "bulk"), ("lossy", "light_lost"))
)


def row(contender: str, *rounds: dict[str, float], path: str = "clean", **fields: str) -> Row:
    kind = {"bare": BARE, "plain": OURS}.get(contender, OTHER)
    title = fields.pop("title", contender)
    return Row(path=path, contender=contender, kind=kind, title=title, seconds=3, rounds=list(rounds), **fields)


def result(*rows: Row, **fields) -> PeersResult:
    return PeersResult(**{"conditions": CONDITIONS, "rows": list(rows), **fields})


# -- results


def test_a_value_is_the_median_of_its_rounds_and_a_ratio_that_of_ratios_within_rounds() -> None:
    bare = row("bare", {"tcp": 10.0}, {"tcp": 20.0}, {"tcp": 40.0})
    ours = row("plain", {"tcp": 5.0}, {"tcp": 2.0}, {"tcp": 8.0})
    assert (bare.value(TCP), ours.value(TCP)) == (20.0, 5.0)
    assert of_bare([bare, ours], ours, TCP) == 0.2, "of 0.5, 0.1 and 0.2; the ratio of the medians would be 0.25"


def test_a_round_that_failed_counts_on_neither_side() -> None:
    bare = row("bare", {"tcp": 10.0}, {}, {"tcp": 30.0})
    ours = row("plain", {}, {"tcp": 4.0}, {"tcp": 6.0})
    assert ours.value(TCP) == 5.0
    assert of_bare([bare, ours], ours, TCP) == 0.2
    assert of_bare([bare, row("plain", {}, {})], row("plain", {}, {}), TCP) is None
    assert of_bare([ours], ours, TCP) is None, "there was no bare link"


def test_a_loss_is_the_mean_since_a_median_would_hide_a_bad_round() -> None:
    assert row("fastd", {"light_lost": 0.0}, {"light_lost": 0.0}, {"light_lost": 3.0}, path="lossy").value(LOST) == 1.0


def test_the_table_has_a_line_for_each_contender_with_its_version_and_reasons() -> None:
    text = table(
        result(
            row("bare", {"tcp": 18.25, "cpu": 0.5}, title="bare link"),
            row("plain", {"tcp": 9.125, "ping_p50": 0.4}, title="ours, plain", version="0.1.0"),
            row("fastd", {}, missing="fastd not found: --fetch gets it"),
            row("openvpn-udp", {"tcp": 1.0}, error="UDP: no answer", version="2.6.14", mtu=1500, note="no DCO"),
            row("plain", {"bulk": 31.25}, path="lossy", title="ours, plain"),
            took_seconds=61,
        )
    )
    lines = text.splitlines()
    assert "hosts with cubic; 61 s in all" in lines[1]
    (ours, on_lossy) = (line for line in lines if line.startswith("ours, plain"))
    assert ours.split() == ["ours,", "plain", "9.12", "0.50", "-", "-", "-", "0.40", "-", "0.1.0"]
    assert on_lossy.split()[-1] == "31.2"
    assert "  fastd: not measured: fastd not found: --fetch gets it" in lines
    assert "  openvpn-udp: FAILED: UDP: no answer" in lines
    assert any(line.startswith("clean: ") and line.endswith("of 1 round, 3 s for each number") for line in lines)
    assert any(line.startswith("openvpn-udp") and line.endswith("2.6.14, MTU 1500, no DCO") for line in lines)


def test_a_contender_that_is_not_here_is_no_failure_and_one_that_fails_is() -> None:
    assert not result(row("fastd", {}, missing="not found")).failed
    assert result(row("fastd", {}, error="ended")).failed
    assert result(left_behind=["fastd: other0 in 'a'"]).failed
    assert "LEFT BEHIND: fastd: other0 in 'a'" in table(result(left_behind=["fastd: other0 in 'a'"]))


# -- several results as one


def test_results_of_one_machine_join_round_by_round() -> None:
    first = result(row("bare", {"tcp": 10.0}), row("plain", {"tcp": 5.0}), took_seconds=10)
    second = result(row("bare", {"tcp": 20.0}), row("fastd", {"tcp": 1.0}, version="22"), took_seconds=20)
    third = result(row("fastd", {"tcp": 3.0}, version="22"), row("bare", {"tcp": 30.0}))
    joined = join([first, second, third])
    assert [one.contender for one in joined.rows] == ["bare", "plain", "fastd"]
    bare, plain, fastd = joined.rows
    assert bare.rounds == [{"tcp": 10.0}, {"tcp": 20.0}, {"tcp": 30.0}]
    assert fastd.rounds == [{}, {"tcp": 1.0}, {"tcp": 3.0}], "beside the bare link of the round in which it was"
    assert (plain.rounds, joined.took_seconds) == ([{"tcp": 5.0}], 30)
    assert of_bare(joined.rows, fastd, TCP) == pytest.approx(0.075)


def test_results_that_cannot_be_compared_do_not_join() -> None:
    other = msgspec.structs.replace(CONDITIONS, congestion="bbr")
    with pytest.raises(LabError, match="expected equal conditions"):
        join([result(), PeersResult(conditions=other)])
    with pytest.raises(LabError, match="fastd has version 22 in one file, 23 in another"):
        join([result(row("fastd", {}, version="22")), result(row("fastd", {}, version="23"))])
    longer = msgspec.structs.replace(row("fastd", {}), seconds=12)
    with pytest.raises(LabError, match="fastd has seconds 3 in one file, 12 in another"):
        join([result(row("fastd", {})), result(longer)])


def test_a_contender_that_came_later_is_measured_in_the_joined_result() -> None:
    absent = result(row("fastd", {}, missing="not found"))
    there = result(row("fastd", {"tcp": 1.0}, version="22"))
    for order in ([absent, there], [there, absent]):
        (joined,) = join(order).rows
        assert (joined.missing, joined.version) == ("", "22")
    assert join([absent, absent]).rows[0].missing == "not found"


def test_the_command_joins_and_draws_files_without_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    files = []
    for number in (1, 2):
        file = tmp_path / f"{number}.json"
        file.write_bytes(msgspec.json.encode(result(row("bare", {"tcp": 10.0 * number}))))
        files.append(str(file))
    assert peers.main(["--join", *files, "--plot", str(tmp_path / "plot.svg")]) == 0
    assert "15.00" in capsys.readouterr().out
    assert "15.00" in (tmp_path / "plot.svg").read_text()
    assert peers.main(["--join", *files, "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=PeersResult).rows[0].value(TCP) == 15.0


@pytest.mark.parametrize("content", ["{}", "no JSON", None], ids=["another's", "broken", "absent"])
def test_a_file_that_is_no_result_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    file = tmp_path / "one.json"
    if content is not None:
        file.write_text(content)
    assert peers.main(["--join", str(file)]) == 1
    assert capsys.readouterr().err.startswith(f"bench peers: --join {file}: ")


# -- the plot


def test_the_plot_has_a_bar_for_each_number_and_is_proper_svg() -> None:
    drawn = draw(
        result(
            row("bare", {"tcp": 10.0}, {"tcp": 20.0}),
            row("plain", {"tcp": 5.0, "udp": 80.0}, title="ours, <plain>"),
            row("fastd", {}, missing="not found"),
        )
    )
    svg = ET.fromstring(drawn)
    bars = svg.findall("{*}rect")
    assert len(bars) == 3
    widths = [float(bar.get("width", "")) for bar in bars]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.01), "15 and 5 Gbit/s"
    texts = ["".join(text.itertext()) for text in svg.findall("{*}text")]
    assert {"15.00", "5.00", "80.0", "ours, <plain>"} <= set(texts)
    assert "fastd" not in texts


def test_the_plot_stays_inside_its_picture() -> None:
    svg = ET.fromstring(
        draw(
            result(
                *(
                    row(f"number {n}", {one.name: 1e9 for one in MEASURES}, path=path)
                    for n in range(9)
                    for path in peers.PATHS
                )
            )
        )
    )
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    for text in svg.findall("{*}text"):
        assert 0 < float(text.get("x", "")) < width and 0 < float(text.get("y", "")) < height


def test_titles_and_names_have_room() -> None:
    letter = 6.2  # of 12 pixels, on average
    better = " (more is better)"
    assert all(letter * len(one.title + better) < peers_plot.WIDTH + peers_plot.GAP for one in MEASURES)
    assert all(letter * 11 / 12 * len(one.title) < peers_plot.NAME_WIDTH for one in peers.CONTENDERS)


def test_a_plot_that_cannot_be_written_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "one.json"
    file.write_bytes(msgspec.json.encode(result()))
    assert peers.main(["--join", str(file), "--plot", str(tmp_path / "none" / "plot.svg")]) == 1
    assert "--plot" in capsys.readouterr().err


# -- other programs


class FakeNode:
    def __init__(self, address: str) -> None:
        self.address = address


def ends() -> tuple[End, End]:
    return (
        End(FakeNode("10.77.0.1"), other_programs.SERVER, 4001, bytes([1]) * 32, bytes([2]) * 32),
        End(FakeNode("10.77.0.2"), other_programs.CLIENT, 4002, bytes([3]) * 32, bytes([4]) * 32),
    )


PAIR = CertificatePair(b"CERTIFICATE\n", b"KEY\n")


@pytest.mark.parametrize(("transport", "protocols"), [("udp", ("udp", "udp")), ("tcp", ("tcp-server", "tcp-client"))])
def test_openvpn_has_its_defaults_but_for_what_it_demands(transport: str, protocols: tuple[str, str]) -> None:
    server = openvpn_server(transport, "10.77.0.1", 4001, b"CA\n", PAIR)
    client = openvpn_client(transport, "10.77.0.1", 4001, b"CA\n", PAIR)
    assert f"proto {protocols[0]}\nlocal 10.77.0.1\nport 4001\nserver 10.79.0.0 255.255.255.0\n" in server
    assert f"proto {protocols[1]}\nremote 10.77.0.1 4001\n" in client
    for configuration in (server, client):
        assert "<ca>\nCA\n</ca>\n<cert>\nCERTIFICATE\n</cert>\n<key>\nKEY\n</key>\n" in configuration
        assert not any(word in configuration for word in ("cipher", "mssfix", "sndbuf", "disable-dco", "tun-mtu"))


@pytest.mark.parametrize(
    ("log", "note"),
    [
        ("DCO device other0 opened\nData Channel: cipher 'AES-256-GCM', peer-id: 0\n", "DCO, AES-256-GCM"),
        ("TUN/TAP device other0 opened\nData Channel: cipher 'AES-256-GCM', peer-id: 0\n", "no DCO, AES-256-GCM"),
        ("Outgoing Data Channel: Cipher 'AES-256-GCM' initialized with 256 bit key\n", "no DCO, AES-256-GCM"),
        ("", "no DCO"),
    ],
)
def test_openvpns_log_says_the_way_of_its_packets(log: str, note: str) -> None:
    assert openvpn_note(log) == note


def test_wireguard_and_fastd_know_each_other_by_key_and_only_the_client_knows_where() -> None:
    server, client = ends()
    request = other_programs.wireguard_request(client, server, client=True)
    assert request.startswith(f"set=1\nprivate_key={'03' * 32}\nlisten_port=4002\n")
    assert request.endswith(f"public_key={'02' * 32}\nendpoint=10.77.0.1:4001\nallowed_ip=10.79.0.1/32\n\n")
    assert "endpoint" not in other_programs.wireguard_request(server, client, client=False)
    file = other_programs.wireguard_file(client, server, client=True)
    assert "AllowedIPs = 10.79.0.1/32\nEndpoint = 10.77.0.1:4001\n" in file
    assert "Endpoint" not in other_programs.wireguard_file(server, client, client=False)
    assert "remote 10.77.0.1:4001;" in fastd_file(client, server, client=True)
    assert "remote" not in fastd_file(server, client, client=False)
    assert f'key "{"02" * 32}"' in fastd_file(client, server, client=True)


def test_every_command_of_a_contender_has_a_package() -> None:
    commands = {command for one in peers.CONTENDERS for command in one.commands}
    assert commands == set(PACKAGES)
    names = [one.name for one in peers.CONTENDERS]
    assert sorted(set(names)) == sorted(names)


# -- where programs are


def executable(path: Path, script: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """A PATH that has nothing but what the test puts there and the shell's own commands."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    monkeypatch.setattr("tools.bench.programs.SYSTEM_FOLDERS", ("/usr/sbin", "/usr/bin"))
    monkeypatch.setitem(PACKAGES, "rival", "rival-package")

    def put(name: str, script: str = "") -> Path:
        return executable(tmp_path / "path" / name, script)

    return put


def test_a_named_program_comes_before_a_fetched_one_and_that_before_an_installed_one(
    tmp_path: Path, on_path: Callable[[str, str], Path]
) -> None:
    root = tmp_path / "root"
    with pytest.raises(NotHere, match=r"rival not found: --fetch gets it .* rival-package"):
        Programs().argv("rival")
    installed = on_path("rival", "")
    assert Programs(root=root).argv("rival") == [str(installed)]
    unpacked = executable(root / "usr/sbin/rival")
    assert Programs(root=root).argv("rival") == [str(unpacked)]
    named = executable(tmp_path / "mine")
    assert Programs({"rival": str(named)}, root).argv("rival") == [str(named)]
    with pytest.raises(NotHere, match="--program rival: no program at /nowhere"):
        Programs({"rival": "/nowhere"}, root).argv("rival")


def test_without_a_path_the_systems_folders_count_and_not_the_one_we_are_in(
    tmp_path: Path, on_path: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PATH")
    executable(tmp_path / "rival")
    assert Programs().find("rival") is None
    monkeypatch.setattr("tools.bench.programs.SYSTEM_FOLDERS", (str(tmp_path),))
    assert Programs().find("rival") == str(tmp_path / "rival")


def test_a_fetched_program_that_may_not_run_where_it_is_unpacked_says_so(on_path: Callable[[str, str], Path]) -> None:
    on_path("apt-get", APT_GET)
    on_path("dpkg-deb", DPKG_DEB.replace("755", "644"))
    with fetched({}, ["rival"]) as programs, pytest.raises(NotHere, match=r"no rival in it that runs .* TMPDIR"):
        programs.argv("rival")


def test_libraries_that_were_unpacked_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    executable(tmp_path / "usr/lib/machine/libother.so.1")
    assert Programs(root=tmp_path).environment()["LD_LIBRARY_PATH"] == str(tmp_path / "usr/lib/machine")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    assert Programs(root=tmp_path).environment()["LD_LIBRARY_PATH"] == f"{tmp_path / 'usr/lib/machine'}:/mine"
    assert Programs().environment()["LD_LIBRARY_PATH"] == "/mine"


APT_GET = """
for word; do case "$word" in Dir::Cache::archives=*) archives=${word#*=} ;; esac; package=$word; done
case "$*" in *--download-only*) ;; *) exit 9 ;; esac
touch "$archives/$package.deb"
"""
DPKG_DEB = """mkdir -p "$3/usr/sbin"; printf '#!/bin/sh\\necho fetched\\n' > "$3/usr/sbin/rival"
chmod 755 "$3/usr/sbin/rival"
"""


def test_a_missing_program_is_downloaded_unpacked_and_removed_again(on_path: Callable[[str, str], Path]) -> None:
    on_path("apt-get", APT_GET)
    on_path("dpkg-deb", DPKG_DEB)
    with fetched({}, ["rival"]) as programs:
        (path,) = programs.argv("rival")
        assert programs.say("rival") == "fetched\n"
    assert not Path(path).exists()


def test_a_program_that_is_here_is_not_downloaded(on_path: Callable[[str, str], Path]) -> None:
    on_path("apt-get", "exit 9")
    mine = on_path("rival", "")
    with fetched({}, ["rival"]) as programs:
        assert programs.argv("rival") == [str(mine)]
        assert programs.problems == {}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'E: Unable to locate package rival-package' >&2; exit 100", "apt-get: E: Unable to locate package"),
        (None, "apt-get"),
    ],
    ids=["unknown to apt", "without apt"],
)
def test_what_cannot_be_fetched_is_not_here_and_says_why(
    on_path: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str | None, said: str
) -> None:
    if script is None:
        monkeypatch.setenv("PATH", str(tmp_path / "path"))
    else:
        on_path("apt-get", script)
    with fetched({}, ["rival"]) as programs, pytest.raises(NotHere, match=f"--fetch rival-package: .*{said}"):
        programs.argv("rival")


# -- options


def test_a_program_is_named_with_its_path() -> None:
    assert peers._program("fastd=/opt/fastd=2") == ("fastd", "/opt/fastd=2")
    for text in ("fastd", "tinc=/usr/sbin/tincd"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected COMMAND=PATH with one of openvpn"):
            peers._program(text)


@pytest.mark.parametrize(
    "words", [["--loss", "100"], ["--loss", "-1"], ["--only", "tinc"], ["--seconds", "0"], ["--rounds", "0"]]
)
def test_options_without_a_meaning_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.main(words)
    assert words[0] in capsys.readouterr().err


def test_the_estimate_grows_with_what_is_chosen() -> None:
    options = peers._parser().parse_args(["--rounds", "2"])
    both = peers.about_seconds(options, 5)
    options.path = ["clean"]
    assert 0 < peers.about_seconds(options, 5) < both
    options.path = None
    options.seconds = 100
    assert peers.about_seconds(options, 5) > both
    options.seconds = None
    assert peers.about_seconds(options, 10) == 2 * peers.about_seconds(options, 5)
