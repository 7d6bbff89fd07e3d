"""The certificate of the admin door is renewed while it is served."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from proxy.app.admin_certificate import AdminCertificate
from proxy.app.files import Watch, groups_of
from proxy.settings.models import AdminTls, Settings

AUTHORITY = trustme.CA()


def pem(name: str, **more: datetime) -> tuple[bytes, bytes]:
    leaf = AUTHORITY.issue_cert(name, **more)  # type: ignore[arg-type]
    return b"".join(blob.bytes() for blob in leaf.cert_chain_pems), leaf.private_key_pem.bytes()


OLD, NEW = pem("old.example"), pem("new.example", not_after=datetime.now(UTC) + timedelta(days=3))


class Stage:
    """A pair of files, gone since they were read, and a context that shows them."""

    def __init__(self, folder: Path) -> None:
        self.crt, self.key = folder / "admin.crt", folder / "admin.key"
        for path, octets in ((self.crt, OLD[0]), (self.key, OLD[1])):
            path.write_bytes(octets)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(self.crt, self.key)
        self.settings = Settings.model_validate(
            {
                "version": 1,
                "listeners": [{"address": "127.0.0.1:1143", "tls": "none", "trusted_networks": ["127.0.0.0/8"]}],
                "identity": [{"backend": {}}],
                "backends": {"servers": [{"name": "d1", "url": "imap://127.0.0.1:1"}]},
                "admin": {
                    "address": "127.0.0.1:9143",
                    "tls": {"certificate": str(self.crt), "private_key": str(self.key)},
                },
            },
            context={"folder": folder},
        )
        tls = self.settings.admin.tls
        assert isinstance(tls, AdminTls)
        self.certificate = AdminCertificate(tls, self.context)

    def shows(self) -> str:
        """Whose certificate somebody is shown who connects now."""
        client = ssl.create_default_context()
        AUTHORITY.configure_trust(client)
        client.check_hostname = False
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        one = client.wrap_bio(to_client, to_server)
        other = self.context.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(6):
            for end in (one, other):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        found = one.getpeercert()
        assert found is not None
        ((_, name),) = found["subjectAltName"]  # type: ignore[misc]
        return str(name)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_it_is_watched(stage: Stage) -> None:
    assert [group.paths for group in groups_of(stage.settings)] == [(stage.crt, stage.key)]
    watch = Watch(stage.settings)
    stage.crt.write_bytes(NEW[0])
    stage.key.write_bytes(NEW[1])
    watch.poll()
    assert watch.poll() == {stage.crt: NEW[0], stage.key: NEW[1]}


def test_nobody_watches_what_nobody_shows(stage: Stage) -> None:
    nowhere = stage.settings.admin.model_copy(update={"address": None})
    assert groups_of(stage.settings.model_copy(update={"admin": nowhere})) == []


def test_the_next_one_is_shown_the_new_one(stage: Stage) -> None:
    assert stage.shows() == "old.example"
    stage.crt.unlink()
    stage.key.unlink()  # it is root's alone
    new = {stage.crt: NEW[0], stage.key: NEW[1]}
    assert stage.certificate.renew(new)
    assert stage.shows() == "new.example"
    (end,) = stage.certificate.ends.values()
    assert timedelta(days=2) < end - datetime.now(UTC) < timedelta(days=4)
    assert not stage.certificate.renew(new), "it is no news"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ((NEW[0], OLD[1]), "does not fit"),
        ((b"", NEW[1]), "no certificate"),
        ((NEW[0], b"-----BEGIN PRIVATE KEY-----\n"), "without its end"),
    ],
)
def test_what_cannot_be_used_changes_nothing(stage: Stage, files: tuple[bytes, bytes], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        stage.certificate.renew(dict(zip((stage.crt, stage.key), files, strict=True)))
    assert stage.shows() == "old.example"
    assert stage.certificate.ends == {}


def test_others_files_are_not_its(stage: Stage) -> None:
    assert not stage.certificate.renew({stage.crt.with_name("other.crt"): NEW[0]})
    assert not stage.certificate.renew({stage.crt: NEW[0]})
    assert stage.shows() == "old.example"
