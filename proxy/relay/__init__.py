"""The engine that carries established sessions, and the splice of one client and one backend."""
