"""A real nginx that balances TCP on loopback and tells by a PROXY header, v1, who the client is."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.servers.ports import LOOPBACK, Ports, wait_until_listening
from tests.servers.programs import require

# Where Debian, Fedora and Alpine put a module that is no part of the program.
_MODULES = tuple(
    Path(folder) / "nginx/modules/ngx_stream_module.so" for folder in ("/usr/lib", "/usr/lib64", "/usr/share")
)

CONFIGURATION = """
load_module {module};
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{
  worker_connections 256;
}}
stream {{
  proxy_protocol on;
  proxy_timeout 35m;
  {servers}
}}
"""


@dataclass
class NginxStream:
    """One nginx; its ports by the names of the fronts."""

    folder: Path
    ports: Mapping[str, int]
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Return once its ports accept."""
        command = [require("nginx"), "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]
        command += ["-e", str(self.folder / "error.log")]
        with (self.folder / "out").open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_until_listening(set(self.ports.values()), 10, self._check_alive)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it and all connections through it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process = None

    def _check_alive(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"nginx ended: {(self.folder / 'out').read_text()}")


def write_nginx_stream(folder: Path, targets: Mapping[str, int], ports: Ports) -> NginxStream:
    """Write all that it needs into `folder`.

    Args:
        targets: The ports that its own lead to.
    """
    module = next((path for path in _MODULES if path.exists()), None)
    if module is None:
        pytest.skip("nginx's stream module is not installed")
    folder.mkdir()
    taken = {name: ports.take() for name in targets}
    servers = "\n  ".join(
        f"server {{ listen {LOOPBACK}:{taken[name]}; proxy_pass {LOOPBACK}:{target}; }}"
        for name, target in targets.items()
    )
    text = CONFIGURATION.format(module=module, folder=folder, servers=servers)
    (folder / "nginx.conf").write_text(text)
    return NginxStream(folder, taken)
