"""Sockets, TLS and listeners: how octets travel. The only room that knows pyOpenSSL."""
