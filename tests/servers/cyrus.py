"""A real Cyrus on loopback: a folder with everything in it, a process in the foreground, stopped by its id.

Debian's cyrus-imapd cannot be installed beside Dovecot; tests/servers/install.sh unpacks it under `.make`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.servers.accounts import MASTER, MASTER_PASSWORD, USERS
from tests.servers.pki import Pki
from tests.servers.ports import Ports, wait_until_listening
from tests.servers.programs import ROOT, require

PROGRAMS = Path("/usr/lib/cyrus/bin")
UNPACKED = ROOT / ".make" / "cyrus" / "usr" / "lib" / "cyrus" / "bin"
REALM = "cyrus.test.example"

CONFIGURATION = """
configdirectory: {folder}/conf
defaultpartition: default
partition-default: {folder}/spool
proc_path: {folder}/proc
mboxname_lockpath: {folder}/conf/lock
temp_path: {folder}/tmp
idlesocket: {folder}/conf/socket/idle
servername: {realm}
admins: cyrus
proxyservers: {master}
allowplaintext: yes
# Without this the answer to a wrong password takes three seconds.
failedloginpause: 0
unixhierarchysep: yes
altnamespace: yes
virtdomains: off
# Mailboxes come into being at a user's first login.
autocreate_quota: 0
conversations: no
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: {folder}/sasldb2
sasl_mech_list: PLAIN LOGIN
tls_server_cert: {folder}/server.pem
tls_server_key: {folder}/server.key
"""
SERVICES = """
START {{
  recover cmd="{programs}/ctl_cyrusdb -C {folder}/imapd.conf -r"
}}
SERVICES {{
  imap cmd="{folder}/bin/imapd -C {folder}/imapd.conf -U 30" listen="127.0.0.1:{imap_port}" prefork=0 maxchild=100
  imaps cmd="{folder}/bin/imapd -C {folder}/imapd.conf -s -U 30" listen="127.0.0.1:{imaps_port}" prefork=0 maxchild=100
}}
EVENTS {{
}}
DAEMON {{
  idled cmd="{folder}/bin/idled -C {folder}/imapd.conf"
}}
"""


@dataclass
class Cyrus:
    """One server. MASTER may act for every user, by PLAIN with an authorization identity."""

    name: str
    folder: Path
    imap_port: int
    imaps_port: int
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Return once its ports accept."""
        command = [str(PROGRAMS / "master"), "-D"]
        command += ["-C", f"{self.folder}/imapd.conf", "-M", f"{self.folder}/cyrus.conf", "-p", f"{self.folder}/pid"]
        environment = dict(os.environ)
        if os.geteuid() == 0:
            command = [require("setpriv"), "--reuid=cyrus", "--regid=mail", "--init-groups", *command]
        else:
            # Looked up here only: these modules exist on Unix alone.
            import grp
            import pwd

            environment["CYRUS_USER"] = pwd.getpwuid(os.geteuid()).pw_name
            environment["CYRUS_GROUP"] = grp.getgrgid(os.getegid()).gr_name
        with (self.folder / "out").open("ab") as output:
            # In a process group of its own: it ends its sessions by a signal to the whole group.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        try:
            wait_until_listening({self.imap_port, self.imaps_port}, 10, self._check_alive)
        except BaseException:
            self.stop()
            raise

    def _check_alive(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"cyrus ended: {(self.folder / 'out').read_text()}")

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


def require_cyrus() -> None:
    """The test skips where a part of Cyrus is not installed."""
    require("saslpasswd2")
    for program in (PROGRAMS / "master", PROGRAMS / "ctl_cyrusdb", UNPACKED / "imapd", UNPACKED / "idled"):
        if not program.exists():
            pytest.skip(f"cyrus {program.name} is not installed")


def write_cyrus(name: str, folder: Path, pki: Pki, ports: Ports) -> Cyrus:
    """Write all that one server needs into `folder`, which the user cyrus must be able to enter."""
    for part in ("conf/socket", "conf/log", "spool", "proc", "tmp", "bin"):
        (folder / part).mkdir(parents=True)
    cyrus = Cyrus(name, folder, ports.take(), ports.take())
    values = {
        "folder": folder,
        "programs": PROGRAMS,
        "realm": REALM,
        "master": MASTER,
        "imap_port": cyrus.imap_port,
        "imaps_port": cyrus.imaps_port,
    }
    (folder / "imapd.conf").write_text(CONFIGURATION.format(**values))
    (folder / "cyrus.conf").write_text(SERVICES.format(**values))
    shutil.copy(pki.certificate, folder / "server.pem")
    shutil.copy(pki.private_key, folder / "server.key")
    # Not every user may enter the folder that they were unpacked in.
    for program in ("imapd", "idled"):
        shutil.copy(UNPACKED / program, folder / "bin")
    for user, password in {**USERS, MASTER: MASTER_PASSWORD}.items():
        command = [require("saslpasswd2"), "-p", "-c", "-f", str(folder / "sasldb2"), "-u", REALM, user]
        subprocess.run(command, input=password.encode(), check=True, timeout=20, capture_output=True)
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, "cyrus", "mail")
    return cyrus
