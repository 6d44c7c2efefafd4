"""Pictures and pages: a figure per image, a strip per epoch, and reports that open without a network."""

from typing import TYPE_CHECKING

from attention_branch.lazy import lazy_names

if TYPE_CHECKING:
    from attention_branch.explanations.attribute_figure import attribute_figure
    from attention_branch.explanations.figure import figure
    from attention_branch.explanations.filter_figure import filter_figure
    from attention_branch.report.evaluation_page import write_evaluation_report
    from attention_branch.report.explained import ExplainedFiles, explain_files
    from attention_branch.report.guided_strip import guided_strip
    from attention_branch.report.page import (
        Bar,
        Block,
        CalibrationBlock,
        Card,
        Facts,
        Figure,
        Gallery,
        MatrixBlock,
        TableBlock,
        write_report,
    )
    from attention_branch.report.shortcut_page import write_shortcut_report
    from attention_branch.report.strip import strip

__all__ = [
    "Bar",
    "Block",
    "CalibrationBlock",
    "Card",
    "ExplainedFiles",
    "Facts",
    "Figure",
    "Gallery",
    "MatrixBlock",
    "TableBlock",
    "attribute_figure",
    "explain_files",
    "figure",
    "filter_figure",
    "guided_strip",
    "strip",
    "write_evaluation_report",
    "write_report",
    "write_shortcut_report",
]

lazy_names(
    __name__,
    {
        "..explanations.attribute_figure": ("attribute_figure",),
        "..explanations.figure": ("figure",),
        "..explanations.filter_figure": ("filter_figure",),
        ".evaluation_page": ("write_evaluation_report",),
        ".explained": ("ExplainedFiles", "explain_files"),
        ".guided_strip": ("guided_strip",),
        ".page": (
            "Bar",
            "Block",
            "CalibrationBlock",
            "Card",
            "Facts",
            "Figure",
            "Gallery",
            "MatrixBlock",
            "TableBlock",
            "write_report",
        ),
        ".shortcut_page": ("write_shortcut_report",),
        ".strip": ("strip",),
    },
)
