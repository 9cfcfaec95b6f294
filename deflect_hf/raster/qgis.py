"""How QGIS paints a map of classes, and its polygons: the file that it looks for beside them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from deflect_hf.raster.maps import MapLayout

MADE_BY = {"made-by": "deflect_hf"}  # an attribute that QGIS does not know
# names and attributes as QGIS 3 writes them
BORDERS = {"outline_color": "0,0,0,120", "outline_style": "solid", "outline_width": "0.1", "style": "solid"}


def style_of(path: Path) -> Path:
    """The file beside a map or polygons by which QGIS paints them: one for both where they have one name."""
    return path.with_suffix(".qml")


def is_ours(path: Path) -> bool:
    """Whether a file of that name was written here."""
    return b'made-by="deflect_hf"' in path.read_bytes()[:300]


def qgis_style(layout: MapLayout) -> str:
    """QML that paints polygons by their attribute ``class``, and a raster by its first band."""
    root = ElementTree.Element("qgis", {"version": "3.22.0", "styleCategories": "Symbology", **MADE_BY})
    renderer = ElementTree.SubElement(root, "renderer-v2", type="categorizedSymbol", attr="class")
    categories, symbols = (ElementTree.SubElement(renderer, name) for name in ("categories", "symbols"))
    pipe = ElementTree.SubElement(root, "pipe")
    painted = ElementTree.SubElement(
        pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1", nodataColor=""
    )
    palette = ElementTree.SubElement(painted, "colorPalette")
    for number, (name, color) in enumerate(zip(layout.categories, layout.colours, strict=True)):
        ElementTree.SubElement(categories, "category", symbol=str(number), value=name, label=name, render="true")
        symbol = ElementTree.SubElement(symbols, "symbol", type="fill", name=str(number), alpha="1")
        layer = ElementTree.SubElement(symbol, "layer", {"class": "SimpleFill"}, enabled="1")
        options = ElementTree.SubElement(layer, "Option", type="Map")
        for key, value in {"color": ",".join(map(str, (*color, 255))), **BORDERS}.items():
            ElementTree.SubElement(options, "Option", type="QString", name=key, value=value)
        ElementTree.SubElement(
            palette,
            "paletteEntry",
            value=str(number),
            color="#{:02x}{:02x}{:02x}".format(*color),
            alpha="255",
            label=name,
        )
    document = ElementTree.tostring(root, encoding="unicode")
    return f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{document}\n"
