"""Real mail clients that log in with a token and copy a whole INBOX, as those in `clients` do with a password."""

from __future__ import annotations

import base64
import json
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import load_pem_x509_certificate
from imapclient import IMAPClient

from tests.servers.clients import HERE, LIMIT_SECONDS, maildir, run
from tests.servers.porter import Door
from tests.servers.programs import require, require_node_module

# A door, whose token, the token, a folder for the client alone, how many messages there are.
Fetch = Callable[[Door, str, str, Path, int], list[bytes]]


@dataclass(frozen=True)
class TokenClient:
    """A client by the one mechanism that it uses here."""

    mechanism: str
    fetch: Fetch
    faithful: bool = True  # False: it writes header fields of its own into each copy
    # False: when a token is refused, by Dovecot too, mutt waits at its keyboard, and mbsync without end.
    gives_up: bool = True
    ways: tuple[str, ...] = ("imaps", "starttls")  # the doors it can be relied on to find its way through


def imapclient_fetch(mechanism: str, door: Door, name: str, token: str, folder: Path, count: int) -> list[bytes]:
    """IMAPClient, which waits for the continuation request before it shows the token."""
    context = door.pki.client_context()
    with IMAPClient(
        "localhost", door.port, ssl=not door.starttls, ssl_context=context, timeout=LIMIT_SECONDS
    ) as client:
        if door.starttls:
            client.starttls(context)
        if mechanism == "XOAUTH2":
            client.oauth2_login(name, token)
        else:
            client.oauthbearer_login(name, token)
        client.select_folder("INBOX", readonly=True)
        found = client.fetch(client.search("ALL"), [b"BODY.PEEK[]"])
    return [found[uid][b"BODY[]"] for uid in sorted(found)]


def curl_fetch(door: Door, name: str, token: str, folder: Path, count: int) -> list[bytes]:
    """curl, which takes OAUTHBEARER where that is offered, and asks for one message after the other."""
    scheme, options = ("imap", ["--ssl-reqd"]) if door.starttls else ("imaps", [])
    url = f"{scheme}://localhost:{door.port}/INBOX;MAILINDEX=[1-{count}]"
    command = [require("curl"), "-sS", "--cacert", door.pki.ca, *options, "-u", name, "--oauth2-bearer", token]
    run([*command, "-o", folder / "#1.eml", url])
    return [(folder / f"{number}.eml").read_bytes() for number in range(1, count + 1)]


def mbsync_fetch(door: Door, name: str, token: str, folder: Path, count: int) -> list[bytes]:
    """mbsync, which leaves SASL to Cyrus's library and its plugin for XOAUTH2."""
    settings = f"""
        IMAPAccount account
        Host localhost
        Port {door.port}
        User {name}
        Pass {token}
        SSLType {"STARTTLS" if door.starttls else "IMAPS"}
        CertificateFile {door.pki.ca}
        AuthMechs XOAUTH2

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


def offlineimap_fetch(door: Door, name: str, token: str, folder: Path, count: int) -> list[bytes]:
    """offlineimap, which compresses too."""
    # In a certificate it looks for the common name, and ours have alternative names alone.
    certificate = load_pem_x509_certificate(door.pki.certificate.read_bytes())
    settings = f"""
        [general]
        accounts = account
        metadata = {folder}/metadata
        ui = basic
        [Account account]
        localrepository = local
        remoterepository = remote
        [Repository local]
        type = Maildir
        localfolders = {folder}/mail
        [Repository remote]
        type = IMAP
        remotehost = localhost
        remoteport = {door.port}
        remoteuser = {name}
        auth_mechanisms = XOAUTH2
        oauth2_access_token = {token}
        ssl = yes
        starttls = no
        cert_fingerprint = {certificate.fingerprint(SHA256()).hex()}
        usecompression = yes
        folderfilter = lambda folder: folder == 'INBOX'
        """
    (folder / "offlineimaprc").write_text(textwrap.dedent(settings))
    run([require("offlineimap"), "-c", folder / "offlineimaprc", "-o"], HOME=str(folder))
    return maildir(folder / "mail" / "INBOX")


def mutt_fetch(mechanism: str, door: Door, name: str, token: str, folder: Path, count: int) -> list[bytes]:
    """mutt, which runs a command to get the token, at a terminal that `script` plays."""
    (folder / "token").write_text(token + "\n")
    url = f"{'imap' if door.starttls else 'imaps'}://localhost:{door.port}/"
    settings = f"""
        set ssl_ca_certificates_file={door.pki.ca} certificate_file={door.pki.ca} ssl_force_tls=yes ssl_starttls=yes
        set imap_user={name} imap_authenticators={mechanism.lower()}
        set imap_oauth_refresh_command="cat {folder}/token"
        set imap_condstore=yes imap_qresync=yes imap_deflate=yes imap_idle=yes header_cache={folder}/headers
        set mbox_type=Maildir quit=yes copy=no confirmappend=no confirmcreate=no
        set folder={url} spoolfile={url}INBOX
        """
    (folder / "muttrc").write_text(textwrap.dedent(settings))
    copy_all = f"push <tag-pattern>~A<enter><tag-prefix><copy-message>{folder}/copy<enter><exit>"
    mutt = shlex.join([require("mutt"), "-n", "-F", f"{folder}/muttrc", "-e", copy_all])
    run([require("script"), "-qec", mutt, "/dev/null"], HOME=str(folder), TERM="xterm")
    return maildir(folder / "copy")


def imapflow_fetch(mechanism: str, door: Door, name: str, token: str, folder: Path, count: int) -> list[bytes]:
    """imapflow from npm, which puts host and port beside the token."""
    output = run(
        [require("node"), HERE / "imapflow_token.cjs"],
        NODE_PATH=str(require_node_module("imapflow")),
        PORT=str(door.port),
        STARTTLS="1" if door.starttls else "",
        CA=str(door.pki.ca),
        NAME=name,
        TOKEN=token,
        MECHANISM=mechanism,
    )
    return [base64.b64decode(message) for message in json.loads(output)["messages"]]


CLIENTS: Mapping[str, TokenClient] = {
    "imapclient, XOAUTH2": TokenClient("XOAUTH2", partial(imapclient_fetch, "XOAUTH2")),
    "imapclient, OAUTHBEARER": TokenClient("OAUTHBEARER", partial(imapclient_fetch, "OAUTHBEARER")),
    "curl, OAUTHBEARER": TokenClient("OAUTHBEARER", curl_fetch),
    "mbsync, XOAUTH2": TokenClient("XOAUTH2", mbsync_fetch, gives_up=False),
    # With STARTTLS its threads race: of 65 runs at Dovecot alone 26 hung, failed or crashed, of 65 with IMAPS none.
    "offlineimap, XOAUTH2": TokenClient("XOAUTH2", offlineimap_fetch, ways=("imaps",)),
    "mutt, XOAUTH2": TokenClient("XOAUTH2", partial(mutt_fetch, "XOAUTH2"), faithful=False, gives_up=False),
    "mutt, OAUTHBEARER": TokenClient("OAUTHBEARER", partial(mutt_fetch, "OAUTHBEARER"), faithful=False, gives_up=False),
    "imapflow, XOAUTH2": TokenClient("XOAUTH2", partial(imapflow_fetch, "XOAUTH2")),
    "imapflow, OAUTHBEARER": TokenClient("OAUTHBEARER", partial(imapflow_fetch, "OAUTHBEARER")),
}
