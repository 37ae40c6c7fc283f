"""The command line, ``python -m groupnorm``: one module a subcommand."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import groupnorm

from . import bench, info, onnx, run, study
from .command import BAD_INPUT, OK, BadInput, Parser, require_threads_of_environment

__all__ = ["main"]


def _parser() -> Parser:
    parser = Parser(
        prog="groupnorm",
        description="Group normalization and its family on CPUs.",
        epilog="Exit status: 0 success, 1 a result is wrong (bench), 2 an invalid command line or file.",
    )
    parser.add_argument("--version", action="version", version=groupnorm.__version__)
    commands = parser.add_subparsers(
        title="subcommands", metavar="info | run | bench | study | onnx"
    )
    for command in (info, run, bench, study, onnx):
        command.add_to(commands)
    return parser


class _Killed(BaseException):
    """A signal, as an exception: so temporary files are removed."""

    def __init__(self, number: int) -> None:
        self.number = number


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Killed(number)


def _handle_signals() -> None:
    """Those that are ignored, as by nohup, stay so. Python itself turns SIGINT to an exception."""
    for name in ("SIGHUP", "SIGTERM"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)


def _complain(why: str) -> int:
    print(f"groupnorm: {why}", file=sys.stderr)
    return BAD_INPUT


def _flush_output() -> None:
    if sys.stdout is None:
        raise BadInput("standard output: is closed")
    sys.stdout.flush()


def _forget_output() -> None:
    """What is left of it, which the interpreter would try to write again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
    except SystemExit:  # --help, --version
        return OK
    if "command" not in options:
        raise BadInput("a subcommand is required; groupnorm --help lists them")
    if getattr(options, "threads", None) is None:
        require_threads_of_environment()
    status: int = options.command(options)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line ``arguments``, those of the process by default.

    The process dies of SIGHUP, SIGINT, SIGTERM and SIGPIPE (its reader, say ``head``, has had
    enough) as if they were not handled, but leaves no temporary file.

    Returns:
        The exit status: 0 done, 1 a result is wrong, 2 a bad command line or file.
    """
    if arguments is None:
        _handle_signals()
    try:
        status = _run(arguments)
        _flush_output()
        return status
    except BadInput as error:
        return _complain(str(error))
    except MemoryError:
        return _complain("out of memory")
    except BrokenPipeError:
        _forget_output()
        number = int(getattr(signal, "SIGPIPE", signal.SIGTERM))
    except OSError as error:  # a command has told of those of its files
        _forget_output()
        return _complain(f"standard output: {error.strerror or error}")
    except KeyboardInterrupt:
        number = signal.SIGINT
    except _Killed as killed:
        number = killed.number
    if arguments is None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return 128 + number
