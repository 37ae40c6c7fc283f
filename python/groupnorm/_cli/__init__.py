"""The command line, ``python -m groupnorm``: one module a subcommand."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import groupnorm

from . import bench, info, run, study
from .command import BAD_INPUT, BadInput, Parser

__all__ = ["main"]


def _parser() -> Parser:
    parser = Parser(
        prog="groupnorm",
        description="Group normalization and its family on CPUs.",
        epilog="Exit status: 0 done, 1 a result is wrong (bench), 2 a bad command line or file.",
    )
    parser.add_argument("--version", action="version", version=groupnorm.__version__)
    commands = parser.add_subparsers(title="subcommands", metavar="info | run | bench | study")
    for command in (info, run, bench, study):
        command.add_to(commands)
    return parser


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # as an exception, so that temporary files are removed


def _complain(why: str) -> int:
    print(f"groupnorm: {why}", file=sys.stderr)
    return BAD_INPUT


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line ``arguments``, those of the process by default.

    Returns:
        The exit status: 0 done, 1 a result is wrong, 2 a bad command line or file.
    """
    if arguments is None:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        options = _parser().parse_args(arguments)
        if "command" not in options:
            raise BadInput("a subcommand is required; groupnorm --help lists them")
        status: int = options.command(options)
        sys.stdout.flush()
        return status
    except BadInput as error:
        return _complain(str(error))
    except MemoryError:
        return _complain("out of memory")
    except BrokenPipeError:  # the reader, say `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
