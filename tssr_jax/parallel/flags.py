"""Flags of the commands that several processes run together."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from absl import flags

flags.disclaim_key_flags()  # they belong to the commands that define them


class ProcessFlags(NamedTuple):
    """Flags that say with which other processes this one works."""

    multihost: flags.FlagHolder[bool]
    coordinator: flags.FlagHolder[str | None]
    num_processes: flags.FlagHolder[int | None]
    process_id: flags.FlagHolder[int | None]
    peer_timeout: flags.FlagHolder[int]

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Connects this process with the others for the block, if the flags ask for it.

        Raises:
          UserError: if the others can't be found or reached.
        """
        if not (self.multihost.value or self.coordinator.value):
            yield
            return
        from tssr_jax.parallel.processes import joined  # noqa: PLC0415 - slow to import

        others = self.coordinator.value, self.num_processes.value, self.process_id.value
        with joined(*others, self.peer_timeout.value):
            yield


def process_flags(verb: str) -> ProcessFlags:
    """Defines --multihost, --coordinator, --num_processes, --process_id and --peer_timeout.

    Args:
      verb: what the processes do together, for --help.
    """
    return ProcessFlags(
        flags.DEFINE_bool(
            "multihost",
            False,
            f"{verb} together with the other processes of this TPU pod or cluster.",
        ),
        flags.DEFINE_string(
            "coordinator", None, "HOST:PORT of process 0, if --multihost can't detect it."
        ),
        flags.DEFINE_integer("num_processes", None, "How many processes there are."),
        flags.DEFINE_integer("process_id", None, "Which one this is, from 0."),
        flags.DEFINE_integer(
            "peer_timeout",
            60,
            "Seconds to wait for other processes to start, or for a sign of life. Then all exit.",
            5,
        ),
    )
