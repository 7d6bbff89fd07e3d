"""IMAP4 as pure code: bytes in, events out. No trio, no clock, no log, no metric (RFC 9051)."""
