"""A real OpenLDAP on loopback: a folder with everything in it, a process in the foreground, stopped by its id."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from tests.servers.accounts import USERS
from tests.servers.pki import Pki
from tests.servers.ports import Ports, wait_until_listening
from tests.servers.programs import SEARCH_PATH, require

SUFFIX = "dc=test,dc=example"
PEOPLE = f"ou=people,{SUFFIX}"
REFERRED = f"ou=elsewhere,{SUFFIX}"  # a referral to a port where nobody listens
SERVICE_DN = f"cn=porter,{SUFFIX}"
SERVICE_PASSWORD = "spass-4q8z"
ADMIN_DN = f"cn=admin,{SUFFIX}"
ADMIN_PASSWORD = "admin-6m2c"
POLICY_DN = f"cn=expiring,{SUFFIX}"
POLICY = f"""\
dn: {POLICY_DN}
objectClass: organizationalRole
objectClass: pwdPolicy
cn: expiring
pwdAttribute: userPassword
pwdMaxAge: 1
"""
RESET_POLICY_DN = f"cn=reset,{SUFFIX}"
RESET_POLICY = f"""\
dn: {RESET_POLICY_DN}
objectClass: organizationalRole
objectClass: pwdPolicy
cn: reset
pwdAttribute: userPassword
pwdMustChange: TRUE
"""

CONFIGURATION = """
include {schema}/core.schema
include {schema}/cosine.schema
include {schema}/inetorgperson.schema
include {folder}/local.schema
pidfile {folder}/pid
argsfile {folder}/args
modulepath {modules}
moduleload back_mdb
moduleload ppolicy
{tls}
threads 4
database mdb
suffix "{suffix}"
rootdn "{admin_dn}"
rootpw {admin_password}
directory {folder}/db
maxsize 16777216
index objectClass,uid,mail eq
overlay ppolicy
access to attrs=userPassword by anonymous auth by * none
access to *
  by dn.exact="{service_dn}" read
  by dn.exact="gidNumber={gid}+uidNumber={uid},cn=peercred,cn=external,cn=auth" read
  by self read
  by anonymous auth
  by * none
"""
TLS = """
TLSCACertificateFile {ca}
TLSCertificateFile {certificate}
TLSCertificateKeyFile {private_key}
"""
LOCAL_SCHEMA = """
attributetype ( 1.3.6.1.4.1.99999.1.1 NAME 'mailHost' DESC 'the IMAP backend of a person'
  EQUALITY caseIgnoreIA5Match SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 )
attributetype ( 1.3.6.1.4.1.99999.1.2 NAME 'blob' DESC 'anything'
  EQUALITY octetStringMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.40 )
objectclass ( 1.3.6.1.4.1.99999.2.1 NAME 'mailPerson' SUP top AUXILIARY MAY ( mailHost $ blob ) )
"""
MODULES = ("/usr/lib/ldap", "/usr/lib/openldap", "/usr/lib64/openldap")


@dataclass
class Slapd:
    """One server with `accounts.USERS` in it, plus whatever a test adds."""

    folder: Path
    port: int
    tls_port: int | None  # None: a server that knows no TLS
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"ldap://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        return f"ldaps://127.0.0.1:{self.tls_port}"

    @property
    def socket_url(self) -> str:
        return f"ldapi://{quote(str(self.folder / 'ldapi'), safe='')}"

    @staticmethod
    def misnamed(url: str) -> str:
        """The same server at an address that its certificate does not name."""
        return url.replace("127.0.0.1", "127.0.0.2")

    def start(self) -> None:
        """Return once its ports accept."""
        urls = [self.url, self.socket_url, self.misnamed(self.url)]
        if self.tls_port:
            urls += [self.tls_url, self.misnamed(self.tls_url)]
        # Named by -d, it stays in the foreground.
        command = [require("slapd"), "-d", "0", "-f", str(self.folder / "slapd.conf"), "-h", " ".join(urls)]
        with (self.folder / "out").open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_until_listening({self.port, self.tls_port or self.port}, 10, self._check_alive)
        except BaseException:
            self.stop()
            raise

    def _check_alive(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"slapd ended: {(self.folder / 'out').read_text()}")

    def stop(self) -> None:
        """End it and all its connections."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process = None

    def freeze(self) -> None:
        """Let it answer nobody; the kernel goes on accepting connections for it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def add(self, ldif: str) -> None:
        """Add entries while it runs."""
        require("ldapadd")
        self._as_admin("ldapadd", ldif)

    def delete(self, *dns: str) -> None:
        """Take entries out while it runs."""
        self._as_admin("ldapdelete", "".join(f"{dn}\n" for dn in dns))

    def _as_admin(self, program: str, text: str) -> None:
        command = [require(program), "-x", "-H", self.url, "-D", ADMIN_DN, "-w", ADMIN_PASSWORD]
        subprocess.run(command, input=text.encode(), check=True, timeout=20, capture_output=True)


def person(uid: str, password: str | None, **attributes: str | bytes | Sequence[str | bytes]) -> str:
    """An entry as LDIF. It has a mail address `UID@test.example` unless `mail` says otherwise."""
    values: dict[str, str | bytes | Sequence[str | bytes]] = {"mail": f"{uid}@test.example", **attributes}
    if password is not None:
        values["userPassword"] = password
    lines = [f"dn: uid={uid},{PEOPLE}", "objectClass: inetOrgPerson", "objectClass: mailPerson"]
    lines += [f"uid: {uid}", f"cn: {uid}", f"sn: {uid}"]
    for name, given in values.items():
        for value in [given] if isinstance(given, (str, bytes)) else given:
            octets = value.encode() if isinstance(value, str) else value
            lines.append(f"{name}:: {base64.b64encode(octets).decode()}")
    return "\n".join(lines) + "\n\n"


def write_slapd(folder: Path, ports: Ports, pki: Pki | None, more: str = "") -> Slapd:
    """Write all that one server needs into `folder`.

    Args:
        folder: Its path is short, for a socket is in it.
        ports: Where ports come from.
        pki: None: without TLS.
        more: Further entries as LDIF.
    """
    (folder / "db").mkdir(parents=True)
    server = Slapd(folder, ports.take(), ports.take() if pki else None)
    tls: Mapping[str, Path] = (
        {"ca": pki.ca, "certificate": pki.certificate, "private_key": pki.private_key} if pki else {}
    )
    (folder / "local.schema").write_text(LOCAL_SCHEMA)
    (folder / "slapd.conf").write_text(
        CONFIGURATION.format(
            folder=folder,
            schema=_existing("/etc/ldap/schema", "/etc/openldap/schema"),
            modules=_existing(*MODULES),
            tls=TLS.format(**tls) if tls else "",
            suffix=SUFFIX,
            admin_dn=ADMIN_DN,
            admin_password=ADMIN_PASSWORD,
            service_dn=SERVICE_DN,
            gid=os.getegid(),
            uid=os.geteuid(),
        )
    )
    (folder / "init.ldif").write_text(_tree(ports.take()) + more)
    command = [require("slapadd"), "-f", str(folder / "slapd.conf"), "-l", str(folder / "init.ldif")]
    subprocess.run(command, check=True, timeout=20, capture_output=True, env={**os.environ, "PATH": SEARCH_PATH})
    return server


def _tree(dead_port: int) -> str:
    people = "".join(person(uid, password, mailHost=f"{uid}.backend.example") for uid, password in USERS.items())
    return f"""\
dn: {SUFFIX}
objectClass: dcObject
objectClass: organization
o: Test
dc: test

dn: {SERVICE_DN}
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: porter
userPassword: {SERVICE_PASSWORD}

dn: {PEOPLE}
objectClass: organizationalUnit
ou: people

dn: {REFERRED}
objectClass: referral
objectClass: extensibleObject
ou: elsewhere
ref: ldap://127.0.0.1:{dead_port}/{REFERRED}

{POLICY}
{RESET_POLICY}
{people}"""


def _existing(*folders: str) -> str:
    return next((folder for folder in folders if Path(folder).is_dir()), folders[0])


def remove(server: Slapd) -> None:
    """Stop it and take its folder away."""
    server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)
