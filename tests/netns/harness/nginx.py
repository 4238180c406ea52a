"""nginx in a node of the lab, with files and ports of its own; skipped where the program is missing.

with Nginx(node, directory, http) as nginx:     it runs; `http` stands in its http block, `stream` in the other one
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support import eventually
from tools.lab.network import Node

STOP_SECONDS = 10.0

MAIN = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log info;
{modules}
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{http}
}}
{stream}
"""


class Nginx:
    def __init__(self, node: Node, directory: Path, http: str = "", stream: str = "") -> None:
        program = shutil.which("nginx")
        if program is None:
            pytest.skip("nginx is not installed")
        module = Path(program).parents[1] / "lib/nginx/modules/ngx_stream_module.so"
        if stream and not module.exists():
            pytest.skip("the stream module of nginx is not installed (libnginx-mod-stream)")
        self.directory = directory
        directory.mkdir()
        config = directory / "nginx.conf"
        config.write_text(
            MAIN.format(
                directory=directory,
                modules=f"load_module {module};" if stream else "",
                http=http,
                stream=f"stream {{\n{stream}\n}}" if stream else "",
            )
        )
        argv = [program, "-p", directory, "-c", config, "-e", directory / "error.log"]
        self.process = node.popen([str(word) for word in argv], death_signal=signal.SIGTERM)

    def __enter__(self) -> Self:
        eventually(self._runs, what=f"nginx running: {self.log}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(STOP_SECONDS)

    def _runs(self) -> bool:
        assert self.process.poll() is None, self.log
        return (self.directory / "nginx.pid").exists() and "start worker process " in self.log

    @property
    def log(self) -> str:
        path = self.directory / "error.log"
        return path.read_text() if path.exists() else ""
