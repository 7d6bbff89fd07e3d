"""Real Dovecots on loopback: a folder with everything in it, a process in the foreground, stopped by its id."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import PyJWK

from tests.servers import processes
from tests.servers.accounts import MASTER, MASTER_PASSWORD, USERS
from tests.servers.pki import Pki
from tests.servers.ports import Ports, wait_until_listening
from tests.servers.programs import require

# Runs as root, with mail stored as user mail, and as any other user.
CONFIGURATION = """
base_dir = {folder}/run
state_dir = {folder}/state
instance_name = {name}
log_path = {folder}/log
auth_verbose = yes
protocols = imap
listen = 127.0.0.1
ssl = yes
ssl_cert = <{certificate}
ssl_key = <{private_key}
auth_mechanisms = {mechanisms}
auth_master_user_separator = *
auth_failure_delay = 0
login_trusted_networks = 127.0.0.0/8
haproxy_trusted_networks = 127.0.0.0/8
mail_location = maildir:{folder}/mail/%u
first_valid_uid = 1
first_valid_gid = 1
mail_plugins = zlib
# Traces what reaches a session, for those users who have such a folder.
rawlog_dir = {folder}/rawlog/%u
passdb {{
  driver = passwd-file
  args = {folder}/masters
  master = yes
}}
passdb {{
  driver = passwd-file
  mechanisms = plain login
  args = {folder}/users
}}
userdb {{
  driver = passwd-file
  args = {folder}/users
  default_fields = uid={owner} gid={group} home={folder}/mail/%u
}}
namespace inbox {{
  inbox = yes
  separator = /
}}
protocol imap {{
  mail_plugins = zlib imap_zlib
  mail_max_userip_connections = 1000
}}
service imap-login {{
  inet_listener imap {{
    port = {imap_port}
  }}
  inet_listener imaps {{
    port = {imaps_port}
    ssl = yes
  }}
{more_listeners}  service_count = 0
  client_limit = 1000
}}
# Without this the answer to each failed login takes longer than the one before.
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
"""
# Connections that begin with a PROXY header, v1 or v2.
BEHIND_PROXIES = """
  inet_listener imap_haproxy {{
    port = {proxied_imap_port}
    haproxy = yes
  }}
  inet_listener imaps_haproxy {{
    port = {proxied_imaps_port}
    ssl = yes
    haproxy = yes
  }}
"""
# The greeting names the client's address as the server sees it.
TELLING = "login_greeting = Dovecot ready for %r.\n"
CLIENT_CERTIFICATES = """
ssl_ca = <{client_ca}
ssl_verify_client_cert = yes
ssl_require_crl = no
auth_ssl_require_client_cert = yes
"""
# A JWT counts if its header says `typ: JWT`, its `iss` is listed, its `sub` is the name that was asked for, and a key
# lies at keys/AZP/ALG/KID. New keys count at once.
TOKENS = """
passdb {{
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = {folder}/oauth2.conf
}}
"""
TOKENS_CONFIGURATION = """
introspection_mode = local
local_validation_key_dict = fs:posix:prefix={folder}/keys/
username_attribute = sub
issuers = {issuers}
"""
UNPRIVILEGED = """
default_internal_user = {owner}
default_login_user = {owner}
default_internal_group = {group}
service anvil {{
  chroot =
}}
service imap-login {{
  chroot =
}}
service stats {{
  chroot =
}}
"""

# What a JWK says about a private key beside the public one (RFC 7518 §6.2.2, §6.3.2).
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi"})


@dataclass
class Dovecot:
    """One server; its users each own a mailbox `On-NAME`, which tells who answered."""

    name: str
    folder: Path
    imap_port: int
    imaps_port: int
    proxied_imap_port: int = 0  # behind a PROXY header, where it was asked for
    proxied_imaps_port: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def configuration(self) -> Path:
        return self.folder / "dovecot.conf"

    def start(self) -> None:
        """Return once its ports accept."""
        output = (self.folder / "out").open("ab")
        with output:
            self._process = subprocess.Popen(
                [require("dovecot"), "-F", "-c", str(self.configuration)], stdout=output, stderr=output
            )
        try:
            ports = {self.imap_port, self.imaps_port, self.proxied_imap_port, self.proxied_imaps_port}
            wait_until_listening(ports - {0}, 10, self._check_alive)
        except BaseException:
            self.stop()
            raise

    def _check_alive(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"dovecot ended: {(self.folder / 'out').read_text()}")

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

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to each of its processes."""
        if self._process is not None and self._process.poll() is None:
            processes.send(self._process.pid, number)

    def kill(self) -> None:
        """End it as a machine ends that loses its power."""
        assert self._process is not None
        self.send(signal.SIGKILL)
        self._process.wait(5)
        self._process = None
        # What it listened on is still there, and would be in the way.
        for path in (self.folder / "run").glob("**/*"):
            if path.is_socket() or path.name == "master.pid":
                path.unlink()

    def log(self) -> str:
        """Its log, with a line for every login."""
        log = self.folder / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def received(self, name: str) -> bytes:
        """Every octet that the sessions of a traced user got from their client, after login."""
        return b"".join(path.read_bytes() for path in sorted((self.folder / "rawlog" / name).glob("*.in")))

    def trust_keys(self, key_set: Mapping[str, Any]) -> None:
        """Take tokens that are signed with these keys, a JWK set, from now on; those from before stay."""
        for key in key_set["keys"]:
            path = _make(self.folder / "keys" / "default" / key["alg"]) / key["kid"]
            public = PyJWK({name: value for name, value in key.items() if name not in _PRIVATE_MEMBERS}).key
            path.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def trace(self, name: str) -> None:
        """Keep from now on what the sessions of this user receive."""
        _own(_make(self.folder / "rawlog" / name))

    def deliver(self, name: str, message: bytes, mailbox: str = "INBOX") -> None:
        """Put one message into a mailbox as a delivery does, so that sessions in IDLE notice."""
        command = [require("doveadm"), "-c", str(self.configuration), "save", "-u", name, "-m", mailbox]
        subprocess.run(command, input=message, check=True, timeout=20, capture_output=True)

    def fill(self, name: str, messages: list[bytes]) -> None:
        """Put messages into the INBOX by writing its Maildir, before anybody has opened it."""
        inbox = _make(self.folder / "mail" / name / "cur")
        now = int(time.time())
        for number, message in enumerate(messages, 1):
            # Dovecot numbers new files in the order of their names.
            path = inbox / f"{now}.M{number:06}.test:2,"
            path.write_bytes(message.replace(b"\r\n", b"\n"))
            _own(path)


def write_dovecot(
    name: str,
    folder: Path,
    pki: Pki,
    ports: Ports,
    *,
    tokens: Sequence[str] = (),
    proxied: bool = False,
    telling: bool = False,
    client_certificates: bool = False,
) -> Dovecot:
    """Write all that one server needs into `folder`.

    Args:
        tokens: Issuers whose tokens it takes, by XOAUTH2 and OAUTHBEARER; their keys it gets by trust_keys().
        proxied: It listens on two more ports, for connections that begin with a PROXY header.
        telling: Its greeting names the address that it takes for the client's.
        client_certificates: Whoever logs in needs a certificate of `pki.client_ca`.
    """
    _make(folder)
    for part in ("run", "state", "rawlog"):
        _make(folder / part)
    dovecot = Dovecot(name, folder, ports.take(), ports.take())
    if proxied:
        dovecot.proxied_imap_port, dovecot.proxied_imaps_port = ports.take(), ports.take()
    owner, group = _mail_owner()
    values = {
        "mechanisms": "plain login xoauth2 oauthbearer" if tokens else "plain login",
        "issuers": " ".join(tokens),
        "name": name,
        "folder": folder,
        "certificate": pki.certificate,
        "private_key": pki.private_key,
        "imap_port": dovecot.imap_port,
        "imaps_port": dovecot.imaps_port,
        "proxied_imap_port": dovecot.proxied_imap_port,
        "proxied_imaps_port": dovecot.proxied_imaps_port,
        "client_ca": pki.client_ca,
        "owner": owner,
        "group": group,
    }
    values["more_listeners"] = BEHIND_PROXIES.format(**values) if proxied else ""
    text = CONFIGURATION
    if telling:
        text += TELLING
    if client_certificates:
        text += CLIENT_CERTIFICATES
    if tokens:
        text += TOKENS
        (folder / "oauth2.conf").write_text(TOKENS_CONFIGURATION.format(**values))
    if os.geteuid() != 0:
        text += UNPRIVILEGED
    dovecot.configuration.write_text(text.format(**values))
    (folder / "users").write_text("".join(f"{user}:{{PLAIN}}{secret}::::::\n" for user, secret in USERS.items()))
    (folder / "masters").write_text(f"{MASTER}:{{PLAIN}}{MASTER_PASSWORD}\n")
    _own(_make(folder / "mail"))
    for user in USERS:
        for mailbox in ("", f".On-{name}"):
            for part in ("cur", "new", "tmp"):
                _own(_make(folder / "mail" / user / mailbox / part))
            _own(folder / "mail" / user / mailbox)
        _own(folder / "mail" / user)
    return dovecot


def _mail_owner() -> tuple[str, str]:
    if os.geteuid() == 0:
        return "mail", "mail"
    # Looked up here only: these modules exist on Unix alone, and numbers are no user names to Dovecot.
    import grp
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name


def _make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _own(path: Path) -> None:
    if os.geteuid() == 0:
        shutil.chown(path, "mail", "mail")
