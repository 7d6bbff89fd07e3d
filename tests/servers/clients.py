"""Real mail clients that copy a whole INBOX: each takes a door and gives the messages back as it got them.

Every client runs under a limit of its own: some of them wait for ever on a server that has stopped.
"""

from __future__ import annotations

import base64
import imaplib
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from imapclient import IMAPClient

from tests.servers.porter import Door
from tests.servers.ports import Ports, wait_until_listening
from tests.servers.programs import require, require_node_module

LIMIT_SECONDS = 60
HERE = Path(__file__).parent


def imaplib_fetch(door: Door, name: str, password: str) -> list[bytes]:
    """Python's own client."""
    context = door.pki.client_context()
    if door.starttls:
        client = imaplib.IMAP4("localhost", door.port, timeout=LIMIT_SECONDS)
        client.starttls(context)
    else:
        client = imaplib.IMAP4_SSL("localhost", door.port, ssl_context=context, timeout=LIMIT_SECONDS)
    with client:
        client.login(name, password)
        client.select("INBOX", readonly=True)
        _, parts = client.fetch("1:*", "(BODY.PEEK[])")
    return [part[1] for part in parts if isinstance(part, tuple)]


def imapclient_fetch(door: Door, name: str, password: str) -> list[bytes]:
    """IMAPClient."""
    context = door.pki.client_context()
    with IMAPClient(
        "localhost", door.port, ssl=not door.starttls, ssl_context=context, timeout=LIMIT_SECONDS
    ) as client:
        if door.starttls:
            client.starttls(context)
        client.login(name, password)
        client.select_folder("INBOX", readonly=True)
        found = client.fetch(client.search("ALL"), [b"BODY.PEEK[]"])
    return [found[uid][b"BODY[]"] for uid in sorted(found)]


def curl_fetch(door: Door, name: str, password: str, folder: Path, count: int) -> list[bytes]:
    """curl, which asks for one message after the other."""
    scheme, options = ("imap", ["--ssl-reqd"]) if door.starttls else ("imaps", [])
    url = f"{scheme}://localhost:{door.port}/INBOX;MAILINDEX=[1-{count}]"
    command = [require("curl"), "-sS", "--cacert", door.pki.ca, *options, "-u", f"{name}:{password}"]
    run([*command, "-o", folder / "#1.eml", url])
    return [(folder / f"{number}.eml").read_bytes() for number in range(1, count + 1)]


def mbsync_fetch(door: Door, name: str, password: str, folder: Path) -> list[bytes]:
    """mbsync, which compresses by itself."""
    settings = f"""
        IMAPAccount account
        Host localhost
        Port {door.port}
        User {name}
        Pass {password}
        SSLType {"STARTTLS" if door.starttls else "IMAPS"}
        CertificateFile {door.pki.ca}
        AuthMechs LOGIN

        IMAPStore remote
        Account account

        MaildirStore local
        Path {folder}/
        Inbox {folder}/INBOX

        Channel all
        Far :remote:
        Near :local:
        Patterns INBOX
        Create Near
        SyncState *
        """
    (folder / "mbsyncrc").write_text(textwrap.dedent(settings))
    run([require("mbsync"), "-c", folder / "mbsyncrc", "all"], HOME=str(folder))
    # It adds a header of its own to each message.
    return [re.sub(rb"X-TUID: [^\r]*\r\n", b"", message) for message in maildir(folder / "INBOX")]


def mutt_fetch(door: Door, name: str, password: str, folder: Path) -> list[bytes]:
    """mutt, with all the extensions it knows, at a terminal that `script` plays."""
    url = f"{'imap' if door.starttls else 'imaps'}://localhost:{door.port}/"
    settings = f"""
        set ssl_ca_certificates_file={door.pki.ca} certificate_file={door.pki.ca} ssl_force_tls=yes ssl_starttls=yes
        set imap_user={name} imap_pass={password} imap_authenticators=login:plain
        set imap_condstore=yes imap_qresync=yes imap_deflate=yes imap_idle=yes header_cache={folder}/headers
        set mbox_type=Maildir quit=yes copy=no confirmappend=no confirmcreate=no
        set folder={url} spoolfile={url}INBOX
        """
    (folder / "muttrc").write_text(textwrap.dedent(settings))
    copy_all = f"push <tag-pattern>~A<enter><tag-prefix><copy-message>{folder}/copy<enter><exit>"
    mutt = f"{require('mutt')} -n -F {folder}/muttrc -e '{copy_all}'"
    run([require("script"), "-qec", mutt, "/dev/null"], HOME=str(folder), TERM="xterm")
    return maildir(folder / "copy")


def imapflow_fetch(door: Door, name: str, password: str) -> list[bytes]:
    """imapflow from npm, which sends ID and ENABLE, and compresses by itself."""
    node = require("node")
    output = run(
        [node, HERE / "imapflow_fetch.cjs"],
        NODE_PATH=str(require_node_module("imapflow")),
        PORT=str(door.port),
        STARTTLS="1" if door.starttls else "",
        CA=str(door.pki.ca),
        NAME=name,
        PASSWORD=password,
    )
    found = json.loads(output)
    assert found["compressed"], "COMPRESS was not used"
    return [base64.b64decode(message) for message in found["messages"]]


def thunderbird_fetch(door: Door, name: str, password: str, folder: Path, ports: Ports, count: int) -> int:
    """Thunderbird without a window, driven by Marionette; how many messages it has on disk."""
    thunderbird = require("thunderbird")
    marionette = ports.take()
    profile = folder / "profile"
    _write_profile(profile, door, name, marionette)
    command = [thunderbird, "--headless", "--profile", str(profile), "--no-remote", "--marionette"]
    with (folder / "thunderbird.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--remote-allow-system-access"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "HOME": str(folder), "TMPDIR": str(folder)},
        )
    try:
        wait_until_listening({marionette}, 30, lambda: None)
        driver = [sys.executable, HERE / "thunderbird_fetch.py", marionette, name, password, count]
        return int(json.loads(run(driver))["downloaded"])
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def _write_profile(profile: Path, door: Door, name: str, marionette: int) -> None:
    profile.mkdir()
    certutil = require("certutil")
    run([certutil, "-N", "-d", f"sql:{profile}", "--empty-password"])
    run([certutil, "-A", "-d", f"sql:{profile}", "-n", "tests", "-t", "C,,", "-i", door.pki.ca])
    server = "mail.server.server1"
    preferences: Mapping[str, str | int | bool] = {
        "mail.accountmanager.accounts": "account1",
        "mail.accountmanager.defaultaccount": "account1",
        "mail.account.account1.server": "server1",
        "mail.account.account1.identities": "id1",
        "mail.identity.id1.useremail": f"{name}@test.example",
        f"{server}.type": "imap",
        f"{server}.hostname": "localhost",
        f"{server}.port": door.port,
        f"{server}.socketType": 2 if door.starttls else 3,
        f"{server}.userName": name,
        f"{server}.name": name,
        f"{server}.authMethod": 3,
        # A question for the password at start-up would block Marionette, which is to store it first.
        f"{server}.login_at_startup": False,
        f"{server}.check_new_mail": False,
        "mail.provider.suppress_dialog_on_startup": True,
        "mailnews.start_page.enabled": False,
        "mail.rights.version": 1,
        "mail.shell.checkDefaultClient": False,
        "datareporting.policy.dataSubmissionPolicyBypassNotification": True,
        "app.update.auto": False,
        "app.normandy.enabled": False,
        "network.captive-portal-service.enabled": False,
        "network.connectivity-service.enabled": False,
        "marionette.port": marionette,
    }
    lines = [f'user_pref("{key}", {json.dumps(value)});\n' for key, value in preferences.items()]
    (profile / "user.js").write_text("".join(lines))


def run(command: Iterable[object], **environment: str) -> str:
    """Run a program to its end; what it printed. Fails with all its output."""
    words = [str(word) for word in command]
    result = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT_SECONDS,
        env={**os.environ, **environment},
        check=False,
    )
    assert result.returncode == 0, f"{words[0]} ended with {result.returncode}: {result.stderr!r} {result.stdout!r}"
    return result.stdout.decode(errors="replace")


def maildir(folder: Path) -> list[bytes]:
    """The messages of a Maildir, with the line ends of the wire."""
    paths = [*(folder / "new").iterdir(), *(folder / "cur").iterdir()]
    return [path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") for path in paths]
