"""``python -m logitstore``: the command line, for launchers that take a module."""

from logitstore.cli import main

main()
