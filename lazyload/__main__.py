"""`python -m lazyload`: the command, where its script is not on the path."""

from lazyload.cli import main

main()
