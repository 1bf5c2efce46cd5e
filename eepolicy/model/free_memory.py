"""Free memory of a device and free space of a disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from eepolicy.machine import within_container


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a CUDA device, or of the main memory; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    return within_container(free)


def free_disk(path: Path) -> int:
    """Free bytes of the disk of a path, which need not exist."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free
