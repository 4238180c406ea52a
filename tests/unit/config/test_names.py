"""The setting of names in DNS: domains that are accepted, and those that are refused with which words."""

from __future__ import annotations

import pytest

from pipeline.config import find_warnings, parse
from tests.harness.config_problems import CLIENT, OPEN_SERVER, SERVER, the_problem


@pytest.mark.parametrize("domain", ["", "tunnel", "tunnel.internal", "vpn-1.example.org", "0x.home.arpa", "a" * 63])
def test_a_domain_in_lower_case_is_accepted(domain: str) -> None:
    assert parse(SERVER | {"names": domain}).names == domain


@pytest.mark.parametrize(
    "domain",
    [
        "Tunnel",
        ".tunnel",
        "tunnel.",
        "a..b",
        "-a",
        "a-",
        "a_b",
        "10.0.0.1",
        "b\xfcro",
        "a b",
        "a" * 64,
        "a." * 95 + "b",
        5,
    ],
)
def test_any_other_text_is_refused_with_an_example(domain: object) -> None:
    problem = the_problem(SERVER | {"names": domain})
    assert problem.startswith("test.json: names: given") and '"tunnel.internal"' in problem


@pytest.mark.parametrize("domain", ["local", "office.local", "localhost", "x.invalid", "onion"])
def test_a_domain_that_resolvers_ask_no_server_for_is_refused(domain: str) -> None:
    assert "expected another domain" in the_problem(SERVER | {"names": domain})


def test_a_client_and_a_server_of_the_original_program_have_no_names() -> None:
    assert any(text.startswith("names has no effect") for text in find_warnings(parse(CLIENT | {"names": "tunnel"})))
    compat = parse(OPEN_SERVER | {"compat": True, "names": "tunnel"})
    assert any("names has no effect: the original program has no such" in text for text in find_warnings(compat))
