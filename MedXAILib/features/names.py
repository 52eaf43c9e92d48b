"""The names of the features: pyradiomics' own without the image type, such as ``firstorder_Mean``, and ``line_texture``.

The table is written out, so that names can be checked where pyradiomics is not installed; a test compares it with pyradiomics.
"""

from __future__ import annotations

from ..errors import MedXAIError, nearest

LINE = "line_texture"

_TABLE = {
    "firstorder": "10Percentile 90Percentile Energy Entropy InterquartileRange Kurtosis Maximum Mean MeanAbsoluteDeviation"
    " Median Minimum Range RobustMeanAbsoluteDeviation RootMeanSquared Skewness TotalEnergy Uniformity Variance",
    "shape": "Elongation Flatness LeastAxisLength MajorAxisLength Maximum2DDiameterColumn Maximum2DDiameterRow"
    " Maximum2DDiameterSlice Maximum3DDiameter MeshVolume MinorAxisLength Sphericity SurfaceArea SurfaceVolumeRatio"
    " VoxelVolume",
    "shape2D": "Elongation MajorAxisLength MaximumDiameter MeshSurface MinorAxisLength Perimeter PerimeterSurfaceRatio"
    " PixelSurface Sphericity",
    "glcm": "Autocorrelation ClusterProminence ClusterShade ClusterTendency Contrast Correlation DifferenceAverage"
    " DifferenceEntropy DifferenceVariance Id Idm Idmn Idn Imc1 Imc2 InverseVariance JointAverage JointEnergy JointEntropy"
    " MCC MaximumProbability SumAverage SumEntropy SumSquares",
    "gldm": "DependenceEntropy DependenceNonUniformity DependenceNonUniformityNormalized DependenceVariance"
    " GrayLevelNonUniformity GrayLevelVariance HighGrayLevelEmphasis LargeDependenceEmphasis"
    " LargeDependenceHighGrayLevelEmphasis LargeDependenceLowGrayLevelEmphasis LowGrayLevelEmphasis"
    " SmallDependenceEmphasis SmallDependenceHighGrayLevelEmphasis SmallDependenceLowGrayLevelEmphasis",
    "glrlm": "GrayLevelNonUniformity GrayLevelNonUniformityNormalized GrayLevelVariance HighGrayLevelRunEmphasis"
    " LongRunEmphasis LongRunHighGrayLevelEmphasis LongRunLowGrayLevelEmphasis LowGrayLevelRunEmphasis RunEntropy"
    " RunLengthNonUniformity RunLengthNonUniformityNormalized RunPercentage RunVariance ShortRunEmphasis"
    " ShortRunHighGrayLevelEmphasis ShortRunLowGrayLevelEmphasis",
    "glszm": "GrayLevelNonUniformity GrayLevelNonUniformityNormalized GrayLevelVariance HighGrayLevelZoneEmphasis"
    " LargeAreaEmphasis LargeAreaHighGrayLevelEmphasis LargeAreaLowGrayLevelEmphasis LowGrayLevelZoneEmphasis"
    " SizeZoneNonUniformity SizeZoneNonUniformityNormalized SmallAreaEmphasis SmallAreaHighGrayLevelEmphasis"
    " SmallAreaLowGrayLevelEmphasis ZoneEntropy ZonePercentage ZoneVariance",
    "ngtdm": "Busyness Coarseness Complexity Contrast Strength",
}  # fmt: skip

#: Class -> full names of its features, as pyradiomics 3.0.1 computes them (its deprecated ones left out).
CLASSES = {group: tuple(f"{group}_{feature}" for feature in words.split()) for group, words in _TABLE.items()}

#: The classes of texture features, and what the names of all features that look at grey levels begin with.
TEXTURE = ("glcm", "gldm", "glrlm", "glszm", "ngtdm")
FIRST_BINNED = ("firstorder_Entropy", "firstorder_Uniformity")
BINNED = (*TEXTURE, *FIRST_BINNED)

_KNOWN = {LINE, *(feature for group in CLASSES.values() for feature in group)}

#: The curves of Couteaux et al. 2019 (sections 3.1 to 3.3), for volumes; on a single slice the 2-D counterparts.
PAPER = (
    "firstorder_RootMeanSquared", "firstorder_Mean", "shape_Maximum3DDiameter", "shape_Elongation", "shape_Sphericity",
    "shape_VoxelVolume", "glcm_Contrast", "firstorder_Entropy", "gldm_LargeDependenceEmphasis", LINE,
)  # fmt: skip

ALIASES = {
    "rms": "firstorder_RootMeanSquared",
    "maximum_diameter": "shape_Maximum3DDiameter",
    "elongation": "shape_Elongation",
}

_FLAT = {  # what a 3-D shape feature is called on a single slice, where the names differ
    "Maximum3DDiameter": "MaximumDiameter",
    "Maximum2DDiameterSlice": "MaximumDiameter",
    "MeshVolume": "MeshSurface",
    "VoxelVolume": "PixelSurface",
    "SurfaceArea": "Perimeter",
    "SurfaceVolumeRatio": "PerimeterSurfaceRatio",
}
_SETS = ("paper", "all", "none")


def counterpart(name: str) -> str:
    """The 2-D counterpart of a 3-D shape feature, such as ``shape2D_MaximumDiameter``; empty where there is none."""
    feature = name.removeprefix("shape_")
    flat = "shape2D_" + _FLAT.get(feature, feature)
    return flat if flat in CLASSES["shape2D"] else ""


def without_line(names) -> list[str]:
    """Those of the full names that need a mask: all but ``line_texture``."""
    return [name for name in names if name != LINE]


def grouped(names) -> dict[str, list[str]]:
    """Class -> the features of it among the full names, without the class."""
    found: dict[str, list[str]] = {}
    for group, _, feature in (name.partition("_") for name in names):
        found.setdefault(group, []).append(feature)
    return found


def resolve(names, ndim: int, notes: list[str] | None = None) -> list[str]:
    """Full feature names, each once, in the order asked for.

    Parameters
    ----------
    names : str or iterable of str
        Full names, classes (``firstorder``, ``shape``, ``glcm``, ``gldm``, ``glrlm``, ``glszm``, ``ngtdm``), the sets
        ``paper``, ``all`` and ``none``, ``line_texture``, and the aliases ``rms``, ``maximum_diameter`` and ``elongation``.
        One string may hold several, separated by commas.
    ndim : int
        3 for volumes, 2 for single slices: there ``shape`` is ``shape2D``, and a 3-D shape name is its 2-D counterpart.
    notes : list of str, optional
        Gets one sentence for each name that was replaced.

    Raises
    ------
    MedXAIError
        For a name that does not exist (with the nearest that does), or that has no meaning in ``ndim`` dimensions.
    """
    if isinstance(names, str):
        names = names.split(",")
    found: dict[str, None] = {}
    for asked in names:
        for name in _expand(asked.strip(), ndim):
            if name.startswith("shape_") and ndim == 2:
                flat = counterpart(name)
                if not flat:
                    raise MedXAIError(
                        f"The feature '{name}' has no meaning on a single slice;"
                        " leave it out or choose one of the class 'shape2D'."
                    )
                if notes is not None and asked.strip() == name:
                    notes.append(f"'{name}' is '{flat}' on a single slice.")
                name = flat
            elif name.startswith("shape2D_") and ndim != 2:
                raise MedXAIError(
                    f"The feature '{name}' is for single slices{nearest(name, CLASSES['shape'])};"
                    " for a volume choose one of the class 'shape'."
                )
            found[name] = None
    return list(found)


def _expand(name, ndim):
    shape = "shape2D" if ndim == 2 else "shape"
    if name == "none" or not name:
        return ()
    if name == "paper":
        return PAPER
    if name == "all":
        groups = [group for group in CLASSES if not group.startswith("shape") or group == shape]
        return [feature for group in groups for feature in CLASSES[group]] + [LINE]
    if name == "shape":
        return CLASSES[shape]
    if name in CLASSES:
        return CLASSES[name]
    name = ALIASES.get(name, name)
    if name not in _KNOWN:
        choices = [*_KNOWN, *CLASSES, *ALIASES, *_SETS]
        raise MedXAIError(
            f"There is no feature '{name}'{nearest(name, choices)};"
            f" use a name such as 'firstorder_Mean', a class ({', '.join(CLASSES)}), 'paper', 'all' or 'none'."
        )
    return (name,)
