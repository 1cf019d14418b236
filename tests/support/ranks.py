"""Runs checks on several gloo ranks, one start for all of them. Importing torch costs seconds: ranks fork from a process that did."""
from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import socket
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing

Check = Callable[[object, pathlib.Path], None]  # (mesh, folder that all ranks share)


def run(checks: Sequence[Check], ranks: int, folder: pathlib.Path) -> dict[str, str | None]:
    """Each check's name -> None where it passed on every rank, else what happened. The first that fails ends the run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = [check.__name__ for check in checks]
    # A server that has imported what the checks need, as far as it is installed, and run nothing: where autograd ran, a fork would not do.
    multiprocessing.set_forkserver_preload([*sorted({check.__module__ for check in checks}), "peft"])
    try:
        torch.multiprocessing.start_processes(_rank, (ranks, port, folder, checks), nprocs=ranks, start_method="forkserver")
        end = "did not run"
    except Exception as error:
        end = f"did not run: {error}"[-600:]
    reports = [json.loads(path.read_text()) for path in (folder / f"{ranks}-{rank}.json" for rank in range(ranks)) if path.is_file()]
    found = {}
    for name in names:
        said = [report.get(name, end) for report in reports] or [end]
        found[name] = next((text for text in said if text and text != end), next((text for text in said if text), None))
    return found


def _rank(rank: int, ranks: int, port: int, folder: pathlib.Path, checks: Sequence[Check]) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(ranks))
    dist.init_process_group("gloo", rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,), mesh_dim_names=("tp",))
    report, path = {}, folder / f"{ranks}-{rank}.json"
    for check in checks:
        torch.manual_seed(0)
        try:
            check(mesh, folder)
            report[check.__name__] = None
        except BaseException:
            report[check.__name__] = f"rank {rank} of {ranks}:\n{traceback.format_exc()}"
        path.write_text(json.dumps(report))
        if report[check.__name__]:
            os._exit(1)  # the others wait for this rank in vain
    dist.barrier()
    dist.destroy_process_group()
