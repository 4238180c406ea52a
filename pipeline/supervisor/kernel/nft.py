"""The command nft(8). A script is one transaction; why it failed is a text for a warning.

run_script(script)    "" if it is done, else why not
listing(table)        a table of the family inet as nft prints it; "" if it is not there
tables()              the names of all tables of the family inet
"""

from __future__ import annotations

import os
import subprocess
from typing import NamedTuple

NFT_SECONDS = 5.0  # nft takes some ms
SBIN_DIRECTORIES = ("/usr/sbin", "/sbin")  # where nft is; after `su`, the PATH of root may lack them


class _Done(NamedTuple):
    output: str
    why_not: str  # "" for success


def run_script(script: str) -> str:
    return _run(["-f", "-"], script).why_not


def listing(table: str) -> str:
    return _run(["list", "table", "inet", table]).output


def tables() -> list[str]:
    lines = _run(["list", "tables", "inet"]).output.splitlines()
    return [line.removeprefix("table inet ") for line in lines]


def _run(words: list[str], script: str = "") -> _Done:
    path = os.pathsep.join([*os.get_exec_path(), *SBIN_DIRECTORIES])
    try:
        done = subprocess.run(
            ["nft", *words],
            input=script,
            text=True,
            capture_output=True,
            timeout=NFT_SECONDS,
            env={**os.environ, "PATH": path},
        )
    except FileNotFoundError:
        return _Done("", "the command nft is missing: install nftables")
    except subprocess.TimeoutExpired:
        return _Done("", f"nft has not ended within {NFT_SECONDS:g} s")
    except OSError as error:
        return _Done("", f"nft: {error.strerror}")
    if done.returncode:
        message = done.stderr.strip().partition("\n")[0] or f"exit status {done.returncode}"
        return _Done("", f"nft: {message}: it needs CAP_NET_ADMIN and a kernel with nf_tables")
    return _Done(done.stdout, "")
