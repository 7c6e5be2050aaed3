"""The icosphere against counts, closed forms, its symmetry group and trimesh."""

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from pdo.mesh import Icosphere, spherical_triangle_areas


@pytest.mark.parametrize("level", range(6))
def test_counts(level):
    mesh = Icosphere(level)
    assert len(mesh) == 10 * 4**level + 2
    assert len(mesh.faces) == 20 * 4**level
    assert len(mesh.edges) == 30 * 4**level
    degrees = np.asarray(mesh.adjacency.sum(axis=1))
    assert sorted(set(degrees[:12])) == [5] and set(degrees[12:]) <= {6}


@pytest.mark.parametrize("level", [0, 2, 4])
def test_areas_cover_the_sphere(level):
    mesh = Icosphere(level)
    faces = spherical_triangle_areas(mesh.vertices[mesh.faces])
    assert faces.sum() == pytest.approx(4 * np.pi, rel=1e-12)
    assert mesh.vertex_areas.sum() == pytest.approx(4 * np.pi, rel=1e-12)
    assert mesh.vertex_areas.min() > 0


def test_area_of_an_octant():
    assert spherical_triangle_areas(np.eye(3)) == pytest.approx(np.pi / 2)


@pytest.mark.parametrize("level", [1, 3])
def test_same_mesh_as_trimesh(level):
    """Up to a rotation: equal edge lengths and face areas."""
    ours, theirs = Icosphere(level), trimesh.creation.icosphere(subdivisions=level)
    edges = np.linalg.norm(np.diff(ours.vertices[ours.edges], axis=1), axis=-1).ravel()
    np.testing.assert_allclose(np.sort(edges), np.sort(theirs.edges_unique_length), atol=1e-12)
    mine = trimesh.Trimesh(ours.vertices, ours.faces, process=False)
    np.testing.assert_allclose(np.sort(mine.area_faces), np.sort(theirs.area_faces), atol=1e-12)
    assert mine.is_watertight and mine.volume > 0  # closed, faces turned outwards


def test_all_sixty_rotations_keep_the_mesh():
    mesh, tree = Icosphere(3), cKDTree(Icosphere(3).vertices)
    rotations = Rotation.create_group("I").as_matrix()
    # scipy's group has its own orientation: carry it to ours by a frame of two neighbouring
    # 5-fold axes
    axes = [r for r in rotations if np.isclose(np.trace(r), 1 + 2 * np.cos(2 * np.pi / 5))]
    theirs = np.array([Rotation.from_matrix(r).as_rotvec() / (2 * np.pi / 5) for r in axes])
    a = theirs[0]
    b = theirs[np.isclose(theirs @ a, 1 / np.sqrt(5))][0]
    carry, _ = Rotation.align_vectors(mesh.vertices[[0, 1]], np.stack([a, b]))
    for rotation in rotations:
        turned = mesh.vertices @ (carry.as_matrix() @ rotation @ carry.as_matrix().T).T
        distance, image = tree.query(turned)
        assert distance.max() < 1e-12
        assert len(set(image)) == len(mesh)


def test_coarse_vertices_come_first():
    fine, coarse = Icosphere(4), Icosphere(3)
    np.testing.assert_array_equal(fine.vertices[: len(coarse)], coarse.vertices)


def test_rings_have_hexagonal_numbers():
    mesh = Icosphere(4)
    sizes = np.asarray(mesh.neighbourhood(2).sum(axis=1))
    assert sizes.max() == 1 + 6 + 12
    assert (sizes[:12] == 1 + 5 + 10).all()


@pytest.mark.parametrize("level", [-1, 8, 2.0, "4", True])
def test_level_out_of_range(level):
    with pytest.raises(ValueError, match=r"level must be an integer in 0\.\.7"):
        Icosphere(level)
