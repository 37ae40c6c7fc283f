"""Files that are written whole or not at all."""

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from .command import BadInput


def _refuse(path: Path, why: str) -> BadInput:
    return BadInput(f"'{path}': cannot be written: {why}")


def _is_output_of_this_process(found: os.stat_result) -> bool:
    for stream in (sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError):  # closed
            if stream is not None and os.path.samestat(found, os.fstat(stream.fileno())):
                return True
    return False


def require_replaceable(path: Path, found: os.stat_result) -> None:
    """Refuses an existing file that must stay what it is."""
    if stat.S_ISDIR(found.st_mode):
        raise _refuse(path, "is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise _refuse(path, "is not a regular file")
    if _is_output_of_this_process(found):
        raise _refuse(path, "takes the output of this program")
    if found.st_nlink > 1:
        raise _refuse(
            path, f"has {found.st_nlink} names (hard links), of which only one would be replaced"
        )
    # The bits as well: root may write to every file, and means no more than others to lose it.
    if not found.st_mode & 0o222 or not os.access(path, os.W_OK):
        raise _refuse(path, "is read-only")


def _keep(found: os.stat_result, target: Path, temporary: Path) -> None:
    """Gives `temporary` what belongs to `target` beside its bytes."""
    now = temporary.stat()
    if hasattr(os, "chown") and (now.st_uid, now.st_gid) != (found.st_uid, found.st_gid):
        os.chown(temporary, found.st_uid, found.st_gid)
    temporary.chmod(stat.S_IMODE(found.st_mode))  # a change of owner clears bits of it
    if hasattr(os, "listxattr"):
        for name in os.listxattr(target):
            os.setxattr(temporary, name, os.getxattr(target, name))


@contextlib.contextmanager
def pending(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its name if all goes well, and else goes.

    It takes the mode, the owner and the extended attributes of the file that it replaces. A
    symbolic link stays: what it points at is replaced.

    Raises:
        BadInput: For what cannot be written, and for what would not be replaced but lost: a file
            that is read-only, that has further names (hard links), or that takes the output of
            this process; a symbolic link to nothing; all that is not a regular file.
    """
    if str(path) == "-":
        raise _refuse(path, "standard output takes no file; ./- is a file of that name")
    temporary = None
    try:
        found, target = None, path
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
        if found is not None:
            require_replaceable(path, found)
            target = Path(os.path.realpath(path, strict=True))
        elif path.is_symlink():
            raise _refuse(path, "is a symbolic link to nothing")
        suffix = "".join(target.suffixes[-2:]).lower()  # it tells libraries the format
        temporary = target.with_name(f".groupnorm.{secrets.token_hex(8)}{suffix}")
        # What is private is so from the beginning.
        mode = 0o666 if found is None else 0o600
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        if found is not None:
            _keep(found, target, temporary)
        yield temporary
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise _refuse(path, error.strerror or str(error)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths name one file, or would: through links, and where there is none yet."""
    with contextlib.suppress(OSError):
        if os.path.samefile(a, b):
            return True
    return os.path.realpath(a) == os.path.realpath(b)
