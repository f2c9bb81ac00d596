"""The `resbench` command, also as `python -m bench`: it ends with a documented exit code, whatever happens.

Python itself ends with 1 where nobody catches an error, and 1 says here that parity failed. Standard library only, up
to the command itself: an installation may lack a package.
"""

import sys

from bench.terminal import failure, streams

_FAILED = 3  # as bench.terminal.exits.Exit.FAILED, which may be what cannot be imported


def main() -> None:
    """Run the command and end the process."""
    streams.settle()
    try:
        ends = _run()
    except KeyboardInterrupt:
        ends = _say("Stopped.")
    except Exception as error:  # noqa: BLE001 - the border of the process
        ends = _say(f"Error: {failure.tell(error)}")
    if why := streams.finish():
        ends = ends or _say(f"Error: not everything could be printed: {why}")
    sys.exit(ends)


def _run() -> int:
    import click  # noqa: PLC0415 - each may fail

    from bench.cli import main as command  # noqa: PLC0415

    try:
        return int(command.main(standalone_mode=False) or 0)  # alone, click ends with 1 where it is interrupted
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return _say("Stopped.")


def _say(text: str) -> int:
    print(text, file=sys.stderr)  # noqa: T201 - click may be what cannot be imported
    return _FAILED


if __name__ == "__main__":
    main()
