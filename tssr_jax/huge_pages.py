"""Asks the C library for huge pages, with which a step on a processor takes a quarter less time.

A step allocates and frees hundreds of megabytes. In pages of 4 KiB each of them costs a fault and
an entry of the processor's table of pages; Linux gives pages of 2 MiB to those who ask, and glibc
(2.35 and later) asks where the environment says so when a process starts.
"""

import os
import sys
from pathlib import Path

_NAME, _SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def wanted_environment() -> dict[str, str]:
    """What the environment lacks; {} where it has the setting, or Linux would not heed it.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=0 switches huge pages off.
    """
    tunables = os.environ.get(_NAME, "")
    if _SETTING in tunables or not _POLICY.is_file() or "[madvise]" not in _POLICY.read_text():
        return {}
    return {_NAME: ":".join(filter(None, (tunables, f"{_SETTING}=1")))}


def use_huge_pages() -> None:
    """Starts this very command again, in the same process, with the setting that it lacks."""
    if wanted := wanted_environment():
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
