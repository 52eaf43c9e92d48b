"""MRML: nodes to volumes, explanations to nodes. Works inside 3D Slicer and on its libraries alone (`slicer-core`).

Importing this package costs nothing; its modules import `slicer` and `vtk`, and refuse in one sentence where these are missing.
"""

from __future__ import annotations

from ..errors import MedXAIError

NEEDED = (
    "vtkMRMLScene",
    "vtkMRMLSegmentationNode",
    "vtkMRMLSequenceBrowserNode",
    "vtkMRMLColorLegendDisplayNode",
    "vtkMRMLPlotChartNode",
    "vtkMRMLSliceLogic",
)


def require_slicer() -> None:
    """Refuse (``kind="missing"``) where 3D Slicer's libraries are not there.

    PyPI also has an unrelated package called `slicer` (a dependency of shap): it is told apart by what it lacks.
    """
    try:
        import slicer
        import vtk  # noqa: F401
    except ImportError:
        slicer = None
    if slicer is None or not all(hasattr(slicer, name) for name in NEEDED):
        raise MedXAIError(
            "Scenes and reports need 3D Slicer's libraries, which are not installed here; install them with"
            " 'pip install medxai[scene]' (never into Slicer's own Python).",
            kind="missing",
        )
