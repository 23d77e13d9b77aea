"""`python -m lmjax COMMAND`: the same as the `lmjax` command."""

from lmjax.cli.main import main

if __name__ == "__main__":
    main()
