"""A Ray cluster of two nodes, both on this machine; and an engine that behaves like one."""

import contextlib
import pickle
from collections.abc import Callable, Iterator

from tssr_jax.engine import Place


@contextlib.contextmanager
def two_nodes() -> Iterator[Place]:
    """The place of a cluster of two nodes, each with one processor."""
    with cluster_of_two() as (place, _):
        yield place


@contextlib.contextmanager
def cluster_of_two() -> Iterator[tuple[Place, Callable[[], None]]]:
    """The place of such a cluster, and the function that kills its second node."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - an extra

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 2**27}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=2**27)
        place = Place("ray", cluster.address)
        yield place, lambda: cluster.remove_node(second, allow_graceful=False)
    finally:
        cluster.shutdown()


class LastFirst:
    """An engine as a cluster is one: all is pickled, and results come in any order."""

    def map(self, make, blocks):
        """See `Engine`."""
        function = pickle.loads(pickle.dumps(make))()
        for number, block in reversed(list(enumerate(blocks))):
            yield number, function(pickle.loads(pickle.dumps(block)))
