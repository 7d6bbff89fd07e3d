"""The certificate of `admin.address`: a context that hypercorn keeps for its lifetime, and what is put into it."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from proxy.settings.models import AdminTls
from proxy.transport.key_pair import read_key_pair


class AdminCertificate:
    """A pair of files, and the context that shows them; whoever connects from then on is shown what they hold now."""

    def __init__(self, tls: AdminTls, context: ssl.SSLContext) -> None:
        """Args:
        context: Has been given what they hold.
        """
        self._certificate, self._private_key, self._context = tls.certificate, tls.private_key, context
        self.ends: dict[Path, datetime] = {}  # when it ends, by its file, since it was renewed
        self._shown: tuple[bytes, bytes] | None = None

    def renew(self, files: Mapping[Path, bytes]) -> bool:
        """The files hold something else; gives whether that makes a difference.

        Args:
            files: What some files hold now, others than these among them.
        Raises:
            ValueError: They can't be used. Nothing has changed.
        """
        if self._certificate not in files or self._private_key not in files:
            return False
        new = files[self._certificate], files[self._private_key]
        if new == self._shown:
            return False
        pair = read_key_pair(*new)
        try:
            # The files themselves may be for root alone by now.
            with _in_memory(new[0]) as certificate, _in_memory(new[1]) as private_key:
                self._context.load_cert_chain(certificate, private_key)
        except (OSError, ssl.SSLError) as exc:
            raise ValueError(f"the certificate cannot be used: {exc.strerror or exc}") from None
        self._shown = new
        self.ends = {self._certificate: pair.not_after}
        return True


@contextmanager
def _in_memory(octets: bytes) -> Iterator[str]:
    """A path to read them from, for whoever takes nothing else."""
    descriptor = os.memfd_create("pem")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(octets)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
