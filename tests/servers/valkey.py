"""A real Redis on loopback, which speaks what Valkey speaks: nothing on disk, a password, and TLS at a second port."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.pki import Pki
from tests.servers.ports import LOOPBACK, Ports, wait_until_listening
from tests.servers.programs import require

READY_SECONDS = 20
PASSWORD = "valkey-pw-3f9a"


@dataclass
class Valkey:
    """One server with its folder."""

    folder: Path
    port: int
    tls_port: int
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    @property
    def tls_url(self) -> str:
        return f"rediss://localhost:{self.tls_port}/0"

    @property
    def password_file(self) -> Path:
        return self.folder / "password"

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Return once it listens."""
        with (self.folder / "valkey.log").open("ab") as output:
            self._process = subprocess.Popen(
                [require("redis-server"), str(self.folder / "valkey.conf")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            wait_until_listening({self.port, self.tls_port}, READY_SECONDS, self._check_alive)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """All that is known there is gone."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def send(self, number: signal.Signals) -> None:
        """Freeze it, or let it go on."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def ask(self, *words: str) -> str:
        """What `redis-cli` prints."""
        command = [require("redis-cli"), "-h", LOOPBACK, "-p", str(self.port), "--no-auth-warning", *words]
        environment = {**os.environ, "REDISCLI_AUTH": PASSWORD}
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment)
        return done.stdout.strip()

    def _check_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"redis-server ended:\n{(self.folder / 'valkey.log').read_text()}")


def write_valkey(folder: Path, pki: Pki, ports: Ports) -> Valkey:
    """Its settings; start() is still to be called."""
    folder.mkdir(parents=True)
    server = Valkey(folder, ports.take(), ports.take())
    server.password_file.write_text(PASSWORD + "\n")
    (folder / "valkey.conf").write_text(
        f"bind {LOOPBACK}\nport {server.port}\ntls-port {server.tls_port}\ntls-auth-clients no\n"
        f"tls-cert-file {pki.certificate}\ntls-key-file {pki.private_key}\ntls-ca-cert-file {pki.ca}\n"
        f'requirepass {PASSWORD}\nsave ""\nappendonly no\nmaxmemory-policy noeviction\ndir {folder}\n'
    )
    return server
