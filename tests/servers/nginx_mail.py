"""A real nginx as a mail proxy on loopback, which asks a service by `auth_http`."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.servers.pki import Pki
from tests.servers.ports import LOOPBACK, Ports, wait_until_listening
from tests.servers.programs import require

# Where Debian, Fedora and Alpine put a module that is no part of the program.
_MODULES = tuple(
    Path(folder) / "nginx/modules/ngx_mail_module.so" for folder in ("/usr/lib", "/usr/lib64", "/usr/share")
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
mail {{
  server_name localhost;
  imap_auth plain login;
  imap_capabilities IMAP4rev1;
  auth_http {auth_http};
  auth_http_timeout 10s;
  {headers}
  ssl_certificate {certificate};
  ssl_certificate_key {private_key};
  server {{
    listen {host}:{imap_port};
    protocol imap;
  }}
  server {{
    listen {host}:{imaps_port} ssl;
    protocol imap;
  }}
}}
"""


@dataclass
class NginxMail:
    """One nginx, with IMAP in clear and with TLS from the first octet."""

    folder: Path
    imap_port: int
    imaps_port: int
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Return once its ports accept."""
        command = [require("nginx"), "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]
        command += ["-e", str(self.folder / "error.log")]
        with (self.folder / "out").open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_until_listening({self.imap_port, self.imaps_port}, 10, self._check_alive)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it and all its sessions."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process = None

    def log(self) -> str:
        """Its error log, with a line for every login that failed."""
        return (self.folder / "error.log").read_text(errors="replace")

    def _check_alive(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"nginx ended: {(self.folder / 'out').read_text()}{self.log()}")


def write_nginx_mail(folder: Path, url: str, pki: Pki, ports: Ports, headers: dict[str, str]) -> NginxMail:
    """Write all that it needs into `folder`.

    Args:
        url: Of the service, `http://` alone.
        headers: Fields that go with each question.
    """
    module = next((path for path in _MODULES if path.exists()), None)
    if module is None:
        pytest.skip("nginx's mail module is not installed")
    folder.mkdir()
    nginx = NginxMail(folder, ports.take(), ports.take())
    values = {
        "module": module,
        "folder": folder,
        "auth_http": url,
        "headers": " ".join(f'auth_http_header {name} "{value}";' for name, value in headers.items()),
        "certificate": pki.certificate,
        "private_key": pki.private_key,
        "host": LOOPBACK,
        "imap_port": nginx.imap_port,
        "imaps_port": nginx.imaps_port,
    }
    (folder / "nginx.conf").write_text(CONFIGURATION.format(**values))
    return nginx
