import hashlib

import numpy as np
import pytest

from MedXAILib.demo.phantom import HELD_OUT, LABELS, case
from MedXAILib.errors import MedXAIError

SMALL = dict(shape=(32, 48, 48), spacing=(6.0, 6.0, 6.0))


@pytest.fixture(scope="module")
def phantom():
    return case(1)


def test_a_case_is_an_abdomen(phantom):
    hu, labels = phantom.image.array, phantom.labels.array
    assert hu.dtype == np.int16 and labels.dtype == np.uint8 and hu.shape == labels.shape == (64, 96, 96)
    assert phantom.image.unit == "HU" and phantom.image.same_grid(phantom.labels)
    assert phantom.image.orientation == "LPS" and phantom.image.spacing == (3, 3, 3)
    assert hu[:, 0].mean() < -950  # air in front
    liters = (labels > 0).sum() * 27e-6
    assert 0.5 < liters < 2
    right = phantom.labels.index_to_ras(np.argwhere(labels > 0).mean(0))[0]
    assert right > 20  # mm to the patient's right
    assert hu[:20].max() > 250 and (hu[-6:] < -600).mean() > 0.3  # bone; lungs at the top


def test_lesions_lie_in_the_liver_and_are_darker(phantom):
    hu, labels = phantom.image.array, phantom.labels.array
    assert phantom.lesions and set(np.unique(labels)) == {0, 1, 2}
    for lesion in phantom.lesions:
        index = phantom.image.voxel(ras=lesion.ras)
        assert labels[index] == 2
        box = tuple(slice(v - 1, v + 2) for v in index)
        assert hu[box].mean() < np.median(hu[labels == 1]) - 0.25 * lesion.contrast


def test_the_healthy_variant_is_the_same_patient(phantom):
    healthy = case(1, lesions=False)
    assert healthy.lesions == () and not (healthy.labels.array == 2).any()
    assert np.array_equal(healthy.labels.array > 0, phantom.labels.array > 0)
    far = phantom.labels.array != 2
    same = healthy.image.array == phantom.image.array
    assert same[far].mean() > 0.95 and same[~far].mean() < 0.2


def test_a_seed_is_a_patient():
    one, again, other = case(3, **SMALL), case(3, **SMALL), case(4, **SMALL)
    assert np.array_equal(one.image.array, again.image.array) and np.array_equal(one.labels.array, again.labels.array)
    assert (one.image.array != other.image.array).mean() > 0.3
    digest = hashlib.sha256(one.labels.array.tobytes() + one.image.array.tobytes()).hexdigest()
    assert digest == hashlib.sha256(again.labels.array.tobytes() + again.image.array.tobytes()).hexdigest()
    # The same on every platform, up to the rounding of transcendental functions.
    assert [int((one.labels.array == n).sum()) for n in (1, 2)] == pytest.approx(FIGURES[:2], abs=8)
    assert one.image.array.mean() == pytest.approx(FIGURES[2], abs=0.5)


FIGURES = (2488, 146, -603.6)  # voxels of liver and lesion, mean HU


def test_masks_by_name(phantom):
    organ, liver, lesion = (phantom.mask(name).array for name in ("organ", *LABELS[1:]))
    assert organ.dtype == np.uint8 and np.array_equal(organ, liver + lesion)
    with pytest.raises(MedXAIError, match="no label 'spleen'"):
        phantom.mask("spleen")
    with pytest.raises(MedXAIError, match="0 or more"):
        case(-1)


def test_intensity_alone_does_not_find_lesions():
    """The best threshold inside the true liver stays far below what a network must reach (DESIGN 5)."""
    from MedXAILib.demo.train import threshold_baseline

    figures = threshold_baseline([0], [HELD_OUT])
    assert 0.1 < figures["lesion_dice"] < 0.8
