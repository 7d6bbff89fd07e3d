"""What operators see: log events and metrics."""
