"""Ranks that find each other as launch/train.py's do, add their numbers up, and say who they are. Rank 0 writes it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from distill.runtime.rendezvous import find_rendezvous


def main() -> None:
    here = find_rendezvous(os.environ)
    os.environ.update(here.variables())
    dist.init_process_group("gloo")
    total = torch.tensor(float(here.rank + 1))
    dist.all_reduce(total)
    told: list[object] = [None] * here.size
    dist.all_gather_object(told, [here.rank, here.local_rank, here.local_size, os.environ["SLURMD_NODENAME"]])
    if here.rank == 0:
        found = {"total": total.item(), "ranks": told, "address": here.master_addr, "port": here.master_port}
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
