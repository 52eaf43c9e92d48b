"""Choosing an inpainter, kept in the scene; none of them is the stated fall-back."""

from __future__ import annotations

from slicer.i18n import tr as _

from .model_picker import library, summary
from .package_row import PackageRow


class InpainterRow(PackageRow):
    """A combo box of the packages that inpaint; none of them is the fall-back."""

    name = "inpainter"

    def __init__(self, layout, onChanged):
        words = _(
            "Draws healthy tissue where the region was. Add one in MedXAI Models; 'medxai train inpainter' makes one from healthy images."
        )
        super().__init__(layout, _("Inpainter:"), words, onChanged)

    def refresh(self):
        """List the packages again."""
        found = library().entries()
        self.fill([e for e in found if e.package is not None and e.package.task == "inpainting"], _("none: fall-back"))
        self.update()

    def about(self) -> str:
        if self.entry is not None:
            return summary(self.entry.package) if self.entry.package else ""
        fill = {"blur": _("blurred surroundings"), "mean": _("the mean"), "noise": _("noise")}
        words = _("Without an inpainter the region is filled with {what}; the result says so.")
        return words.format(what=fill.get(self.parameters.fill, self.parameters.fill))

    def problem(self, classifier) -> str:
        """Why the choice cannot be used with a classifier's package, one sentence; empty when it can."""
        if self.entry is None:
            return ""
        package = self.entry.package
        if package is None:
            return self.entry.problem
        if package.task != "inpainting":
            return _("'{name}' is a {task} network; choose an inpainter.").format(name=package.name, task=package.task)
        if classifier is None:
            return ""
        mine, its = package.input, classifier.input
        for what, a, b in (
            (_("{n}-D images"), mine.spatial_dims, its.spatial_dims),
            (_("{n} channel(s)"), len(mine.channels), len(its.channels)),
            (_("{n} voxels"), mine.size, its.size),
        ):
            if a != b and a is not None and b is not None:
                told = [what.format(n=" × ".join(map(str, n)) if isinstance(n, tuple) else n) for n in (a, b)]
                return _("The inpainter '{name}' takes {a}, and the classifier {b}; choose another inpainter, or none.").format(
                    name=package.name, a=told[0], b=told[1]
                )  # fmt: skip
        return ""
