"""Nodes to volumes, segments to masks, points in the volume's own coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import scene_examples as examples
from scene_fixtures import host, needed  # noqa: F401

needed()

import slicer  # noqa: E402
import vtk  # noqa: E402

from MedXAILib.errors import MedXAIError  # noqa: E402
from MedXAILib.scene import bundle, read, segments  # noqa: E402
from MedXAILib.scene.nodes import image_of, matrix_of  # noqa: E402
from MedXAILib.volume import Volume  # noqa: E402


def transform(scene, matrix):
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    node.SetMatrixTransformToParent(matrix_of(matrix))
    return node


MOVED = np.array([[0.0, -1, 0, 12], [1, 0, 0, -7], [0, 0, 1, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize("shape", [(6, 9, 11), (1, 9, 11)])
@pytest.mark.parametrize("kind", ["u1", "i2", "f4", "f8"])
def test_volume_is_exact_and_a_view(host, shape, kind):  # noqa: F811
    array = np.arange(np.prod(shape)).reshape(shape).astype(kind)
    node = bundle.add_input(host.scene, Volume(array, examples.oblique(), "CT", "HU"))
    node.SetAndObserveTransformNodeID(transform(host.scene, MOVED).GetID())
    found = read.volume(node)
    assert np.array_equal(found.array, array) and found.array.dtype == array.dtype
    np.testing.assert_allclose(found.ijk_to_ras, examples.oblique(), atol=1e-9)
    assert (found.name, found.unit, found.attributes["transform"]) == ("CT", "HU", node.GetTransformNodeID())
    assert not found.array.flags.writeable
    assert not np.shares_memory(read.volume(node, copy=True).array, found.array)
    assert np.shares_memory(read.volume(node).array, found.array)


def test_grey_picture_is_read_and_colour_is_refused(host):  # noqa: F811
    node = host.scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "radiograph")
    image = vtk.vtkImageData()
    image.SetDimensions(4, 3, 1)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    values = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    values[:] = np.arange(12)[:, None]
    node.SetAndObserveImageData(image)
    assert np.array_equal(read.volume(node).array.ravel(), np.arange(12))
    values[5] = (1, 2, 3)
    with pytest.raises(MedXAIError, match=r"'radiograph' has 3 values per voxel .* Vector to Scalar Volume"):
        read.volume(node)


def test_other_nodes_are_refused(host):  # noqa: F811
    labels = host.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    with pytest.raises(MedXAIError, match="'labels' holds no voxels"):
        read.volume(labels)
    labels.SetAndObserveImageData(image_of(np.zeros((2, 2, 2), np.uint8)))
    with pytest.raises(MedXAIError, match="'labels' is a label map"):
        read.volume(labels)
    with pytest.raises(MedXAIError, match="No volume is chosen"):
        read.volume(None)


def ball(shape, centre, radius):
    grid = np.indices(shape)
    return (sum((g - c) ** 2 for g, c in zip(grid, centre)) <= radius**2).astype(np.uint8)


def test_segment_on_the_same_grid(host):  # noqa: F811
    volume = examples.volume((12, 20, 22))
    node = bundle.add_input(host.scene, volume)
    mask = ball(volume.shape, (5, 9, 14), 4)
    segmentation = segments.add_segmentation(host.scene, "s", node)
    segments.set_mask(segmentation, "organ", volume.with_array(mask), volume.ijk_to_ras)
    found = read.segment(segmentation, "organ", node)
    assert found.array.dtype == np.uint8 and np.array_equal(found.array, mask) and found.name == "organ"
    assert found.same_grid(volume, 1e-9)


def test_segment_with_its_own_lattice_and_transforms(host):  # noqa: F811
    """The segment's grid is coarser and turned; both nodes lie under transforms; positions decide."""
    volume = examples.volume((16, 24, 26))
    node = bundle.add_input(host.scene, volume)
    node.SetAndObserveTransformNodeID(transform(host.scene, MOVED).GetID())
    other = np.diag([1.5, 1.5, 1.5, 1.0])
    other[:3, 3] = np.array(volume.index_to_ras((8, 12, 13))) - 30
    lattice = Volume(np.zeros((40, 40, 40), np.uint8), other, "organ")
    centre = np.array(lattice.ras_to_index(volume.index_to_ras((8, 12, 13))))
    mask = lattice.with_array(ball(lattice.shape, centre, 6.2), "organ")
    # The same transform on both, written as two transforms: own parent · 2·half.
    segmentation = segments.add_segmentation(host.scene, "s", None)
    segments.set_mask(segmentation, "organ", mask, mask.ijk_to_ras)
    half = np.eye(4)
    half[:3, 3] = MOVED[:3, 3]
    turn = MOVED.copy()
    turn[:3, 3] = 0
    outer, inner = transform(host.scene, half), transform(host.scene, turn)
    inner.SetAndObserveTransformNodeID(outer.GetID())
    segmentation.SetAndObserveTransformNodeID(inner.GetID())
    found = read.segment(segmentation, "organ", node).array
    i = np.indices(volume.shape).reshape(3, -1)
    ras = (volume.ijk_to_ras @ np.vstack([i[::-1], np.ones(i.shape[1])]))[:3]
    distance = np.linalg.norm(ras.T - volume.index_to_ras((8, 12, 13)), axis=1).reshape(volume.shape)
    assert found[distance < 8].all() and not found[distance > 11].any()
    np.testing.assert_allclose(np.mean(np.nonzero(found), 1), (8, 12, 13), atol=0.25)


def test_segment_known_only_as_a_surface(host):  # noqa: F811
    volume = examples.volume((20, 40, 40), examples.straight())
    node = bundle.add_input(host.scene, volume)
    sphere = vtk.vtkSphereSource()
    sphere.SetCenter(*volume.index_to_ras((10, 20, 20)))
    sphere.SetRadius(6)
    sphere.SetThetaResolution(40)
    sphere.SetPhiResolution(40)
    sphere.Update()
    segmentation = host.scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.GetSegmentation().SetSourceRepresentationName("Closed surface")
    segmentation.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "ball", [1, 0, 0], "ball")
    found = read.segment(segmentation, "ball", node).array
    assert abs(found.sum() - 4 / 3 * np.pi * 6**3) < 0.1 * found.sum()
    assert not segmentation.GetSegmentation().ContainsRepresentation("Binary labelmap")  # the input is as it was


def test_segment_through_a_transform_that_is_not_linear(host):  # noqa: F811
    volume = examples.volume((20, 40, 40), examples.straight())
    node = bundle.add_input(host.scene, volume)
    mask = ball(volume.shape, (10, 20, 20), 5)
    segmentation = segments.add_segmentation(host.scene, "s", node)
    segments.set_mask(segmentation, "organ", volume.with_array(mask), volume.ijk_to_ras)
    points = [[(x * 40 - 60, y * 40 - 60, z * 40 - 40) for x in range(3) for y in range(3) for z in range(3)]][0]
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for x, y, z in points:
        source.InsertNextPoint(x, y, z)
        target.InsertNextPoint(x + 6, y, z)  # a spline that happens to move everything by 6 mm
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetSourceLandmarks(source)
    spline.SetTargetLandmarks(target)
    spline.SetBasisToR()
    warp = host.scene.AddNewNodeByClass("vtkMRMLTransformNode")
    warp.SetAndObserveTransformToParent(spline)
    segmentation.SetAndObserveTransformNodeID(warp.GetID())
    found = read.segment(segmentation, "organ", node).array
    np.testing.assert_allclose(
        np.mean(np.nonzero(found), 1), (10, 20, 14), atol=0.3
    )  # i grows to the left: 6 voxels less


def test_bad_segments(host):  # noqa: F811
    volume = examples.volume((8, 9, 10), name="CT")
    node = bundle.add_input(host.scene, volume)
    segmentation = segments.add_segmentation(host.scene, "s", node)
    segments.set_mask(segmentation, "empty", volume.with_array(np.zeros(volume.shape, np.uint8)), volume.ijk_to_ras)
    far = volume.ijk_to_ras.copy()
    far[:3, 3] += 1000
    segments.set_mask(segmentation, "far", volume.with_array(np.ones(volume.shape, np.uint8)), far)
    bare = segmentation.GetSegmentation().AddEmptySegment("bare", "bare")
    for segment, told in (
        (bare, "'bare' is empty"),
        ("empty", "'empty' is empty"),
        ("far", "'far' and the volume 'CT' do not overlap"),
    ):
        with pytest.raises(MedXAIError, match=told):
            read.segment(segmentation, segment, node)
    with pytest.raises(MedXAIError, match="No segment is chosen"):
        read.segment(segmentation, "nothing", node)


def test_points_are_in_the_volumes_own_coordinates(host):  # noqa: F811
    volume = examples.volume((8, 9, 10))
    node = bundle.add_input(host.scene, volume)
    node.SetAndObserveTransformNodeID(transform(host.scene, MOVED).GetID())
    local = np.array(volume.index_to_ras((3, 4, 5)))
    world = (MOVED @ [*local, 1])[:3]
    np.testing.assert_allclose(read.world(node, local), world)
    crosshair = host.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    crosshair.SetCrosshairRAS(*world)
    assert volume.voxel(ras=read.crosshair(host.scene, node)) == (3, 4, 5)
    markups = host.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    markups.AddControlPoint(world)
    np.testing.assert_allclose(read.control_point(markups, 0, node), local)
    with pytest.raises(MedXAIError, match="There is no such point"):
        read.control_point(markups, 1, node)


def test_the_application_class_is_told_apart():
    from MedXAILib.scene.host import HeadlessHost, current

    made = current()
    assert isinstance(made, HeadlessHost) and not hasattr(slicer, "app")
    made.close()


def test_the_slice_that_is_shown(host):  # noqa: F811
    """Whatever the axes are called, it is the slice through the view's place; k without an orientation."""
    matrix = np.eye(4)[:, [0, 2, 1, 3]]  # j along S, k along A
    matrix[:3, :3] *= (1, 2, 3)
    node = bundle.add_input(host.scene, Volume(np.zeros((20, 30, 40), np.float32), matrix, "coronal"))
    moved = np.eye(4)
    moved[:3, 3] = (5, 7, 9)
    node.SetAndObserveTransformNodeID(transform(host.scene, moved).GetID())
    for view in ("Red", "Green", "Yellow"):
        host.scene.GetSingletonNode(view, "vtkMRMLSliceNode").JumpSliceByOffsetting(5 + 8, 7 + 33, 9 + 14)
    assert read.slice_shown(host.scene, node) == "k:11"
    assert read.slice_shown(host.scene, node, "RA") == "j:7" and read.slice_shown(host.scene, node, "PI") == "i:8"
    host.scene.GetSingletonNode("Green", "vtkMRMLSliceNode").SetSliceOffset(1000)
    assert read.slice_shown(host.scene, node, "LS") == "k:19"


def test_visible_segments(host):  # noqa: F811
    volume = examples.volume((4, 20, 20))
    node = segments.add_segmentation(host.scene, "Landmarks", bundle.add_input(host.scene, volume))
    for mask in examples.landmark_masks(volume):
        segments.set_mask(node, mask.name, mask, mask.ijk_to_ras)
    node.GetDisplayNode().SetVisibility(False)
    node.GetDisplayNode().SetSegmentVisibility("heart", False)
    assert read.visible_segments(node) == ["right lung", "left lung"]


class Database:
    def __init__(self, **values):
        self.values = values

    def instanceValue(self, instance, tag):
        return self.values["t" + tag.replace(",", "_")] if instance == "1.2.3" else ""


@pytest.mark.parametrize(
    "values, expected",
    [
        (dict(t0028_0101="12", t0028_0103="0", t0028_1053="", t0028_1052=""), (0, 4095)),
        (dict(t0028_0101="12", t0028_0103="1", t0028_1053="2.0", t0028_1052=" -5"), (-4101, 4089)),
        (dict(t0028_0101="", t0028_0103="", t0028_1053="", t0028_1052=""), None),
    ],
)
def test_what_a_radiograph_could_hold(host, monkeypatch, values, expected):  # noqa: F811
    node = bundle.add_input(host.scene, examples.volume((1, 6, 6)))
    assert "stored_low" not in read.volume(node).attributes
    node.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    assert "stored_low" not in read.volume(node).attributes  # headless: no database
    monkeypatch.setattr(slicer, "dicomDatabase", Database(**values), raising=False)
    found = read.volume(node).attributes
    assert (found.get("stored_low"), found.get("stored_high")) == (expected or (None, None))


@pytest.mark.parametrize("kind, high", [("u1", 255), ("u2", 65535)])
def test_a_picture_for_a_network_that_takes_8_bits(host, tmp_path, kind, high):  # noqa: F811
    """As Slicer loads a PNG: 8 bits as they are, 16 bits scaled."""
    pytest.importorskip("torch")
    from MedXAILib.models.intensity import _to_uint8

    node = bundle.add_input(
        host.scene, Volume((np.arange(12) * high // 11).reshape(1, 3, 4).astype(kind), np.eye(4), "r")
    )
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(tmp_path / "r.PNG"))
    node.SetAndObserveStorageNodeID(host.scene.AddNode(storage).GetID())
    assert _to_uint8(read.volume(node)) == pytest.approx((255 / high, 0))
