"""Groups of nodes by consensus over resampled hierarchies; tests/test_som.py has Ward's method."""

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering

import kvae
from kvae.core.errors import InputError
from kvae.grids import Plane
from kvae.som import clustering
from vectors import DATA

POINTS = np.random.default_rng(0).normal(size=(24, 3))


def same_groups(one, other):
    """True if two labellings differ only in the numbers of their groups."""
    return len({*zip(one, other, strict=True)}) == len({*one}) == len({*other})


@pytest.mark.parametrize("n_clusters", [1, 2, 7, 24])
def test_consensus_of_all_nodes_is_average_linkage(n_clusters, monkeypatch):
    monkeypatch.setattr(clustering, "SHARE", 1.0)
    groups = clustering.consensus_clusters(POINTS, Plane((4, 6)), n_clusters)
    assert same_groups(groups, AgglomerativeClustering(n_clusters, linkage="average").fit_predict(POINTS))


@pytest.mark.parametrize("n_clusters", [1, 3, 23, 24])
def test_consensus_has_the_number_of_groups_asked_for(n_clusters):
    groups = clustering.consensus_clusters(POINTS, Plane((4, 6)), n_clusters)
    assert groups.dtype == np.int32
    assert sorted({*groups}) == list(range(n_clusters))
    np.testing.assert_array_equal(groups, clustering.consensus_clusters(POINTS, Plane((4, 6)), n_clusters))


def test_consensus_finds_blobs_that_are_apart_on_the_grid():
    centers = np.tile([[0.0, 0.0], [9.0, 0.0]], (12, 1)) + np.random.default_rng(1).normal(0, 0.1, (24, 2))
    som = kvae.SOM((4, 6), init=centers, n_epochs=0, n_clusters=2, clustering="consensus").fit(centers)
    assert same_groups(som.cluster_, np.tile([0, 1], 12))
    np.testing.assert_array_equal(som.clusters(2), som.cluster_)
    np.testing.assert_array_equal(som.labels_, som.cluster_[som.nodes_])


def test_one_node_is_one_group():
    som = kvae.SOM((1,), n_clusters=1, clustering="consensus").fit(DATA)
    assert som.cluster_.tolist() == [0]


def test_unknown_clustering_is_named():
    with pytest.raises(InputError, match="clustering is 'concensus'; did you mean 'consensus'"):
        kvae.SOM((2, 3), clustering="concensus").fit(DATA)
