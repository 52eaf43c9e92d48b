"""A trained pair of generators, and the classifier it belongs to."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MedXAIError
from ..package import Package
from .generators import GeneratorPair
from .loading import load_companion
from .sides import Sides


class Explainer:
    """A loaded explainer.

    Parameters
    ----------
    folder : path
        A package of task ``explanation``, made by `medxai train cycle`.
    device : str
        As `load` takes it.

    Raises
    ------
    MedXAIError
        When the package is none of an explainer.
    """

    def __init__(self, folder, device: str = "auto"):
        self.model = load_companion(folder, device, "explanation", GeneratorPair, "explainer", "medxai train cycle")
        self.package = self.model.package
        self.explains = self.package.explains
        dims = self.package.input.spatial_dims
        if self.model.device.type == "cpu":  # in this layout its convolutions are about twice as fast
            self.model.module.to(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)

    def bind(self, classifier) -> Pair:
        """This explainer for the classifier it was trained for.

        Raises
        ------
        MedXAIError
            When it was trained for another one, by its SHA-256.
        """
        package, about = classifier.package, self.explains
        if about.sha256 != package.sha256:
            raise MedXAIError(
                f"The explainer '{self.package.name}' was trained for '{about.name}' (SHA-256 {about.sha256[:12]}…), not for '{package.name}' "
                f"({package.sha256[:12]}…); train one for it (medxai train cycle)."
            )
        differs = [name for name, mine, other in (("labels", about.labels, classifier.labels), ("input", self.package.input, package.input)) if mine != other]  # fmt: skip
        if differs:
            raise MedXAIError(
                f"The explainer '{self.package.name}' was trained for these weights with another '{differs[0]}' in model.json; put it back, or train anew (medxai train cycle)."
            )
        return Pair(self.model, classifier, about)

    def record(self) -> dict:
        """What an explanation's provenance says of it."""
        return {"name": self.package.name, "sha256": self.package.sha256}


class Pair:
    """The generators of a classifier.

    Attributes
    ----------
    sides : Sides
        The positive and the negative class.
    labels : (str, str)
        Their names.
    exchanged : bool
        Whether they are the other way round than the explainer was trained.
    about : Explains
    filters : int
        Of the generators' first stage, at full resolution.
    """

    def __init__(self, model, classifier, about):
        self._module, self.about, self.exchanged = model.module, about, False
        self.labels = about.positive, about.negative
        self.filters = model.module.positive.encoder.stages[0][0].out_channels
        labels = classifier.labels
        self.sides = Sides(
            labels.index(about.positive), labels.index(about.negative) if about.negative in labels else None
        )

    def towards(self, label: str) -> Pair:
        """The pair with a class as the positive one; empty: the one it was trained with.

        Raises
        ------
        MedXAIError
            When it was trained for neither.
        """
        if label in ("", self.labels[0]):
            return self
        if label != self.labels[1]:
            raise MedXAIError(
                f"The explainer was trained for '{self.labels[0]}' against '{self.labels[1]}', not for '{label}'; choose one of both (--label)."
            )
        other = copy.copy(self)
        other.sides, other.labels, other.exchanged = self.sides.exchanged, self.labels[::-1], not self.exchanged
        return other

    @property
    def _generators(self):
        both = self._module.positive, self._module.negative
        return both[::-1] if self.exchanged else both

    def images(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """G⁺(x) and G⁻(x), one pass of each generator; (N, C, *spatial) in the classifier's network units, never clamped."""
        positive, negative = self._generators
        with torch.no_grad():
            return positive(x), negative(x)

    def back(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """G⁻ of G⁺(x), and G⁺ of G⁻(x): for ideal generators x, both."""
        positive, negative = self._generators
        with torch.no_grad():
            return negative(up), positive(down)


def pair_of(classifier, folder) -> tuple[Pair, dict]:
    """The generators in a folder (empty: the one beside the model) bound to a classifier, and their record; loaded once for each version of the file.

    Raises
    ------
    MedXAIError
        As `Explainer`, `Explainer.bind` and `find_explainer`.
    """
    folder = Path(folder) if folder else find_explainer(classifier.package.folder, classifier.package.sha256)
    kept = classifier.companions
    try:
        files = [(path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.iterdir())]
    except OSError:
        files = []
    key = str(folder.absolute()), tuple(files)
    if key not in kept:
        explainer = Explainer(folder, str(classifier.device))
        kept.clear()
        kept[key] = explainer.bind(classifier), explainer.record()
    return kept[key]


def find_explainer(folder, sha256: str) -> Path:
    """The explainer of a model that lies beside its folder.

    Raises
    ------
    MedXAIError
        When there is none, or more than one.
    """
    found = []
    for path in sorted(Path(folder).absolute().parent.glob("*/model.json")):
        try:
            package = Package.read(path.parent)
        except MedXAIError:
            continue
        if package.explains is not None and package.explains.sha256 == sha256:
            found.append(path.parent)
    if len(found) == 1:
        return found[0]
    if found:
        raise MedXAIError(
            f"{len(found)} explainers of this model lie beside it ({', '.join(one.name for one in found)}); name one (--explainer)."
        )
    raise MedXAIError(
        f"No explainer of this model lies beside '{Path(folder).absolute().name}'; train one (medxai train cycle FOLDER --model MODEL) or name its folder (--explainer)."
    )
