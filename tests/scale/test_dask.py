"""groupnorm.dask against the NumPy functions on the whole array."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import groupnorm

da = pytest.importorskip("dask.array")
import groupnorm.dask

CHUNKS = [-1, (1, 3, 2, 3), ((2, 1), (5, 1, 6), (1, 9), (7, 1, 2)), (3, 12, 1, 10), (1, 1, 10, 10)]


def _x(dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(1).normal(300, 2, (3, 12, 10, 10)).astype(dtype)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_chunks_of_any_kind(chunks: Any, dtype: Any) -> None:
    x = _x(dtype)
    lazy = da.from_array(x, chunks=chunks)
    weight, bias = np.linspace(1, 2, 12).astype(dtype), np.linspace(-1, 1, 12).astype(dtype)
    tolerance = {np.float32: 4e-6, np.float64: 1e-12, np.float16: 1e-2}[dtype]
    y = groupnorm.dask.group_norm(lazy, 3, weight, bias, activation="silu")
    assert y.dtype == dtype and y.chunks == lazy.chunks
    expected = groupnorm.group_norm(x, 3, weight, bias, activation="silu")
    assert_allclose(y.compute(), expected, rtol=0, atol=tolerance)
    found = groupnorm.dask.instance_norm(lazy, weight, bias).compute()
    assert_allclose(found, groupnorm.instance_norm(x, weight, bias), rtol=0, atol=tolerance)
    found = groupnorm.dask.batch_norm(lazy, weight=weight, bias=bias).compute()
    expected = groupnorm.batch_norm(x, None, None, weight, bias, training=True)
    assert_allclose(found, expected, rtol=0, atol=tolerance)
    rows, scale = (10, 10), np.linspace(1, 2, 100).reshape(10, 10).astype(dtype)
    found = groupnorm.dask.layer_norm(lazy, rows, scale, correction=1).compute()
    expected = groupnorm.layer_norm(x, rows, scale, correction=1)
    assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_channels_last_weights_of_examples_and_of_dask() -> None:
    x = np.moveaxis(_x(), 1, -1)
    weight = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    lazy = da.from_array(x, chunks=(2, 5, 3, 5))
    y = groupnorm.dask.group_norm(
        lazy, 4, da.from_array(weight, chunks=(1, 6)), layout="channels_last"
    )
    expected = groupnorm.group_norm(x, 4, weight, layout="channels_last")
    assert_allclose(y.compute(), expected, rtol=0, atol=4e-6)


def test_rows_without_positions_and_running_statistics() -> None:
    x = np.random.default_rng(0).normal(3, 2, (7, 8)).astype(np.float32)
    lazy = da.from_array(x, chunks=(3, 5))
    assert_allclose(
        groupnorm.dask.group_norm(lazy, 2).compute(), groupnorm.group_norm(x, 2), atol=1e-6
    )
    y = groupnorm.dask.batch_norm(lazy).compute()
    assert_allclose(y, groupnorm.batch_norm(x, None, None, training=True), atol=1e-6)
    running = np.linspace(0, 1, 8, dtype=np.float32), np.linspace(1, 2, 8, dtype=np.float32)
    y = groupnorm.dask.batch_norm(lazy, *running).compute()
    assert_allclose(y, groupnorm.batch_norm(x, *running), atol=1e-6)


def test_empty_chunks_and_empty_arrays() -> None:
    x = _x()
    lazy = da.concatenate([da.from_array(x), da.from_array(x[:, :, :0])], axis=2)
    y = groupnorm.dask.group_norm(lazy, 3).compute()
    assert_allclose(y, groupnorm.group_norm(x, 3), rtol=0, atol=4e-6)
    assert groupnorm.dask.group_norm(da.zeros((2, 4, 0)), 2).compute().shape == (2, 4, 0)


def test_it_is_lazy_its_bits_are_the_same_and_its_graph_grows_with_chunks() -> None:
    calls = []

    def count(block: np.ndarray) -> np.ndarray:
        calls.append(block.shape)
        return block

    lazy = da.from_array(_x(), chunks=(1, 4, 5, 5)).map_blocks(count, dtype=np.float32)
    calls.clear()
    y = groupnorm.dask.group_norm(lazy, 3)
    assert not calls
    a, b = y.compute(scheduler="synchronous"), y.compute(scheduler="threads", num_workers=4)
    np.testing.assert_array_equal(a, b)

    def tasks(size: int, chunk: int) -> int:
        big = da.zeros((1, 4, size, size), chunks=(1, 4, chunk, chunk), dtype=np.float32)
        return len(groupnorm.dask.group_norm(big, 2).__dask_graph__())

    assert tasks(64, 8) == tasks(6400, 800)
    assert tasks(64, 4) < 5 * tasks(64, 8)


def test_from_zarr_to_zarr_on_a_cluster_of_processes(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    distributed = pytest.importorskip("distributed")
    x = _x()
    da.from_array(x, chunks=(1, 6, 5, 4)).to_zarr(str(tmp_path / "x.zarr"))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        distributed.Client(cluster),
    ):
        lazy = da.from_zarr(str(tmp_path / "x.zarr"))
        groupnorm.dask.group_norm(lazy, 3).to_zarr(str(tmp_path / "y.zarr"))
    y = da.from_zarr(str(tmp_path / "y.zarr")).compute(scheduler="synchronous")
    assert_allclose(y, groupnorm.group_norm(x, 3), rtol=0, atol=4e-6)


def test_what_is_refused_before_anything_is_computed() -> None:
    lazy = da.from_array(_x(), chunks=(1, 6, 5, 5))

    def refused(call: Any, *words: str) -> None:
        with pytest.raises((TypeError, ValueError)) as error:
            call()
        for word in words:
            assert word in str(error.value), str(error.value)

    refused(lambda: groupnorm.dask.group_norm(_x(), 3), "x", "ndarray")
    refused(lambda: groupnorm.dask.group_norm(lazy, 5), "num_groups", "12", "5")
    refused(lambda: groupnorm.dask.group_norm(lazy, 3, np.ones(5, "f4")), "weight", "(12,)", "(5,)")
    refused(lambda: groupnorm.dask.group_norm(lazy, 3, np.ones(12)), "weight", "float64")
    refused(lambda: groupnorm.dask.group_norm(lazy.astype(int), 3), "x", "int64")
    refused(lambda: groupnorm.dask.group_norm(lazy, 3, eps=-1), "eps", "-1")
    refused(lambda: groupnorm.dask.group_norm(lazy, 3, activation="tanh"), "activation", "tanh")
    refused(lambda: groupnorm.dask.group_norm(lazy, 3, layout="NHWC"), "layout", "NHWC")
    refused(lambda: groupnorm.dask.layer_norm(lazy, 7), "normalized_shape", "7")
    unknown = lazy[lazy[:, 0, 0, 0] > 0]
    refused(lambda: groupnorm.dask.group_norm(unknown, 3), "x", "compute_chunk_sizes")
    refused(lambda: groupnorm.dask.batch_norm(lazy, np.ones(12)), "running_var")
    refused(
        lambda: groupnorm.dask.instance_norm(da.ones((2, 3)), correction=1), "correction", "two"
    )
