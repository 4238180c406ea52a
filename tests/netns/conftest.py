"""Fixtures of several modules, and the logs of instances in the report of a test that fails.

A module fixture is for tests that leave it as it is. A test that disturbs a lab, a tunnel or a hub makes its own.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack

import pytest

from tests.netns.harness.hub import Hub
from tests.netns.harness.instance import STARTED, Instances, tunnel
from tests.netns.harness.shared_hub import HOSTS_BEHIND, HostsBehind, add_host_behind, run_shared_hub
from tools.lab.network import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes and a bare link, for tunnels that a test starts and stops. Their links are never cut."""
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instances]:
    """A tunnel with two lanes."""
    with Lab() as lab, tunnel(lab, tmp_path_factory.mktemp("netns"), lanes=2) as made:
        yield made


@pytest.fixture(scope="module")
def wide_lab() -> Iterator[Lab]:
    """The lab of the shared hub. Node three has no IPv4 address."""
    with Lab(names=("hub", "one", "two", "three", "four")) as lab:
        lab.nodes[0].ip("address add 10.50.0.1/32 dev lo", "address add fd50::1/128 dev lo")
        lab["three"].ip(f"address del {lab['three'].address}/24 dev link0")
        yield lab


@pytest.fixture(scope="module")
def hosts_behind(wide_lab: Lab) -> Iterator[HostsBehind]:
    with ExitStack() as stack:
        yield {name: add_host_behind(stack, wide_lab[name], number) for name, number in HOSTS_BEHIND.items()}


@pytest.fixture(scope="module")
def hub(wide_lab: Lab, hosts_behind: HostsBehind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with ExitStack() as stack:
        yield run_shared_hub(stack, wide_lab, tmp_path_factory.mktemp("hub"))


@pytest.fixture
def invitation(hub: Hub) -> Iterator[str]:
    """An invitation for one more client, which the server forgets afterwards."""
    yield hub.invite("four")
    hub.server.command("revoke", "four")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(f"log of {instance.name}", instance.log) for instance in STARTED]
    if report.when == "teardown":
        STARTED[:] = [instance for instance in STARTED if instance.process.poll() is None]
    return report
