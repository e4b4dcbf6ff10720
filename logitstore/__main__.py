"""``python -m logitstore``: the command line, for launchers that take a module."""

from __future__ import annotations

from logitstore.cli import main

main()
