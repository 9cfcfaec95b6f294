"""An exported model against its own: the table of what was measured."""

from tests.benchmarks.export import as_markdown


def test_the_table_has_ratios_of_the_fastest_rounds() -> None:
    seconds = {"eager": [3.0, 2.0], "ONNX": [1.0, 5.0]}
    table = as_markdown({"seconds": seconds, "differences": {"ONNX": 3e-7}, "threads": 1}, "ViT-small")
    assert "| eager | 2.000 | 1.00 | 0.0e+00 |\n| ONNX | 1.000 | 0.50 | 3.0e-07 |" in table
