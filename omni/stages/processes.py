"""A recipe's stages use the whole machine: one process for each GPU, or for each core where there is none.

In a small model most operations are too small to be shared by threads; as many processes, each with its part of every batch, are done sooner."""

from __future__ import annotations

import logging
import os
import socket
import sys
from multiprocessing.queues import SimpleQueue

import torch
import torch.multiprocessing as mp

from omni.config import RunConfig
from omni.errors import OmniError
from omni.stages import STAGES
from omni.training.trainer import TrainResult, train

MOST_ON_CORES = 4  # each holds the data


def train_on_all(run: RunConfig) -> TrainResult:
    """Train the stage of `run`, or take note that it is done, as under `torchrun` on this machine. Raises what `train` raises."""
    cores = torch.get_num_threads()
    most = torch.cuda.device_count() or min(MOST_ON_CORES, cores)
    n = max(n for n in range(1, most + 1) if run.train.batch_size % n == 0)
    if n == 1:
        return train(STAGES[run.stage](run))
    outcome: SimpleQueue[TrainResult | OmniError] = mp.get_context("spawn").SimpleQueue()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    try:
        mp.spawn(_train, (run, outcome, n, max(1, cores // n), port), nprocs=n)
    except (mp.ProcessExitedException, mp.ProcessRaisedException):
        if outcome.empty():
            raise
    found = outcome.get()
    if isinstance(found, OmniError):
        raise found
    return found


def _train(rank: int, run: RunConfig, outcome: SimpleQueue[TrainResult | OmniError], n: int, threads: int, port: int) -> None:
    """One of the `n` processes; an error goes to the parent, and ends the process, so that nobody waits for it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(threads)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("omni").setLevel(logging.INFO if rank == 0 else logging.ERROR)
    try:
        result = train(STAGES[run.stage](run))
    except OmniError as error:
        outcome.put(error)
        sys.exit(1)
    if rank == 0:
        outcome.put(result)
