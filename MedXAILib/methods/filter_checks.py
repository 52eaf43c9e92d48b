"""How far to trust a back-projection of filters: do they matter to the answer, is the map one of edges, does it depend on the weights?"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import numpy as np
import torch
from scipy import stats

from ..explanation import Table
from ..landmarks import spread, weights
from ..models import graph as graphs
from ..models.backward import Recording
from .returning import returned, score

DRAWS = 20  # sets of as many filters drawn from all: the strongest beat all of them by chance in one of 21 cases
Checking = Generator[tuple[float, str], None, object]


def silenced(recording: Recording, model, label: int, filters: Sequence[int], seed: int) -> Checking:
    """The fall of the label's log-odds when filters are silenced (their maps set to 0): each of ``filters`` alone, and all together
    against as many drawn from all filters.

    Returns
    -------
    effects, check : list of float, dict
        NaN and not done where convolutions larger than 1 follow the layer, since the rest of the network would have to be computed as often.
    """
    count = recording.activation.shape[1]
    meaning = f"Fall of the label's log-odds when the {len(filters)} filters are silenced"
    deep = any(_wide(node) for node in recording.later)
    answered = graphs.picked(recording.traced, model.package.output.key) in recording.later
    if deep or not answered:
        why = (
            "not computed: larger convolutions follow the layer"
            if answered
            else "0: the answer does not depend on this layer"
        )
        return [float("nan")] * len(filters), {"value": None, "passed": None, "meaning": f"{meaning} ({why})."}
    before = float(model.log_odds(recording.logits, label))

    def fall(some) -> float:
        activation = recording.activation.clone()
        activation[:, some] = 0
        return before - float(model.log_odds(recording.answer_with(activation), label))

    effects = []
    for number, one in enumerate(filters):
        effects.append(fall([one]))
        yield number / (len(filters) + DRAWS), "Silencing filters"
    together = fall(list(filters))
    if len(filters) == count:
        return effects, {"value": together, "passed": None, "meaning": f"{meaning}; they are all there are, so nothing can be compared."}  # fmt: skip
    rng, drawn = np.random.default_rng([seed, 1]), []
    for number in range(DRAWS):
        drawn.append(fall(rng.choice(count, len(filters), replace=False).tolist()))
        yield (len(filters) + number) / (len(filters) + DRAWS), "Silencing filters"
    return effects, {
        "value": together,
        "passed": together > max(drawn),
        "meaning": f"{meaning}; {DRAWS} sets of as many filters drawn at random: mean {np.mean(drawn):.3g}, largest {max(drawn):.3g}."
        " Passed when the strongest matter more than every one of them.",
    }


def _wide(node) -> bool:
    """Whether a node is a convolution of more than one voxel."""
    weight = graphs.arguments(node).get("weight") if "conv" in graphs.operation(node) else None
    return weight is not None and math.prod(graphs.shape_of(weight)[2:]) > 1


def edges(heat: np.ndarray, x: torch.Tensor) -> dict:
    """The rank correlation of a heat map (*spatial) with the image's own gradient magnitude, x (1, C, *spatial): an edge detector needs no network."""
    image = x[0].double().cpu().numpy()
    axes = [axis for axis in range(1, image.ndim) if image.shape[axis] > 1]
    size = sum(np.square(np.gradient(image, axis=axis)) for axis in axes).sum(0) if axes else np.zeros(image.shape[1:])
    value = rank_correlation(heat, size)
    return {
        "value": value,
        "passed": None if np.isnan(value) else value < 0.5,
        "meaning": "Spearman correlation of the heat with the image's own gradient magnitude: near 1 the map shows edges and no more. Passed below 0.5.",
    }


def alike(magnitudes: Sequence[np.ndarray]) -> dict:
    """The mean correlation between the magnitudes (voxels,) of two filters' maps: filters that all show one place are no more than one filter."""
    told = [one for one in magnitudes if np.ptp(one) > 0]
    found = np.corrcoef(told)[np.triu_indices(len(told), 1)] if len(told) > 1 else []
    value = float(np.mean(found)) if len(found) else float("nan")
    return {
        "value": value,
        "passed": None if np.isnan(value) else value < 0.9,
        "meaning": "Mean correlation between the maps of two filters: near 1 they all show the same places, and many filters say no more than one (nor is"
        " their number evidence in the table of landmarks). Passed below 0.9.",
    }


def sampled(a: np.ndarray, most: int = 200_000) -> np.ndarray:
    """At most so many voxels of an array, evenly taken, at a step that keeps to no column."""
    step = -(-a.size // most)
    while math.gcd(step, a.size) > 1:
        step += 1
    return a.reshape(-1)[::step]


def _weights_of(node, path) -> set[str]:
    """The constants that a convolution's or linear layer's weights and bias are made of."""
    name = graphs.operation(node)
    if "conv" not in name and name not in ("linear", "addmm", "mm", "matmul", "bmm", "baddbmm"):
        return set()
    beside = [one for one in node.all_input_nodes if one not in path]
    return {one.target for source in beside for one in graphs.leading(source) if one.op == "get_attr"}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, over at most 200,000 voxels, evenly taken; NaN where one is flat."""
    a, b = sampled(a), sampled(b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def randomised(model, x, layer: str, settings, filters: Sequence[int], heat: np.ndarray, batch: int) -> Checking:
    """The cascading randomisation of Adebayo et al. 2018: the weights of the top layers are replaced, more and more of them.

    The weights (and biases) of each convolution and linear layer are shuffled, which keeps their distribution; normalisation stays. The strongest
    filters are chosen anew, unless the settings name them.

    Parameters
    ----------
    heat : ndarray, shape of the network's grid
        Of the network as it is.

    Returns
    -------
    table, check : Table, dict
        ``layers`` top layers replaced (0: only what comes after the layer), the lowest of them, Spearman correlation of the heat maps, and the
        share of the strongest filters that stay.
    """
    plain = Recording(model, x, layer)
    weighted = {node: found for node in plain.path if (found := _weights_of(node, plain.path))}
    shuffled, generator = {}, torch.Generator().manual_seed(settings.seed)
    for targets in reversed(weighted.values()):
        for target in targets:
            if target not in shuffled:
                value = getattr(plain.traced, target)
                order = torch.randperm(value.numel(), generator=generator).to(value.device)
                shuffled[target] = value.reshape(-1)[order].reshape(value.shape)
    layers = list(weighted)
    counts = sorted({min(2**n, len(layers)) for n in range(len(layers).bit_length() + 1)} - {0})
    rows = {"layers": [0], "layer": ["(after the layer)"], "spearman": [1.0], "same_filters": [1.0]}
    for number, count in enumerate(counts):
        some = {target for node in layers[-count:] for target in weighted[node]}
        recording = Recording(
            model, x, layer, settings.rule, settings.collisions, {name: value for name, value in shuffled.items() if name in some}
        )  # fmt: skip
        for done in recording.forward():
            yield (number + 0.2 * done) / len(counts), "Randomising layers"
        scores = score(recording.activation, settings.score)
        chosen = (list(settings.only) and list(filters)) or np.argsort(-scores, kind="stable")[: len(filters)].tolist()
        other, share = np.zeros_like(heat), weights(scores[chosen], settings.combine)
        for done, back in returned(recording, chosen, batch):
            if back is not None:
                for at, one in enumerate(back[1], back[0]):
                    other += np.float32(share[at]) * spread(one.cpu().numpy())
            yield (number + 0.2 + 0.8 * done) / len(counts), "Randomising layers"
        rows["layers"].append(count)
        rows["layer"].append(layers[-count].name)
        rows["spearman"].append(rank_correlation(heat, other))
        rows["same_filters"].append(len(set(filters) & set(chosen)) / len(filters))
    if not layers:
        return Table("Randomisation of the top layers", rows), {"value": None, "passed": None, "meaning": "Not done: no layer's weights could be told from the program."}  # fmt: skip
    last = rows["spearman"][-1]
    return Table("Randomisation of the top layers", rows), {
        "value": last,
        "passed": None if np.isnan(last) else last < 0.5,
        "meaning": f"Spearman correlation of the heat with that of the network whose {len(layers)} convolutions and linear layers are all shuffled ({rows['spearman'][1]:.2f} with"
        " the last one alone, 1 with what comes after the layer: the map does not depend on that at all). Passed below 0.5; deconvnet and guided"
        " maps are known to fail.",
    }
