"""What rounding does to perplexity."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.reports.results import ResultRow, Results
from effllm.pipelines.reports.stage import Findings, ReportStage
from effllm.pipelines.reports.table import Column, make_table


@dataclass(frozen=True, kw_only=True)
class ReportRounding(ReportStage):
    """Read perplexities and say them."""

    TITLE: ClassVar[str] = "Round to nearest"
    QUESTION: ClassVar[str] = "How few bits does a weight need?"
    ARXIV: ClassVar[str] = "0000.00000"

    def find(self, results: Results, figures: Path) -> Findings:
        """A row for the model as it is, and one for it rounded."""
        rows = []
        for measured in results.by("perplexity"):
            assert isinstance(measured, Predictions)
            last, metrics = measured.subject["history"][-1], measured.manifest["metrics"]
            title = f"{last['bits']} bits" if last["stage"] == "round_weights" else "dense"
            value = next(metrics[key] for key in metrics if key.startswith("test/"))
            found = {"perplexity": value}
            rows.append(ResultRow("rounding", title, title, "", None, measured.label, found, {}))
        table = make_table(
            [row.plain for row in rows],
            Column("Weights", lambda row: row["title"]),
            Column("perplexity", lambda row: f"{row['metrics']['perplexity']:.2f}"),
        )
        return Findings(results.model, "As few as the table shows.", [table], rows)
