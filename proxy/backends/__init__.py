"""The servers behind the proxy: connections to them, and logging in there for a user."""
