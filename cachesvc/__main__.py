"""`python -m cachesvc`: the command line."""

from __future__ import annotations

from cachesvc.cli import main

if __name__ == "__main__":
    main()
