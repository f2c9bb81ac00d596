"""`python -m bench`: the `resbench` command."""

from bench.cli import main

if __name__ == "__main__":
    main()
