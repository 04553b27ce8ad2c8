"""Collectives give every rank the same answer, and are no-ops alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from omni import distributed
from omni.errors import ConfigError

PROGRAM = """
import torch
from omni import distributed as d
assert d.setup(torch.device("cpu")) and not d.setup(torch.device("cpu"))
r = d.rank()
assert d.world_size() == 2 and d.is_main() == (r == 0)
own = torch.tensor([1.0, 2.0]) * (r + 1)
assert d.all_reduce_sum(own).tolist() == [3.0, 6.0] and own.tolist() == [r + 1.0, 2.0 * (r + 1)]
ragged = torch.full((r * 3, 2), r)  # rank 0 has no row at all
assert d.all_gather_cat(ragged).tolist() == [[1, 1]] * 3
assert d.all_gather_cat(torch.arange(2 + r)).tolist() == [0, 1, 0, 1, 2]
assert d.broadcast_(torch.tensor([r]), src=1).tolist() == [1]
d.barrier()
d.cleanup()
assert d.world_size() == 1
"""


FAILING = """
import torch
from omni import distributed as d
from omni.errors import DataError
with d.group(torch.device("cpu")):
    d.barrier()
    if d.rank() == 1:
        raise DataError("line 3: not a sound")
    d.all_reduce_sum(torch.ones(1))
"""


def run_two(program: str) -> list[tuple[int, str]]:
    """Exit status and standard error of two processes of a group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    common = os.environ | {"PYTHONPATH": paths, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=common | {"RANK": str(r), "LOCAL_RANK": str(r)}, stderr=subprocess.PIPE, text=True
        )
        for r in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def test_two_processes() -> None:
    for status, errors in run_two(PROGRAM):
        assert status == 0, errors


def test_the_error_of_one_process_ends_the_others_too() -> None:
    (waiting, _), (failed, errors) = run_two(FAILING)
    assert waiting != 0 and failed != 0
    assert "DataError: line 3: not a sound" in errors


def test_alone_nothing_happens() -> None:
    x = torch.arange(3)
    assert distributed.rank() == 0 and distributed.world_size() == 1 and distributed.is_main()
    assert distributed.all_reduce_sum(x) is x and distributed.all_gather_cat(x) is x and distributed.broadcast_(x) is x
    distributed.barrier()
    assert not distributed.setup(torch.device("cpu"))


def test_a_device_that_is_not_there_is_an_error() -> None:
    assert distributed.device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="not a device"):
        distributed.device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            distributed.device("cuda")
