"""What each of two processes does in `test_several_processes.py`; prints nothing, saves its result."""

import os
import sys

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from relume.nn import DReLU


def main(folder: str) -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    result = {}
    for sync in (True, False):
        for broadcast in (True, False):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 6, bias=False), DReLU(6, sync=sync, momentum=0.5), nn.Linear(6, 2))
            parallel = DistributedDataParallel(model, broadcast_buffers=broadcast)
            seen = []
            for step in range(3):
                g = torch.Generator().manual_seed(10 * step + rank)
                x = (1 + rank) * torch.randn(64 + 32 * rank, 4, generator=g)
                seen.append(model[0](x).detach())
                parallel(x).square().sum().backward()
            result[sync, broadcast] = (seen, model[1].tau, model[1].batches)
    torch.save(result, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
