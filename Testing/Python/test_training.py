import json

import numpy as np
import pytest
import torch

from MedXAILib.errors import MedXAIError
from MedXAILib.explanation import run
from MedXAILib.models import load, prepare
from MedXAILib.training.segmentation import TrainingSettings, dice, train
from MedXAILib.volume import Volume

FIELDS = {
    "name": "balls",
    "task": "segmentation",
    "weights": "weights.safetensors",
    "network": {
        "name": "PlainUNet",
        "arguments": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "filters": 4, "levels": 2},
    },
    "input": {
        "spatial_dims": 3, "channels": ["CT"], "orientation": "SPL", "spacing": [2.0, 2.0, 2.0], "size": None, "multiple_of": 2,
        "intensity": {"kind": "linear", "multiply": 0.01, "add": 0.0},
    },
    "output": {"labels": ["background", "ball"], "activation": "softmax"},
}  # fmt: skip
QUICK = dict(steps=60, batch=2, patch=16, learning_rate=0.01)


def ball(seed, flip=False):
    """A bright ball in noise; ``flip`` stores the same patient with i and k running the other way."""
    rng = np.random.default_rng(seed)
    shape = (20, 22, 24)
    middle = [rng.uniform(8, n - 8) for n in shape]
    inside = sum((g - m) ** 2 for g, m in zip(np.indices(shape), middle)) <= 6**2
    array = (rng.normal(0, 60, shape) + 100 * inside).astype(np.float32)
    labels, matrix = inside.astype(np.uint8), np.diag([-2.0, -2.0, 2.0, 1.0])
    if flip:
        array, labels = array[::-1, :, ::-1].copy(), labels[::-1, :, ::-1].copy()
        matrix = matrix @ np.diag([-1.0, 1.0, -1.0, 1.0])
    return Volume(array, matrix, f"ball {seed}"), Volume(labels, matrix, f"ball {seed} labels")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, losses = tmp_path_factory.mktemp("train") / "balls", []
    cases = (ball(n, flip=n % 2 == 1) for n in range(4))
    state = torch.get_rng_state()
    package = run(
        train(cases, folder, FIELDS, TrainingSettings(**QUICK)),
        lambda step: losses.extend(point.values["loss"] for point in step.points),
    )
    assert torch.equal(torch.get_rng_state(), state)
    return package, losses


def test_the_loss_falls(trained):
    _, losses = trained
    assert len(losses) == QUICK["steps"] and np.mean(losses[-8:]) < 0.5 * np.mean(losses[:8])


@pytest.mark.parametrize("flip", [False, True])
def test_the_package_segments_a_case_it_has_not_seen(trained, flip):
    package, _ = trained
    assert package.weights_path.stat().st_size < 100_000
    model = load(package.folder, device="cpu")
    image, labels = ball(100, flip)
    prepared = prepare(model, [image])
    with model.frozen(), torch.no_grad():
        found = model.logits(prepared.x).argmax(1)[0].numpy() == 1
    patch = prepared.mask(found, (0, 0, 0))
    output = np.zeros(image.shape, bool)
    output[patch.box] = patch.array > 0
    true = labels.array > 0
    assert dice(image.array > 50, true) < 0.7  # the best threshold, as the noise is symmetric
    assert dice(output, true) > 0.8


def test_a_training_is_a_generator_that_can_be_stopped(tmp_path):
    steps = train([ball(0)], tmp_path / "model", FIELDS, TrainingSettings(**QUICK))
    state = torch.get_rng_state()
    fractions = [next(steps).fraction for _ in range(6)]
    assert fractions == sorted(fractions) and 0 < fractions[-1] < 1
    steps.close()
    assert torch.equal(torch.get_rng_state(), state) and not list(tmp_path.iterdir())


def test_the_same_seed_gives_the_same_weights(tmp_path):
    packages = [
        run(train([ball(0)], tmp_path / str(n), FIELDS, TrainingSettings(**QUICK | {"steps": 3, "seed": seed})))
        for n, seed in enumerate((5, 5, 6))
    ]
    assert packages[0].sha256 == packages[1].sha256 != packages[2].sha256


def test_refusals(tmp_path):
    def refused(cases, fields=FIELDS, folder=tmp_path / "model", **options):
        with pytest.raises(MedXAIError) as told:
            run(train(cases, folder, fields, TrainingSettings(**QUICK | options)))
        assert not (tmp_path / "model").exists()
        return told.value.message

    image, labels = ball(0)
    assert "exists already" in refused([ball(0)], folder=tmp_path)
    assert "no case" in refused([])
    assert "not on the grid" in refused([(image, Volume(labels.array, np.eye(4), "labels"))])
    assert "holds the values 0, 3" in refused([(image, labels.with_array(labels.array * 3))])
    assert "softmax" in refused([ball(0)], FIELDS | {"output": {"labels": ["ball"], "activation": "sigmoid"}})
    wrong = json.loads(json.dumps(FIELDS))
    wrong["network"]["arguments"]["out_channels"] = 5
    assert "gives 5 channels and the package names 2 labels" in refused([ball(0)], wrong)


def test_dice():
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert dice(a, b) == 0.5 and dice(a, a) == 1 and np.isnan(dice(a & ~a, b & ~b))
