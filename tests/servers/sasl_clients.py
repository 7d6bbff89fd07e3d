"""Real mail clients that are told which SASL mechanism to take, and copy a whole INBOX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

from tests.servers.clients import maildir, run
from tests.servers.porter import Door
from tests.servers.programs import require


def mbsync_fetch(door: Door, account: str, folder: Path) -> list[bytes]:
    """mbsync, which speaks what Cyrus SASL does.

    Args:
        account: Settings of its account: `User`, `Pass`, `AuthMechs` and the like.
    """
    settings = f"""
        Host localhost
        Port {door.port}
        SSLType {"STARTTLS" if door.starttls else "IMAPS"}
        CertificateFile {door.pki.ca}

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
    (folder / "mbsyncrc").write_text(f"IMAPAccount account\n{account}" + dedent(settings))
    run([require("mbsync"), "-c", folder / "mbsyncrc", "all"], HOME=str(folder))
    return maildir(folder / "INBOX")


def mutt_fetch(door: Door, account: str, folder: Path) -> list[bytes]:
    """mutt, which speaks what GNU SASL does, at a terminal that `script` plays.

    Args:
        account: Its settings: `imap_user`, `imap_pass`, `imap_authenticators` and the like.
    """
    url = f"{'imap' if door.starttls else 'imaps'}://localhost:{door.port}/"
    settings = f"""
        set ssl_ca_certificates_file={door.pki.ca} certificate_file={door.pki.ca} ssl_force_tls=yes ssl_starttls=yes
        set mbox_type=Maildir quit=yes copy=no confirmappend=no confirmcreate=no
        set folder={url} spoolfile={url}INBOX
        """
    (folder / "muttrc").write_text(f"{account}{dedent(settings)}")
    copy_all = f"push <tag-pattern>~A<enter><tag-prefix><copy-message>{folder}/copy<enter><exit>"
    mutt = f"{require('mutt')} -n -F {folder}/muttrc -e '{copy_all}'"
    run([require("script"), "-qec", mutt, "/dev/null"], HOME=str(folder), TERM="xterm")
    return maildir(folder / "copy")


def curl_fetch(door: Door, options: Sequence[object], folder: Path, count: int) -> list[bytes]:
    """curl, which asks for one message after the other.

    Args:
        options: `--cert`, `--user`, `--login-options` and the like.
    """
    scheme, starttls = ("imap", ["--ssl-reqd"]) if door.starttls else ("imaps", [])
    url = f"{scheme}://localhost:{door.port}/INBOX;MAILINDEX=[1-{count}]"
    run([require("curl"), "-sS", "--cacert", door.pki.ca, *starttls, *options, "-o", folder / "#1.eml", url])
    return [(folder / f"{number}.eml").read_bytes() for number in range(1, count + 1)]
