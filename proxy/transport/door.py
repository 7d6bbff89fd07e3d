"""A listener in operation: its address, how TLS begins there, and whom it lets in."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from proxy.model import Endpoint
from proxy.settings.client_models import ClientCertificates
from proxy.transport.tls import ClientAuthorities, Context, ServerCertificates

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Door:
    """One entry of `listeners`."""

    def __init__(
        self,
        endpoint: Endpoint,
        tls: str,
        trusted_networks: Sequence[Network],
        certificates: ServerCertificates | None,
        client_certificates: ClientCertificates | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.name = str(endpoint)  # in logs and as a metric's label
        self.tls = tls  # implicit, starttls, none
        self._trusted_networks = tuple(trusted_networks)
        self.client_certificates = client_certificates  # None: clients are not asked for any
        self._context: Context | None = None
        if certificates is not None and tls != "none":
            clients = None
            if client_certificates is not None:
                clients = ClientAuthorities(client_certificates.ca, required=client_certificates.required)
            self._context = certificates.base_context(clients)

    @property
    def trusted(self) -> bool:
        """Whether passwords may pass without TLS: everybody here comes from a trusted network."""
        return self.tls == "none"

    def context(self) -> Context:
        """The base context of this listener."""
        assert self._context is not None
        return self._context

    def lets_in(self, host: str) -> bool:
        """Whether a client from this address may use the listener at all."""
        if self.tls != "none":
            return True
        address = ipaddress.ip_address(host)
        return any(address in network for network in self._trusted_networks)
