"""One login's story, from accept to the relay, and the accounts at its end."""

from proxy.session.ending import end_session, leave_backend
from proxy.session.house import House
from proxy.session.registrar import Registrar
from proxy.session.visit import serve_client, serve_websocket

__all__ = ["House", "Registrar", "end_session", "leave_backend", "serve_client", "serve_websocket"]
