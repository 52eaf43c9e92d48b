"""Opens a scene in a process of its own and prints what is in it, as JSON. Used by the tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import vtk

from MedXAILib.scene import read, repeat
from MedXAILib.scene.host import HeadlessHost
from MedXAILib.scene.nodes import array_of, hierarchy, matrix_of, of_class, voxels  # noqa: F401


def main(path: str) -> dict:
    host = HeadlessHost()
    host.open(path)
    scene = host.scene
    tree = hierarchy(scene)

    def branch(item):
        found = vtk.vtkIdList()
        tree.GetItemChildren(item, found, False)
        ids = [found.GetId(n) for n in range(found.GetNumberOfIds())]
        return {tree.GetItemName(i): branch(i) for i in ids}

    def name(node_id):
        return scene.GetNodeByID(node_id).GetName() if node_id else None

    facts = {
        "tree": branch(tree.GetSceneItemID()),
        "layout": scene.GetFirstNodeByClass("vtkMRMLLayoutNode").GetViewArrangement(),
    }
    facts["views"] = [
        [name(n.GetBackgroundVolumeID()), name(n.GetForegroundVolumeID()), name(n.GetLabelVolumeID()), n.GetForegroundOpacity()]
        for n in of_class(scene, "vtkMRMLSliceCompositeNode")
    ]  # fmt: skip
    facts["chart shown"] = [n.GetPlotChartNode().GetName() for n in of_class(scene, "vtkMRMLPlotViewNode")]
    facts["volumes"] = {}
    for node in of_class(scene, "vtkMRMLScalarVolumeNode"):
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        shown = node.GetDisplayNode()
        fact = {
            "class": node.GetClassName(), "matrix": array_of(matrix).tolist(), "shape": list(voxels(node.GetImageData()).shape),
            "type": str(voxels(node.GetImageData()).dtype), "sum": float(voxels(node.GetImageData()).sum(dtype=float)),
            "colour": shown.GetColorNode().GetName(), "displays": [node.GetNthDisplayNode(n).GetClassName() for n in range(node.GetNumberOfDisplayNodes())],
            "method": node.GetAttribute("MedXAI.Method"),
        }  # fmt: skip
        if shown.IsA("vtkMRMLScalarVolumeDisplayNode"):
            fact["window"] = [shown.GetWindowLevelMin(), shown.GetWindowLevelMax()]
            fact["threshold"] = shown.GetLowerThreshold() if shown.GetApplyThreshold() else None
        facts["volumes"][node.GetName()] = fact
    facts["colours"] = {}
    for node in of_class(scene, "vtkMRMLColorTableNode"):
        if node.GetID().startswith("vtkMRMLColorTableNodeMedXAI"):
            colour = [0.0] * 4
            values = []
            for n in (0, node.GetNumberOfColors() // 2, node.GetNumberOfColors() - 1):
                node.GetColor(n, colour)
                values.append([round(v, 3) for v in colour])
            facts["colours"][node.GetName()] = {"n": node.GetNumberOfColors(), "values": values}
    facts["charts"] = {}
    for node in of_class(scene, "vtkMRMLPlotChartNode"):
        series = [node.GetNthPlotSeriesNode(n) for n in range(node.GetNumberOfPlotSeriesNodes())]
        facts["charts"][node.GetName()] = {
            "titles": [node.GetTitle(), node.GetXAxisTitle(), node.GetYAxisTitle()], "legend": node.GetLegendVisibility(),
            "series": {s.GetYColumnName(): [s.GetTableNode().GetName(), s.GetXColumnName(), s.GetLineStyle(), s.GetPlotType()] for s in series},
        }  # fmt: skip
    facts["tables"] = {}
    for node in of_class(scene, "vtkMRMLTableNode"):
        table = node.GetTable()
        facts["tables"][node.GetName()] = {
            table.GetColumnName(c): [table.GetValue(r, c).ToString() for r in range(table.GetNumberOfRows())]
            for c in range(table.GetNumberOfColumns())
        }
    facts["segments"] = {}
    for node in of_class(scene, "vtkMRMLSegmentationNode"):
        for segment in node.GetSegmentation().GetSegmentIDs():
            volume = next(
                n for n in of_class(scene, "vtkMRMLScalarVolumeNode") if n.GetAttribute("MedXAI.Method") is None
            )
            mask = read.segment(node, segment, volume).array
            facts["segments"][segment] = [node.GetName(), int(mask.sum()), [int(v.min()) for v in mask.nonzero()]]
    browser = scene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode")
    frames = []
    for n in range(browser.GetNumberOfItems()):
        browser.SetSelectedItemNumber(n)
        proxy = browser.GetProxyNode(browser.GetMasterSequenceNode())
        host.logic("Sequences").UpdateProxyNodesFromSequences(browser)
        frames.append([browser.GetMasterSequenceNode().GetNthIndexValue(n), float(voxels(proxy.GetImageData()).max())])
    facts["frames"] = frames
    facts["sequences"] = {
        n.GetName(): [n.GetNumberOfDataNodes(), n.GetNthDataNode(0).GetClassName(), n.GetNthDataNode(0).GetImageData().GetScalarTypeAsString()]
        for n in of_class(scene, "vtkMRMLSequenceNode")
    }  # fmt: skip
    marker = scene.GetFirstNodeByClass("vtkMRMLMarkupsFiducialNode")
    facts["neuron"] = list(marker.GetNthControlPointPositionWorld(0))
    facts["distance to slices"] = [
        float(abs((array_of(n.GetSliceToRAS())[:3, 2] * (facts["neuron"] - array_of(n.GetSliceToRAS())[:3, 3])).sum()))
        for n in of_class(scene, "vtkMRMLSliceNode")
    ]
    facts["text"] = scene.GetFirstNodeByClass("vtkMRMLTextNode").GetText()
    known = repeat.provenance(scene, marker)
    known["inputs"] = [n.GetName() for n in known["inputs"]]
    known["segmentation"] = known["segmentation"].GetName() if known["segmentation"] else None
    facts["provenance"] = known
    return facts


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(sys.argv[1])))
