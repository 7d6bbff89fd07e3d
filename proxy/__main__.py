"""`python -m proxy` is the command `imap-porter`."""

from proxy.cli.main import main

if __name__ == "__main__":
    main()
