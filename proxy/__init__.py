"""imap-porter: an authenticating IMAP proxy and load balancer."""

__version__ = "0.1.0"
