"""The people of the tests. No password is part of an everyday word, so that finding one in a log means something."""

from __future__ import annotations

MASTER = "proxyadmin"
MASTER_PASSWORD = "mpass-1b7c"
USERS = {
    "alice": "apass-93kd",
    "bob": "bpass-77ws",
    **{f"u{number:02}": f"pass-of-u{number:02}-x5" for number in range(1, 21)},
}
SECRETS = (MASTER_PASSWORD, *USERS.values())
