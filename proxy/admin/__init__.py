"""The side door: metrics, health and administration over HTTP."""
