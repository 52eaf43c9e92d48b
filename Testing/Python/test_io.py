"""Files: geometry to the last digit, voxels as they were, and a sentence for what cannot be read or written."""

import gzip
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import Sequence
from MedXAILib.io import lps, ras, read_mask, read_volume, segments, write_sequence, write_volume
from MedXAILib.volume import Volume

TYPES = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64, np.float32)


def oblique(flip=False):
    """A turned, anisotropic IJK-to-RAS matrix with many digits; ``flip``: left-handed."""
    turn, _ = np.linalg.qr(np.array([[1, 0.31, -0.2], [-0.3, 1, 0.1], [0.25, -0.05, 1]]))
    matrix = np.eye(4)
    matrix[:3, :3] = turn * [0.7123456789, 1.1, 2.5000001]
    matrix[:3, 3] = 3.3, -81.123456789012, 1000 / 3
    if flip:
        matrix[:3, 1] *= -1
    return matrix


def corners(volume, matrix):
    k, j, i = volume.shape
    return matrix @ np.array([[a, b, c, 1] for a in (0, i - 1) for b in (0, j - 1) for c in (0, k - 1)]).T


def assert_same(read, volume, tolerance=1e-6):
    np.testing.assert_array_equal(read.array, volume.array)
    assert read.array.dtype == volume.array.dtype
    assert np.abs(corners(volume, read.ijk_to_ras) - corners(volume, volume.ijk_to_ras)).max() < tolerance


def stored(volume):
    return volume.attributes["stored_low"], volume.attributes["stored_high"]


# ---- NRRD and NIfTI --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("ending, tolerance", [(".nrrd", 1e-6), (".nii", 1e-4), (".nii.gz", 1e-4)])
def test_what_is_written_is_read(tmp_path, dtype, ending, tolerance):
    rng = np.random.default_rng(0)
    for n, (shape, flip) in enumerate([((4, 5, 6), False), ((1, 5, 6), True), ((4, 1, 1), False), ((1, 1, 1), True)]):
        array = (rng.random(shape) * 100).astype(dtype)
        if dtype == np.float32:
            array.flat[0] = np.nan
        volume = Volume(array, oblique(flip))
        write_volume(tmp_path / f"{n}{ending}", volume)
        assert_same(read_volume(tmp_path / f"{n}{ending}"), volume, tolerance)
        assert read_volume(tmp_path / f"{n}{ending}").name == f"{n}"


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3), spacing=st.tuples(*[st.floats(0.05, 20)] * 3),
    origin=st.tuples(*[st.floats(-2000, 2000)] * 3), seed=st.integers(0, 10**6), compressible=st.booleans(),
)  # fmt: skip
def test_any_geometry_survives_nrrd(tmp_path_factory, shape, spacing, origin, seed, compressible):
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn * spacing, origin
    array = (rng.random(shape) * (0 if compressible else 1)).astype(np.float32)
    volume = Volume(array, matrix)
    path = tmp_path_factory.getbasetemp() / "any.nrrd"
    write_volume(path, volume)
    assert_same(read_volume(path), volume)


def test_files_agree_with_other_libraries(tmp_path):
    volume = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), oblique(True))
    write_volume(tmp_path / "a.nii.gz", volume)
    image = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, volume.ijk_to_ras, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(image.dataobj), volume.array.T)
    assert image.header.get_xyzt_units()[0] == "mm" and image.header["sform_code"] == 1
    write_volume(tmp_path / "a.nrrd", volume)
    image = sitk.ReadImage(str(tmp_path / "a.nrrd"))
    point = image.TransformIndexToPhysicalPoint((3, 1, 1))
    np.testing.assert_allclose(np.array(point) * [-1, -1, 1], volume.index_to_ras((1, 1, 3)), atol=1e-9)
    for writer, name in ((sitk.WriteImage, "b.nrrd"), (sitk.WriteImage, "b.nii.gz")):  # theirs, read by us
        writer(image, str(tmp_path / name))
        assert_same(read_volume(tmp_path / name), volume, 1e-4)


def test_nibabels_file_is_read_in_its_own_geometry(tmp_path):
    array = np.arange(24, dtype=np.float64).reshape(4, 3, 2) / 7
    nibabel.save(nibabel.Nifti1Image(array, oblique()), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, array.T.astype(np.float32))
    np.testing.assert_allclose(volume.ijk_to_ras, oblique(), atol=1e-4)


def test_nifti_as_nibabel_reads_it(tmp_path):
    rng = np.random.default_rng(0)
    for n, (kind, dtype, scale) in enumerate([
        (nibabel.Nifti1Image, np.int16, (0.5, -3)), (nibabel.Nifti1Image, np.float32, None), (nibabel.Nifti1Image, ">f4", None),
        (nibabel.Nifti1Image, np.uint8, (2, 1)), (nibabel.Nifti1Image, ">i2", None), (nibabel.Nifti1Image, np.float64, None),
    ]):  # fmt: skip
        stored = (rng.random((3, 4, 5)) * 200).astype(dtype)
        if stored.dtype.kind == "f":
            stored[0, 0, 0], stored[1, 1, 1] = np.nan, np.inf
        header = kind.header_class(endianness=">" if stored.dtype.byteorder == ">" else "<")
        header.set_data_dtype(stored.dtype)
        image = kind(stored, oblique(), header)
        if scale:
            image.header.set_slope_inter(*scale)
        nibabel.save(image, tmp_path / f"{n}.nii.gz")
        expected = nibabel.load(tmp_path / f"{n}.nii.gz")
        volume = read_volume(tmp_path / f"{n}.nii.gz")
        np.testing.assert_array_equal(volume.array, np.asarray(expected.dataobj).T.astype(volume.array.dtype))
        assert volume.array.dtype.isnative and volume.array.dtype.itemsize <= 4
        assert (volume.array.dtype.kind == "f") == (stored.dtype.kind == "f" or scale is not None)
        np.testing.assert_allclose(volume.ijk_to_ras, expected.affine, atol=1e-4)


def test_odd_types_and_layouts_are_written(tmp_path):
    matrix = oblique()
    for array in (
        np.arange(24).reshape(2, 3, 4) % 2 == 0,
        np.linspace(0, 1, 24).reshape(2, 3, 4),
        np.linspace(0, 1, 24, dtype=np.float16).reshape(2, 3, 4),
        np.arange(24, dtype=">i2").reshape(2, 3, 4),
        np.arange(24, dtype=np.float32).reshape(4, 3, 2).T[:, ::-1],
    ):
        for name in ("a.nrrd", "a.nii.gz"):
            write_volume(tmp_path / name, Volume(array, matrix))
            np.testing.assert_allclose(read_volume(tmp_path / name).array, array.astype(np.float32), rtol=1e-6)
    with pytest.raises(MedXAIError, match="complex64 cannot be written"):
        write_volume(tmp_path / "c.nrrd", Volume(np.ones((1, 1, 1), np.complex64), matrix))
    with pytest.raises(MedXAIError, match=r"must end in \.nrrd"):
        write_volume(tmp_path / "c.mha", Volume(np.ones((1, 1, 1)), matrix))


def test_noise_is_not_compressed_and_masks_are(tmp_path):
    noise = np.random.default_rng(0).standard_normal((8, 64, 64)).astype(np.float32)
    write_volume(tmp_path / "noise.nrrd", Volume(noise, np.eye(4)))
    write_volume(tmp_path / "mask.nrrd", Volume(np.zeros_like(noise, np.uint8), np.eye(4)))
    assert b"encoding: raw" in (tmp_path / "noise.nrrd").read_bytes()[:400]
    assert (tmp_path / "mask.nrrd").stat().st_size < 1000


def test_ras_and_lps_are_each_others_inverse():
    np.testing.assert_array_equal(ras(lps(oblique())), oblique())


def test_what_is_no_volume_is_refused_in_words(tmp_path):
    sitk.WriteImage(sitk.Image([3, 4, 5, 2], sitk.sitkInt16), str(tmp_path / "film.nrrd"))
    sitk.WriteImage(sitk.Image([3, 4, 5, 2], sitk.sitkInt16), str(tmp_path / "film.nii.gz"))
    sitk.WriteImage(sitk.Image([3, 4, 5], sitk.sitkVectorFloat32, 3), str(tmp_path / "field.nrrd"))
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.nrrd").write_text("NRRD0004\nhello")
    volume = Volume(np.random.default_rng(0).random((9, 20, 20)).astype(np.float32), np.eye(4))
    write_volume(tmp_path / "whole.nrrd", volume)
    (tmp_path / "half.nrrd").write_bytes((tmp_path / "whole.nrrd").read_bytes()[:5000])
    write_volume(tmp_path / "whole.nii.gz", volume)
    (tmp_path / "half.nii.gz").write_bytes((tmp_path / "whole.nii.gz").read_bytes()[:5000])
    labels = Volume((volume.array * 3).astype(np.uint8), np.eye(4))
    for name in ("labels.nrrd", "labels.nii", "labels.nii.gz"):
        write_volume(tmp_path / name, labels)
        (tmp_path / f"half-{name}").write_bytes((tmp_path / name).read_bytes()[:-200])
    for name, words in (
        ("nothing.nrrd", "There is no file or folder"),
        ("film.nrrd", "is a series of 2 volumes"),
        ("film.nii.gz", "is a series of 2 volumes"),
        ("field.nrrd", "has 3 numbers in each voxel; MedXAI takes one volume"),
        ("notes.txt", "is not an image that MedXAI reads; it takes NRRD, NIfTI, DICOM, PNG and JPEG"),
        ("broken.nrrd", "cannot be read; the file is damaged"),
        ("half.nrrd", "cannot be read; the file is damaged or incomplete"),
        ("half.nii.gz", "cannot be read; the file is damaged or incomplete"),
        ("half-labels.nrrd", "cannot be read; the file is damaged or incomplete"),
        ("half-labels.nii", "cannot be read; the file is damaged or incomplete"),
        ("half-labels.nii.gz", "cannot be read; the file is damaged or incomplete"),
        ("", "holds no DICOM images"),
    ):
        with pytest.raises(MedXAIError, match=words) as refusal:
            read_volume(tmp_path / name)
        assert "\n" not in refusal.value.message


def test_a_fourth_axis_of_one_is_no_axis(tmp_path):
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1), oblique())
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert read_volume(tmp_path / "a.nii.gz").shape == (4, 3, 2)
    sitk.WriteImage(sitk.Image([3, 4, 5, 1], sitk.sitkInt16), str(tmp_path / "a.nrrd"))
    assert read_volume(tmp_path / "a.nrrd").shape == (5, 4, 3)


def test_sheared_axes_in_nifti_are_refused_not_bent(tmp_path):
    matrix = np.eye(4)
    matrix[0, 1] = 0.4
    header = nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), matrix)
    header.set_qform(None, 0)
    nibabel.save(header, tmp_path / "a.nii")
    with pytest.raises(MedXAIError, match="not at right angles"):
        read_volume(tmp_path / "a.nii")


# ---- a disk that is full ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nrrd", "a.nii", "a.nii.gz", "a.seq.nrrd"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, name):
    resource = pytest.importorskip("resource")
    noise = np.random.default_rng(0).standard_normal((20, 64, 64)).astype(np.float32)
    volume = Volume(noise, np.eye(4))
    kept = tmp_path / "kept" / name
    kept.parent.mkdir()
    small = Volume(np.zeros((2, 2, 2), np.int16), np.eye(4))

    def write(path, what):
        if name == "a.seq.nrrd":
            write_sequence(path, Sequence("s", [(0, what), (1, what)]))
        else:
            write_volume(path, what)

    write(kept, small)
    before = kept.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for path in (tmp_path / name, kept):
            with pytest.raises(MedXAIError, match=r"The disk is full while writing .*free some space") as refusal:
                write(path, volume)
            assert refusal.value.kind == "disk"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"] and kept.read_bytes() == before
    assert [p.name for p in kept.parent.iterdir()] == [name]


def test_a_place_that_cannot_be_written_to(tmp_path):
    with pytest.raises(MedXAIError, match=r"cannot be written .*choose another place") as refusal:
        write_volume(tmp_path / "absent" / "a.nrrd", Volume(np.zeros((1, 1, 1)), np.eye(4)))
    assert refusal.value.kind == "disk"


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_pictures(tmp_path):
    grey = (np.arange(120).reshape(10, 12) * 2).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(grey), str(tmp_path / "grey.png"))
    volume = read_volume(tmp_path / "grey.png")
    assert volume.shape == (1, 10, 12) and volume.orientation == "LPS" and volume.array.dtype == np.uint8
    np.testing.assert_array_equal(volume.array[0], grey)
    assert stored(volume) == (0, 255)
    deep = grey.astype(np.uint16) * 200
    sitk.WriteImage(sitk.GetImageFromArray(deep), str(tmp_path / "deep.png"))
    volume = read_volume(tmp_path / "deep.png")
    np.testing.assert_array_equal(volume.array[0], deep)
    assert stored(volume) == (0, 65535)
    for channels in (3, 4):
        stacked = np.stack([grey] * 3 + [np.full_like(grey, 255)] * (channels - 3), -1)
        sitk.WriteImage(sitk.GetImageFromArray(stacked, isVector=True), str(tmp_path / "rgb.png"))
        np.testing.assert_array_equal(read_volume(tmp_path / "rgb.png").array[0], grey)
    stacked = np.stack([grey, grey, grey[::-1]], -1)
    sitk.WriteImage(sitk.GetImageFromArray(stacked, isVector=True), str(tmp_path / "colour.png"))
    with pytest.raises(MedXAIError, match="is a colour picture; MedXAI takes grey images"):
        read_volume(tmp_path / "colour.png")
    sitk.WriteImage(sitk.GetImageFromArray(grey), str(tmp_path / "grey.jpg"))
    volume = read_volume(tmp_path / "grey.jpg")
    assert volume.shape == (1, 10, 12) and np.abs(volume.array[0].astype(int) - grey).max() < 12


# ---- DICOM -----------------------------------------------------------------------------------------------------------


def dicom(path, array, **tags):
    """One DICOM file with the stored numbers of ``array`` and the tags given."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = tags.get("SOPClassUID", "1.2.840.10008.5.1.4.1.1.2")
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    data.Modality, data.PhotometricInterpretation, data.SamplesPerPixel = "CT", "MONOCHROME2", 1
    data.Rows, data.Columns = array.shape[-2:]
    if array.ndim == 3:
        data.NumberOfFrames = array.shape[0]
    data.BitsAllocated = data.BitsStored = array.dtype.itemsize * 8
    data.PixelRepresentation = int(array.dtype.kind == "i")
    data.PixelData = array.tobytes()
    packed = tags.pop("packed", False)
    for name, value in tags.items():
        setattr(data, name, value)
    data.HighBit = data.BitsStored - 1
    assert pydicom and data.is_little_endian is not False
    if packed:
        data.compress(RLELossless)
    data.save_as(path)


def stack(folder, positions, orientation=(1, 0, 0, 0, 1, 0), start=0, **tags):
    """A folder of slices, numbered so that neither name nor instance number tells their order."""
    folder.mkdir(exist_ok=True)
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    arrays = []
    for n, z in enumerate(positions):
        arrays.append((np.arange(20).reshape(4, 5) + 100 * n).astype(np.int16))
        place = [f"{v:.6g}" for v in np.array([-10.5, 20.25, 3]) + z * normal]
        dicom(folder / f"{(n * 7 + start) % 11:02d}-{n}{start}.dcm", arrays[-1], ImagePositionPatient=place, InstanceNumber=99 - n,
              ImageOrientationPatient=[f"{v:.8g}" for v in orientation], PixelSpacing=["0.8", "0.6"], **tags)  # fmt: skip
    return np.stack(arrays)


def test_a_series_is_sorted_by_place(tmp_path):
    turn, _ = np.linalg.qr(np.array([[1, 0.2, 0.1], [-0.2, 1, 0.3], [0, -0.3, 1]]))
    turn *= np.sign(np.diag(turn))
    array = stack(
        tmp_path / "ct", [5.0, 2.5, 0.0, -2.5], (*turn[:, 0], *turn[:, 1]), RescaleSlope="2", RescaleIntercept="-1000",
        SeriesDescription="Chest", SeriesNumber=3,
    )  # fmt: skip
    volume = read_volume(tmp_path / "ct")
    np.testing.assert_array_equal(volume.array, array[::-1].astype(int) * 2 - 1000)
    assert volume.array.dtype == np.int16 and volume.unit == "HU" and volume.name == "Chest"
    assert volume.attributes["modality"] == "CT" and volume.attributes["bits_stored"] == 16
    assert volume.spacing == pytest.approx((0.6, 0.8, 2.5), abs=1e-4)
    expected = np.array([-10.5, 20.25, 3]) - 2.5 * np.cross(turn[:, 0], turn[:, 1])
    np.testing.assert_allclose(volume.index_to_ras((0, 0, 0)), expected * [-1, -1, 1], atol=1e-3)
    for index in np.ndindex(volume.shape):  # each voxel where ITK puts it, slice by slice
        if index[1:] == (3, 4):
            file = next(f for f in (tmp_path / "ct").iterdir() if f.name.split("-")[1].startswith(str(3 - index[0])))
            point = sitk.ReadImage(str(file)).TransformIndexToPhysicalPoint((4, 3, 0))
            np.testing.assert_allclose(volume.index_to_ras(index), np.array(point) * [-1, -1, 1], atol=1e-3)


def test_a_series_that_simpleitk_wrote(tmp_path):
    volume = Volume((np.arange(60).reshape(3, 4, 5) - 30).astype(np.int16), oblique())
    image = sitk.GetImageFromArray(volume.array)
    matrix = lps(volume.ijk_to_ras)
    image.SetSpacing(volume.spacing)
    image.SetDirection((matrix[:3, :3] / volume.spacing).ravel())
    image.SetOrigin(matrix[:3, 3])
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = image.GetDirection()
    for k in range(3):
        part = image[:, :, k]
        for key, value in {
            "0020|000e": "1.2.826.0.1.3680043.2.1125.7", "0020|000d": "1.2.826.0.1.3680043.2.1125.8", "0008|0060": "MR",
            "0020|0032": "\\".join(map(repr, image.TransformIndexToPhysicalPoint((0, 0, k)))),
            "0020|0037": "\\".join(repr(direction[n]) for n in (0, 3, 6, 1, 4, 7)), "0020|0013": str(9 - k),
        }.items():  # fmt: skip
            part.SetMetaData(key, value)
        writer.SetFileName(str(tmp_path / f"{k}.dcm"))
        writer.Execute(part)
    assert_same(read_volume(tmp_path), volume, 1e-3)


def test_series_are_told_apart_and_chosen(tmp_path):
    folder = tmp_path / "study"
    first = stack(folder, [0, 1, 2], SeriesInstanceUID="1.1", SeriesNumber=2, SeriesDescription="Axial soft")
    stack(folder, [0, 1], start=5, SeriesInstanceUID="1.2", SeriesNumber=10, SeriesDescription="Axial lung")
    with pytest.raises(MedXAIError) as refusal:
        read_volume(folder)
    assert "holds 2 DICOM series (2: Axial soft, 3 images; 10: Axial lung, 2 images)" in refusal.value.message
    assert f"such as '{folder}#2'" in refusal.value.message
    for choice in ("2", "1.1", "Axial soft"):
        np.testing.assert_array_equal(read_volume(f"{folder}#{choice}").array, first)
    with pytest.raises(MedXAIError, match=r"no single DICOM series 'axial lung' \(did you mean 'Axial lung'"):
        read_volume(f"{folder}#axial lung")


@pytest.mark.parametrize(
    "positions, words",
    [
        ([0, 2, 4, 8, 10], r"is missing 1 slice: 4 mm between '.*' and '.*', 2 mm elsewhere"),
        ([0, 2, 4, 10, 12], "is missing 2 slices"),
        ([0, 2, 4, 6.7, 8.7], "is unevenly spaced: 2.7 mm between"),
        ([0, 2, 2, 4], "has several images at one place"),
    ],
)
def test_gaps_are_refused(tmp_path, positions, words):
    stack(tmp_path / "ct", positions, SeriesDescription="Chest")
    with pytest.raises(MedXAIError, match=words):
        read_volume(tmp_path / "ct")


def test_rounded_positions_are_even(tmp_path):
    stack(tmp_path / "ct", [0, 0.63, 1.25, 1.88, 2.5])
    assert read_volume(tmp_path / "ct").spacing[2] == pytest.approx(0.625)


def test_a_tilted_gantry_keeps_every_slice_where_it_was(tmp_path):
    folder = tmp_path / "ct"
    folder.mkdir()
    for n in range(4):
        dicom(folder / f"{n}.dcm", np.full((4, 5), n, np.int16), ImagePositionPatient=[0, 0.5 * n, 2 * n],
              ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[1, 1])  # fmt: skip
    volume = read_volume(folder)
    assert volume.index_to_ras((3, 0, 0)) == pytest.approx((0, -1.5, 6))


def test_slices_that_differ_are_refused(tmp_path):
    stack(tmp_path / "ct", [0, 1, 2])
    dicom(tmp_path / "ct" / "scout.dcm", np.zeros((4, 5), np.int16), ImagePositionPatient=[0, 0, 9],
          ImageOrientationPatient=[1, 0, 0, 0, 0, -1], PixelSpacing=[1, 1])  # fmt: skip
    with pytest.raises(MedXAIError, match=r"differ in size, spacing or direction"):
        read_volume(tmp_path / "ct")
    assert read_volume(tmp_path / "ct" / "scout.dcm").orientation == "LIP"  # one file alone is one slice
    folder = tmp_path / "dx"
    folder.mkdir()
    for n in range(2):
        dicom(folder / f"{n}.dcm", np.zeros((4, 5), np.uint16), Modality="DX")
    with pytest.raises(MedXAIError, match="do not say where they lie; give one of them by its file name"):
        read_volume(folder)


@pytest.mark.parametrize("packed", [False, True])
def test_monochrome1_is_turned_over_within_the_stored_range(tmp_path, packed):
    raw = np.random.default_rng(0).integers(0, 4095, (32, 48)).astype(np.uint16)
    raw[0, :2] = 0, 4095
    about = dict(Modality="DX", SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1", BitsStored=12, PixelSpacing=["0.2", "0.3"])
    dicom(tmp_path / "2.dcm", raw, packed=packed, **about)
    dicom(tmp_path / "1.dcm", raw, packed=packed, PhotometricInterpretation="MONOCHROME1", **about)
    plain, turned = read_volume(tmp_path / "2.dcm"), read_volume(tmp_path / "1.dcm")
    np.testing.assert_array_equal(plain.array[0], raw)
    np.testing.assert_array_equal(turned.array[0], 4095 - raw)
    assert stored(turned) == (0, 4095) and turned.attributes["photometric"] == "MONOCHROME1"
    assert turned.spacing[:2] == pytest.approx((0.3, 0.2)) and turned.shape == (1, 32, 48)
    dicom(
        tmp_path / "r.dcm",
        raw,
        PhotometricInterpretation="MONOCHROME1",
        RescaleSlope="2",
        RescaleIntercept="-5",
        **about,
    )
    turned = read_volume(tmp_path / "r.dcm")
    np.testing.assert_array_equal(turned.array[0], (4095 - raw.astype(int)) * 2 - 5)
    assert stored(turned) == (-5, 8185)
    eight = raw.astype(np.uint8)
    dicom(tmp_path / "8.dcm", eight, PhotometricInterpretation="MONOCHROME1", Modality="CR")
    np.testing.assert_array_equal(read_volume(tmp_path / "8.dcm").array[0], 255 - eight)


def enhanced(path, places):
    """A multi-frame CT whose frames lie at ``places`` along the z axis, in that order in the file."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset

    def one(**values):
        item = Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        return pydicom.sequence.Sequence([item])

    array = np.stack([np.full((4, 5), n * 10, np.int16) for n in range(len(places))])
    frames = [one(PlanePositionSequence=one(ImagePositionPatient=[1, 2, z]))[0] for z in places]
    shared = one(
        PlaneOrientationSequence=one(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        PixelMeasuresSequence=one(PixelSpacing=[0.8, 0.6], SliceThickness=2),
        PixelValueTransformationSequence=one(RescaleSlope="2", RescaleIntercept="-100", RescaleType="HU"),
    )
    dicom(path, array, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", SharedFunctionalGroupsSequence=shared,
          PerFrameFunctionalGroupsSequence=pydicom.sequence.Sequence(frames))  # fmt: skip


def test_frames_lie_where_their_headers_say(tmp_path):
    for places, values in (
        ([0, 2, 4, 6], [-100, -80, -60, -40]),
        ([6, 4, 2, 0], [-40, -60, -80, -100]),
        ([0, 4, 2, 6], [-100, -60, -80, -40]),
    ):
        enhanced(tmp_path / "e.dcm", places)
        volume = read_volume(tmp_path / "e.dcm")
        assert volume.array[:, 0, 0].tolist() == values and volume.unit == "HU"
        np.testing.assert_allclose(volume.ijk_to_ras[:3], [[-0.6, 0, 0, -1], [0, -0.8, 0, -2], [0, 0, 2, 0]])
    enhanced(tmp_path / "gap.dcm", [0, 2, 4, 8])
    with pytest.raises(MedXAIError, match="missing 1 slice: 4 mm between 'frame 3' and 'frame 4'"):
        read_volume(tmp_path / "gap.dcm")


def test_signed_numbers_know_their_range(tmp_path):
    dicom(tmp_path / "a.dcm", np.array([[-5, 7]], np.int16))
    volume = read_volume(tmp_path / "a.dcm")
    assert volume.array.tolist() == [[[-5, 7]]] and stored(volume) == (-32768, 32767)


def test_other_dicom_is_refused_in_words(tmp_path, data):
    dicom(
        tmp_path / "film.dcm", np.zeros((3, 4, 5), np.uint8), Modality="US", SOPClassUID="1.2.840.10008.5.1.4.1.1.3.1"
    )
    with pytest.raises(MedXAIError, match="is a film of 3 frames"):
        read_volume(tmp_path / "film.dcm")
    with pytest.raises(MedXAIError, match="is a DICOM SEG object and not an image"):
        read_volume(data / "volumes" / "liver_dicom" / "seg" / "liver.dcm")
    (tmp_path / "bad.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"junk" * 50)
    with pytest.raises(MedXAIError, match="cannot be read as DICOM; the file is damaged"):
        read_volume(tmp_path / "bad.dcm")


# ---- segments --------------------------------------------------------------------------------------------------------


def slicer_segmentation(path, arrays, header):
    """A .seg.nrrd as Slicer writes it: ``arrays`` one (k, j, i) array, or several layers as the first axis of the file."""
    layered = isinstance(arrays, list)
    data = np.stack(arrays, -1) if layered else arrays
    sizes = ([len(arrays)] if layered else []) + list(data.shape[2::-1] if layered else data.shape[::-1])
    lines = ["NRRD0004", "type: unsigned char", f"dimension: {len(sizes)}", "space: left-posterior-superior",
             "sizes: " + " ".join(map(str, sizes)),
             "space directions: " + "none " * layered + "(0,-0.7,0) (0.8,0,0) (0,0,2.5)",
             "kinds: " + "list " * layered + "domain domain domain", "encoding: gzip", "space origin: (1,2,3)",
             *(f"{k}:={v}" for k, v in header.items())]  # fmt: skip
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + gzip.compress(data.astype(np.uint8).tobytes()))


def test_slicers_segmentation(tmp_path):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 4, (3, 4, 5))
    header = {"Segment0_ID": "Segment_1", "Segment0_Name": "liver", "Segment0_LabelValue": 2, "Segment0_Layer": 0,
              "Segment1_ID": "Segment_2", "Segment1_Name": "tumour, left lobe", "Segment1_LabelValue": 1, "Segment1_Layer": 0}  # fmt: skip
    slicer_segmentation(tmp_path / "a.seg.nrrd", array, header)
    assert segments(tmp_path / "a.seg.nrrd") == ["liver", "tumour, left lobe"]
    for name, value in (("liver", 2), ("tumour, left lobe", 1)):
        mask = read_mask(tmp_path / "a.seg.nrrd", name)
        np.testing.assert_array_equal(mask.array, array == value)
        assert mask.array.dtype == np.uint8 and mask.name == name
        np.testing.assert_allclose(mask.ijk_to_ras[:3], [[0, -0.8, 0, -1], [0.7, 0, 0, -2], [0, 0, 2.5, 3]])
    with pytest.raises(MedXAIError, match=r"no segment 'livr' \(did you mean 'liver'\?\); it has 'liver', 'tumour"):
        read_mask(tmp_path / "a.seg.nrrd", "livr")
    with pytest.raises(MedXAIError, match=r"holds 2 segments; choose one \(--segment\)"):
        read_mask(tmp_path / "a.seg.nrrd")


def test_slicers_layers(tmp_path):
    rng = np.random.default_rng(1)
    layers = [rng.integers(0, 3, (3, 4, 5)), rng.integers(0, 2, (3, 4, 5))]
    header = {}
    for n, (name, layer, value) in enumerate([("a", 0, 1), ("b", 1, 1), ("c", 0, 2)]):
        header |= {f"Segment{n}_ID": f"S{n}", f"Segment{n}_Name": name, f"Segment{n}_Layer": layer, f"Segment{n}_LabelValue": value}  # fmt: skip
    slicer_segmentation(tmp_path / "a.seg.nrrd", layers, header)
    for name, layer, value in (("a", 0, 1), ("b", 1, 1), ("c", 0, 2)):
        np.testing.assert_array_equal(read_mask(tmp_path / "a.seg.nrrd", name).array, layers[layer] == value)
    old = {f"Segment{n}_{k}": v for n in range(2) for k, v in (("ID", f"S{n}"), ("Name", f"old {n}"))}
    slicer_segmentation(tmp_path / "old.seg.nrrd", layers, old)  # before 4.11: one layer each, value 1
    np.testing.assert_array_equal(read_mask(tmp_path / "old.seg.nrrd", "old 1").array, layers[1] == 1)


def test_slicer_itself_wrote_it(tmp_path):
    slicer = pytest.importorskip("slicer")
    vtk = pytest.importorskip("vtk")
    if not hasattr(slicer, "vtkMRMLSegmentationStorageNode"):
        pytest.skip("slicer-core is not installed")
    from vtk.util.numpy_support import numpy_to_vtk

    scene = slicer.vtkMRMLScene()
    scene.AddDefaultNode(slicer.vtkMRMLSegmentationNode())
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    matrix = vtk.vtkMatrix4x4()
    turn = oblique()
    for row in range(4):
        for column in range(4):
            matrix.SetElement(row, column, turn[row, column])
    rng = np.random.default_rng(2)
    drawn = {name: rng.random((4, 5, 6)) > 0.6 for name in ("left", "right", "over")}
    for name, array in drawn.items():
        image = slicer.vtkOrientedImageData()
        image.SetDimensions(6, 5, 4)
        image.GetPointData().SetScalars(numpy_to_vtk(array.astype(np.uint8).ravel(), deep=True))
        image.SetImageToWorldMatrix(matrix)
        node.GetSegmentation().SetSourceRepresentationName("Binary labelmap")
        segment = slicer.vtkSegment()
        segment.SetName(name)
        segment.AddRepresentation("Binary labelmap", image)
        node.GetSegmentation().AddSegment(segment)
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "s.seg.nrrd"))
    assert storage.WriteData(node)
    assert segments(tmp_path / "s.seg.nrrd") == ["left", "right", "over"]
    whole = Volume(np.zeros((4, 5, 6), np.uint8), turn)
    from MedXAILib.volume import mask_on_grid

    for name, array in drawn.items():  # Slicer crops the file to what is drawn, so the grids differ by an offset
        np.testing.assert_array_equal(mask_on_grid(read_mask(tmp_path / "s.seg.nrrd", name), whole), array)


def test_label_maps(tmp_path):
    array = np.array([[[0, 1, 3], [3, 0, 12]]], np.int16)
    for name, stored in (("a.nii.gz", array), ("a.nrrd", array), ("f.nii.gz", array.astype(np.float32))):
        write_volume(tmp_path / name, Volume(stored, oblique()))
        assert segments(tmp_path / name) == ["1", "3", "12"]
        np.testing.assert_array_equal(read_mask(tmp_path / name, "3").array, array == 3)
        np.testing.assert_array_equal(read_mask(tmp_path / name, 12).array, array == 12)
        for wrong in ("0", "4", "liver"):
            with pytest.raises(MedXAIError, match=f"no segment '{wrong}'.*; it has '1', '3', '12'"):
                read_mask(tmp_path / name, wrong)
    write_volume(tmp_path / "one.nrrd", Volume((array > 1).astype(np.uint8), oblique()))
    np.testing.assert_array_equal(read_mask(tmp_path / "one.nrrd").array, array > 1)
    write_volume(tmp_path / "none.nrrd", Volume(np.zeros((2, 2, 2), np.uint8), oblique()))
    with pytest.raises(MedXAIError, match="holds no segment; draw one first"):
        read_mask(tmp_path / "none.nrrd")
    for n, image in enumerate((np.full((2, 2, 2), 0.5, np.float32), np.full((2, 2, 2), -1000, np.int16),
                               np.full((2, 2, 2), np.nan, np.float32))):  # fmt: skip
        write_volume(tmp_path / f"{n}.nrrd", Volume(image, oblique()))
        with pytest.raises(MedXAIError, match="is an image and not a mask"):
            read_mask(tmp_path / f"{n}.nrrd")


def test_real_segmentations_agree(data):
    pytest.importorskip("pydicom")
    folder = data / "volumes" / "liver_dicom"
    ct = read_volume(folder / "ct")
    assert ct.shape == (3, 512, 512) and ct.unit == "HU" and ct.array.dtype == np.int16
    assert segments(folder / "seg" / "liver.dcm") == ["Liver"] == segments(folder / "seg")
    one, other = read_mask(folder / "seg" / "liver.dcm", "Liver"), read_mask(folder / "liver_seg.nrrd")
    assert one.array.sum() == 107098 and one.same_grid(other) and one.same_grid(ct)
    np.testing.assert_array_equal(one.array, other.array)
    assert 20 < np.median(ct.array[one.array == 1]) < 200  # HU of a liver: the mask lies on it


# ---- sequences -------------------------------------------------------------------------------------------------------


def steps(dtype=np.float32, kind="image", shape=(3, 4, 5)):
    rng = np.random.default_rng(0)
    items = [(n, Volume((rng.random(shape) * 2).astype(dtype), oblique())) for n in (0, 2, 7)]
    return Sequence("Dream", items, kind)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5)])
@pytest.mark.parametrize("dtype, kind", [(np.float32, "image"), (np.uint8, "mask"), (np.int16, "signed")])
def test_slicer_reads_the_sequence(tmp_path, dtype, kind, shape):
    slicer = pytest.importorskip("slicer")
    if not hasattr(slicer, "vtkMRMLVolumeSequenceStorageNode"):
        pytest.skip("slicer-core is not installed")
    from vtk.util.numpy_support import vtk_to_numpy

    sequence = steps(dtype, kind, shape)
    write_sequence(tmp_path / "s.seq.nrrd", sequence)
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSequenceNode")
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeSequenceStorageNode")
    storage.SetFileName(str(tmp_path / "s.seq.nrrd"))
    assert storage.ReadData(node) and node.GetNumberOfDataNodes() == 3 and node.GetIndexName() == "step"
    assert [node.GetNthIndexValue(n) for n in range(3)] == ["0", "2", "7"]
    for n, (_, volume) in enumerate(sequence.items):
        found = node.GetNthDataNode(n)
        assert found.IsA("vtkMRMLLabelMapVolumeNode") == (kind == "mask")
        array = vtk_to_numpy(found.GetImageData().GetPointData().GetScalars()).reshape(volume.shape)
        np.testing.assert_array_equal(array, volume.array)
        assert array.dtype == dtype
        matrix = slicer.vtkMatrix4x4() if hasattr(slicer, "vtkMatrix4x4") else __import__("vtk").vtkMatrix4x4()
        found.GetIJKToRASMatrix(matrix)
        read = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
        np.testing.assert_allclose(read, volume.ijk_to_ras, atol=1e-6)


def test_a_sequence_as_a_file(tmp_path):
    write_sequence(tmp_path / "s.seq.nrrd", steps())
    header = (tmp_path / "s.seq.nrrd").read_bytes().split(b"\n\n")[0].decode()
    for line in ("dimension: 4", "sizes: 5 4 3 3", "kinds: domain domain domain list", 'labels: "" "" "" "step"',
                 "axis 3 index type:=numeric", "axis 3 index values:=0 2 7", "DataNodeClassName:=vtkMRMLScalarVolumeNode"):  # fmt: skip
        assert line in header.splitlines()
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "s.seq.nrrd")))
    np.testing.assert_array_equal(
        np.moveaxis(array, -1, 0), [v.array for _, v in steps().items]
    )  # ITK: a vector per voxel
    with pytest.raises(MedXAIError, match="is a sequence or has 3 numbers"):
        read_volume(tmp_path / "s.seq.nrrd")


def test_a_sequence_on_two_grids_is_refused(tmp_path):
    sequence = steps()
    sequence.items.append((9, Volume(sequence.items[0][1].array, np.eye(4))))
    with pytest.raises(MedXAIError, match="Step 9 of the sequence 'Dream' lies on another grid"):
        write_sequence(tmp_path / "s.seq.nrrd", sequence)
    with pytest.raises(MedXAIError, match="has no steps to write"):
        write_sequence(tmp_path / "s.seq.nrrd", Sequence("Dream", []))
    with pytest.raises(MedXAIError, match=r"must end in \.seq\.nrrd"):
        write_sequence(tmp_path / "s.nrrd", steps())
    assert not list(tmp_path.iterdir())


def test_nifti_header_is_what_the_standard_says(tmp_path):
    write_volume(tmp_path / "a.nii", Volume(np.zeros((2, 3, 4), np.uint8), oblique()))
    raw = (tmp_path / "a.nii").read_bytes()
    assert struct.unpack_from("<i", raw)[0] == 348 and raw[344:348] == b"n+1\0" and len(raw) == 352 + 24
