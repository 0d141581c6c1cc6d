"""One Ray cluster of two nodes on this machine for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from balancer.cluster.connection import connected


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes of one CPU each; ``.address`` is its address."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        started = Cluster(initialize_head=True, head_node_args=node)
        try:
            started.add_node(**{**node, "resources": {"second": 1}})
            started.wait_for_nodes()
            # One connection for all tests, so that the processes of the cluster import torch once.
            with connected(started.address):
                yield started
        finally:
            started.shutdown()
