"""A listener in operation: its address, how TLS begins there, whom it lets in, and whom it believes."""

from __future__ import annotations

from proxy.settings.addresses import usual_origin
from proxy.settings.client_models import WebSockets
from proxy.settings.models import Listener
from proxy.settings.networks import NetworkSet
from proxy.transport.tls import HTTP, IMAP, ClientAuthorities, Context, ServerCertificates


class Door:
    """One entry of `listeners`."""

    def __init__(self, listener: Listener, certificates: ServerCertificates | None = None) -> None:
        self.endpoint = listener.address
        self.name = str(listener.address)  # in logs and as a metric's label
        self.protocol = listener.protocol
        self.domains = frozenset(listener.domains)  # socketmap: whose mail is known here; none: everybody's
        self.tls = listener.tls  # implicit, starttls, none
        self._trusted = NetworkSet(listener.trusted_networks)
        self._balancers = NetworkSet(
            () if listener.proxy_protocol is None else listener.proxy_protocol.trusted_networks
        )
        self._webmails = NetworkSet(() if listener.id_address is None else listener.id_address.trusted_networks)
        self.websocket = listener.websocket or WebSockets()
        self.client_certificates = listener.client_certificates  # None: clients are not asked for any
        self.certificates = certificates  # what clients are shown, here and at other doors
        self._context: Context | None = None
        if certificates is not None and self.tls != "none":
            clients = None
            if self.client_certificates is not None:
                clients = ClientAuthorities(self.client_certificates.ca, required=self.client_certificates.required)
            speaks = HTTP if self.protocol == "websocket" else IMAP
            self._context = certificates.base_context(clients, speaks)

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
        return self.tls != "none" or host in self._trusted

    def expects_header(self, host: str) -> bool:
        """Whether a connection from this address begins with a PROXY header."""
        return host in self._balancers

    def believes_forwarded(self, host: str) -> bool:
        """Whether this address is a web server's, whose headers say who its client is."""
        return self.protocol == "websocket" and self.tls == "none" and host in self._trusted

    def learns_later(self, host: str) -> bool:
        """Whether who the client is will be told by the one that connects from this address."""
        return self.expects_header(host) or self.believes_forwarded(host)

    def trusts(self, host: str) -> bool:
        """Whether an address is of the listener's `trusted_networks`."""
        return host in self._trusted

    def allows_origin(self, origin: str | None) -> bool:
        """Whether a page of this origin, as a browser says it, may use the listener; None: nothing was said."""
        if origin is None:
            return not self.websocket.require_origin
        return usual_origin(origin) in self.websocket.origins

    def believes_id(self, host: str) -> bool:
        """Whether who comes from this address may say by ID who its client is."""
        return host in self._webmails
