"""A request to the instance that a command names, whose answer is a refusal or what was asked for."""

from __future__ import annotations

import argparse
from typing import Any

from pipeline.errors import LocalError


def send_command(arguments: argparse.Namespace, request: dict[str, Any]) -> dict[str, Any]:
    from pipeline.supervisor.control import control_socket

    answer = control_socket.send_request(arguments.instance(arguments), request)
    if not answer["ok"]:
        raise LocalError(answer["error"])
    return answer
