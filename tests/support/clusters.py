"""A Ray cluster of two nodes, both on this machine."""

import contextlib
from collections.abc import Iterator

from tssr_jax.engine import Place


@contextlib.contextmanager
def two_nodes() -> Iterator[Place]:
    """Starts the nodes, each with one processor."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - an extra

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 2**27}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=2**27)
        yield Place("ray", cluster.address)
    finally:
        cluster.shutdown()
