"""`python -m lazyload`: the command, where its script is not on the path."""

from lazyload.cli import main

if __name__ == "__main__":
    main()
