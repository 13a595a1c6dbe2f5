"""`python -m score_cli` is `score`."""

from score_cli.cli import main

main()
