"""The command `imap-porter`."""
