"""What identity costs a login. By hand: `python -m tests.bench_identity FOLDER [ROUNDS]`.

FOLDER holds `imapload` and `imapsink`, a load generator and a cheap backend; slapd has to be installed. Proxies that
differ in their identity source alone take turns in one run; their own CPU per login (all threads, user and system) is
shown beside that of `backend: {}`, which asks nobody. Ratios of one run compare, microseconds of different runs don't.
"""

from __future__ import annotations

import http.server
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.servers.openid import SigningKey, new_ec_key, new_rsa_key
from tests.servers.pki import write_pki
from tests.servers.porter import Porter, porter_settings
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.slapd import PEOPLE, SERVICE_DN, SERVICE_PASSWORD, Slapd, person, write_slapd

PEOPLE_COUNT = 200
PASSWORD, MASTER_PASSWORD = "bench-7t1w", "master-9k3d"
SESSIONS = 2000
TICKS = os.sysconf("SC_CLK_TCK")
NEVER = {"positive": "0s", "negative": "0s"}
BASELINE = "backend: {}"


@contextmanager
def issuer(keys: list[SigningKey]) -> Iterator[str]:
    """A web server with an issuer's discovery document and keys."""
    documents: dict[str, Any] = {"/keys": {"keys": [key.jwk() for key in keys]}}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(documents[self.path]).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler) as server:
        url = f"http://{LOOPBACK}:{server.server_port}"
        documents["/.well-known/openid-configuration"] = {"issuer": url, "jwks_uri": f"{url}/keys"}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield url
        server.shutdown()


def token(key: SigningKey, url: str) -> str:
    now = int(time.time())
    claims = {"iss": url, "sub": "user00001@example.org", "aud": "imap", "scope": "imap", "exp": now + 3600, "iat": now}
    return key.mint(claims, typ="at+jwt")


class Contender:
    """One proxy and how it is logged in to."""

    def __init__(self, name: str, porter: Porter, load: list[str]) -> None:
        self.name, self.porter, self.load = name, porter, load
        self.microseconds: list[float] = []

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.porter.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def run(self, folder: Path, sessions: int) -> None:
        """Log in so many times, and note the proxy's CPU."""
        before = self.cpu_seconds()
        command = [folder / "imapload", "login", "--port", str(self.porter.imaps_port), "--sessions", str(sessions)]
        output = subprocess.run([*command, *self.load], capture_output=True, text=True, timeout=600, check=False).stdout
        failed = json.JSONDecoder().raw_decode(output)[0]["failed"]
        if failed:
            refused = self.porter.log("login.refused")
            sys.exit(f"{self.name}: {failed} of {sessions} logins failed, e.g. {refused[-1:]}")
        self.microseconds.append((self.cpu_seconds() - before) / sessions * 1e6)


def main(folder: Path, rounds: int) -> None:
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scratch.chmod(0o755)
        contenders = furnish(folder, scratch, stack)
        for each in contenders:  # warm: pools, keys, caches, Python itself
            each.run(folder, 1000)
            each.microseconds.clear()
        for number in range(rounds):
            for each in contenders[:: 1 if number % 2 else -1]:
                each.run(folder, SESSIONS)
    show(contenders)


def furnish(folder: Path, scratch: Path, stack: ExitStack) -> list[Contender]:
    """Everything that a run needs, started."""
    ports, pki = Ports(), write_pki(scratch / "pki")
    sink_port = ports.take()
    command = [folder / "imapsink", "--listen", f"{LOOPBACK}:{sink_port}", "--password", PASSWORD]
    sink = subprocess.Popen([*command, "--master-password", MASTER_PASSWORD], stdout=subprocess.DEVNULL)
    stack.callback(sink.kill)
    slapd = write_slapd(scratch / "slapd", ports, pki)
    slapd.start()
    stack.callback(slapd.stop)
    names = [f"user{number:05}" for number in range(1, PEOPLE_COUNT + 1)]
    slapd.add("\n".join(person(name, PASSWORD, mail=f"{name}@example.org") for name in names))
    (scratch / "ldap.password").write_text(SERVICE_PASSWORD)
    (scratch / "master.password").write_text(MASTER_PASSWORD)
    rsa, ec = new_rsa_key("rsa"), new_ec_key("ec")
    url = stack.enter_context(issuer([rsa, ec]))

    def contend(name: str, source: Mapping[str, Any], cache: Mapping[str, str], load: list[str]) -> Contender:
        home = scratch / f"porter-{len(contenders)}"
        home.mkdir()
        settings, taken = porter_settings(pki, {"sink": f"imap://{LOOPBACK}:{sink_port}"}, ports)
        settings |= {"identity": [source], "cache": dict(cache)}
        settings["limits"] = dict.fromkeys(("connections", "connections_per_address", "connections_per_user"), 20000)
        settings["limits"]["exempt_networks"] = ["127.0.0.0/8"]
        if "backend" not in source:
            secret = {"file": str(scratch / "master.password")}
            settings["backends"]["login"] = {"method": "master", "name": "porter", "password": secret}
        porter = Porter(home, settings, pki, taken)
        stack.callback(porter.kill)
        return Contender(name, porter, load)

    contenders: list[Contender] = []
    password = ["--users", str(PEOPLE_COUNT), "--password", PASSWORD]
    ldap, oauth = ldap_settings(scratch, slapd), {"oauth": {"issuer": url, "audience": "imap", "scopes": ["imap"]}}
    for name, source, cache, load in (
        (BASELINE, {"backend": {}}, {}, password),
        ("LDAP, search and bind", ldap, NEVER, password),
        ("LDAP, remembered", ldap, {}, password),
        ("JWT, RS256", oauth, NEVER, bearer(token(rsa, url))),
        ("JWT, ES256", oauth, NEVER, bearer(token(ec, url))),
        ("JWT, remembered", oauth, {}, bearer(token(rsa, url))),
    ):
        contenders.append(contend(name, source, cache, load))
    return contenders


def bearer(token: str) -> list[str]:
    return ["--users", "1", "--auth", "xoauth2", "--token", token]


def ldap_settings(scratch: Path, slapd: Slapd) -> dict[str, Any]:
    bind = {"dn": SERVICE_DN, "password": {"file": str(scratch / "ldap.password")}}
    search = {"base": PEOPLE, "filter": "(&(objectClass=inetOrgPerson)(mail={name}))"}
    attributes = {"name": "mail", "backend": "mailHost"}
    return {"ldap": {"urls": [slapd.url], "bind": bind, "search": search, "attributes": attributes}}


def show(contenders: list[Contender]) -> None:
    """Medians, and the median ratio of the rounds."""
    base = contenders[0].microseconds
    table = Table(
        "identity", "µs per login", "ratio", "of each round", title=f"{len(base)} rounds of {SESSIONS} logins"
    )
    for each in contenders:
        ratios = [own / other for own, other in zip(each.microseconds, base, strict=True)]
        median = f"{statistics.median(each.microseconds):.0f}"
        table.add_row(each.name, median, f"{statistics.median(ratios):.2f}", " ".join(f"{r:.2f}" for r in ratios))
    Console().print(table)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 5)
