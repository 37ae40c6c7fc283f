""".npy and .npz."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .command import BadInput, require_memory
from .format import Format, How, cut_data, cut_short, reading
from .tensor import FloatArray, Result, Tensor, as_float


def _require_complete(path: Path) -> None:
    """A .npy file that ends early: numpy would speak of reshaping."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        size = os.fstat(file.fileno()).st_size
        try:
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, _, dtype = np.lib.format.read_array_header_2_0(file)
            else:
                return
        except Exception as error:  # of its tokenizer, too
            if file.tell() == size and "EOF" in str(error):
                raise cut_short(path, "it ends within its header") from error
            raise BadInput(f"'{path}': has a malformed .npy header") from error
        needed = dtype.itemsize
        for each in shape:
            needed *= each
        held = size - file.tell()
    if held < needed and dtype.kind != "O":
        raise cut_data(path, held, shape, needed)
    require_memory(2 * needed, f"'{path}'")  # x and y


def read_npy(path: Path) -> tuple[FloatArray, list[str]]:
    """The array of a .npy file."""
    with reading(path):
        _require_complete(path)
        return as_float(np.load(path, allow_pickle=False), f"'{path}'")


def _read_npy(path: Path, how: How) -> Tensor:
    array, notes = read_npy(path)
    return Tensor(array, "", notes)


def _read_npz(path: Path, how: How) -> Tensor:
    if not zipfile.is_zipfile(path):
        raise cut_short(path, "it lacks the list of arrays with which a .npz ends")
    with np.load(path, allow_pickle=False) as archive:
        names = ", ".join(archive.files) or "nothing"
        if how.key is None and len(archive.files) != 1:
            raise BadInput(f"--key: needed, as '{path}' holds {names}")
        chosen = archive.files[0] if how.key is None else how.key
        if chosen not in archive.files:
            raise BadInput(f"--key: '{chosen}' is not in '{path}', which holds {names}")
        array, notes = as_float(archive[chosen], f"'{path}': {chosen}")
    return Tensor(array, "", [f"array {chosen}", *notes])


def write_npy(path: Path, array: FloatArray) -> None:
    # Not numpy.save: a disk that is full would only be told by ndarray.tofile, in part.
    array = np.ascontiguousarray(array)
    with open(path, "wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array.data)


def _save_npy(path: Path, result: Result, beside: dict[str, Any]) -> str:
    write_npy(path, result.y)
    return ""


def _save_npz(path: Path, result: Result, beside: dict[str, Any]) -> str:
    with open(path, "wb") as file:
        np.savez(file, y=np.ascontiguousarray(result.y), mean=result.mean, rstd=result.rstd)
    return "y, mean and rstd"


NPY = Format("npy", (".npy",), lambda head: head[:6] == b"\x93NUMPY", _read_npy, _save_npy)
NPZ = Format(
    "npz", (".npz",), lambda head: head[:4] in (b"PK\3\4", b"PK\5\6"), _read_npz, _save_npz
)
