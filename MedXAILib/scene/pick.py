"""Masks that are looked up by number (layers, units, noise levels): the one that was chosen is the segment `map` of its run."""

from __future__ import annotations

from ..errors import MedXAIError
from ..volume import Volume
from . import colors, layers, segments
from .nodes import find, name_of, of_class, run_id, voxels

SEGMENT, FILL = "map", 0.35
SHOWN = "MedXAI.Shown"  # attribute of the segmentation: the sequence and the number that are shown


def show(scene, run: str, sequence: str, number: int) -> str:
    """Show one mask of a run: written into the segment `map`, which is named for it. Nothing is computed anew.

    Parameters
    ----------
    run : str
        As `remove.run_of` gives it.
    sequence : str
        The explanation's name of the sequence, such as ``layers``, ``units`` or ``noise-0.3``.
    number : int
        Of the layer, or of the unit.

    Returns
    -------
    str
        What is shown, such as ``17 merge.3.0``.

    Raises
    ------
    MedXAIError
        When that mask was not kept, or somebody removed it.
    """
    node, masks = (
        find(scene, run, sequence, "vtkMRMLSequenceNode"),
        find(scene, run, "masks", "vtkMRMLSegmentationNode"),
    )
    title = title_of(scene, run, sequence, number)
    frame = node.GetDataNodeAtValue(str(int(number))) if node is not None else None
    if frame is None or masks is None:
        raise MedXAIError(f"The map '{title}' is not in the scene: it was not kept (memory budget), or was removed.")
    made = masks.GetSegmentation().GetSegment(SEGMENT) is None
    grid = segments.grid_of(frame)
    segments.set_mask(masks, SEGMENT, Volume(voxels(frame.GetImageData()), grid, SEGMENT), grid, colors.MASK)
    if made:
        segments.fill(masks, SEGMENT, FILL)
    masks.GetSegmentation().GetSegment(SEGMENT).SetName(title)
    masks.SetAttribute(SHOWN, f"{sequence}:{int(number)}")
    return title


def shown(scene, run: str) -> tuple[str, int] | None:
    """The sequence and the number that are shown; None when the run shows none."""
    masks = find(scene, run, "masks", "vtkMRMLSegmentationNode")
    told = masks.GetAttribute(SHOWN) if masks is not None else None
    return (told.rpartition(":")[0], int(told.rpartition(":")[2])) if told else None


def numbers(scene, run: str, sequence: str) -> list[int]:
    """The numbers that were kept of a sequence; empty when there is no such sequence."""
    node = find(scene, run, sequence, "vtkMRMLSequenceNode")
    return (
        [int(float(node.GetNthIndexValue(n))) for n in range(node.GetNumberOfDataNodes())] if node is not None else []
    )


def levels(scene, run: str) -> list[float]:
    """The noise levels whose maps were kept, in order."""
    nodes = [node for node in of_class(scene, "vtkMRMLSequenceNode") if run_id(scene, node) == run]
    names = [name_of(scene, node) for node in nodes]
    return sorted(float(name.removeprefix("noise-")) for name in names if name.startswith("noise-"))


def point(scene, series_id: str, row: int) -> tuple[str, int] | None:
    """The sequence and the number that a point of one of our charts stands for; None for other charts.

    Parameters
    ----------
    series_id : str
        Of the plot series node.
    row : int
        Of its table, as a chart view says what was selected.
    """
    series = scene.GetNodeByID(series_id or "")
    run = run_id(scene, series) if series is not None else ""
    table = series.GetTableNode().GetTable() if run and series.GetTableNode() is not None else None
    if table is None or not 0 <= row < table.GetNumberOfRows():
        return None
    at = table.GetValueByName(row, series.GetXColumnName()).ToDouble()
    curve = name_of(scene, series)
    if curve == "ranking":
        found = next(rows(scene, run, "units", ("rank", "number"), at), None)
        return ("units", int(found[1])) if found else None
    if curve == "noise-effect":
        return series.GetYColumnName().replace(" ", "-"), int(at)
    return ("layers", int(at)) if curve == "transition" else None


def row_of(scene, series_id: str, sequence: str, number: int) -> int | None:
    """The other way round: the row of a series that stands for a mask; None when it has none."""
    series = scene.GetNodeByID(series_id or "")
    run = run_id(scene, series) if series is not None else ""
    table = series.GetTableNode().GetTable() if run and series.GetTableNode() is not None else None
    curve, column = name_of(scene, series) if run else "", series.GetYColumnName() if run else ""
    at = float(number)
    if (curve, sequence) == ("ranking", "units"):
        at = next((float(row[1]) for row in rows(scene, run, "units", ("number", "rank"), number)), -1.0)
    elif (curve, sequence) != ("transition", "layers") and (curve, column.replace(" ", "-")) != (
        "noise-effect",
        sequence,
    ):
        return None
    for n in range(table.GetNumberOfRows() if table is not None else 0):
        y = table.GetValueByName(n, column).ToDouble()
        if table.GetValueByName(n, series.GetXColumnName()).ToDouble() == at and y == y:
            return n
    return None


def heat(scene, run: str, shown: bool, threshold: float | None = None) -> None:
    """Lay the run's heat map over the input, or take it away; below ``threshold`` it is transparent."""
    node = find(scene, run, "heat", "vtkMRMLScalarVolumeNode")
    if node is None:
        return
    if threshold is not None:
        display = node.GetDisplayNode()
        if display.GetLowerThreshold() != threshold:
            display.SetLowerThreshold(threshold)
    if shown:
        layers.show(scene, None, node, layers.OVERLAY)
    else:
        for composite in of_class(scene, "vtkMRMLSliceCompositeNode"):
            layers.clear(composite, {node.GetID()})
    layers.legend_follows(node)


def title_of(scene, run: str, sequence: str, number: int) -> str:
    """What a person calls a mask: ``17 merge.3.0``, ``unit 12 of conv2d_17``, ``17 merge.3.0, noise 0.3``."""
    if sequence == "units":
        row = next(rows(scene, run, "units", ("number", "unit", "layer"), number), None)
        return f"unit {row[1]} of {paths(scene, run).get(row[2]) or row[2]}" if row else f"unit {number}"
    row = next(rows(scene, run, "layers", ("number", "layer", "path"), number), None)
    title = layer_title(number, *row[1:]) if row else f"{sequence} {number}"
    return f"{title}, noise {sequence.removeprefix('noise-')}" if sequence.startswith("noise-") else title


def paths(scene, run: str) -> dict[str, str]:
    """The module of each layer by the layer's name; empty where it is not known."""
    return dict(rows(scene, run, "layers", ("layer", "path")))


def layer_title(number: int, layer: str, path: str) -> str:
    """What a person calls a layer: its number, and its module where that is known."""
    return f"{number} {path or layer}" if number else "input image"


def rows(scene, run: str, table: str, columns: tuple[str, ...], number: int | None = None):
    """Rows of a run's table as text, whole numbers without a point; those whose first column is ``number``, or all."""
    node = find(scene, run, table, "vtkMRMLTableNode")
    inner = node.GetTable() if node is not None else None
    if inner is None or any(inner.GetColumnByName(name) is None for name in columns):
        return
    for n in range(inner.GetNumberOfRows()):
        if number is None or inner.GetValueByName(n, columns[0]).ToDouble() == number:
            yield tuple(_text(inner.GetValueByName(n, name)) for name in columns)


def _text(value) -> str:
    return repr(value.ToDouble()).removesuffix(".0") if value.IsNumeric() else value.ToString()
