"""Report of how sensitive each layer is to quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from balancer.errors import CorruptFileError

if TYPE_CHECKING:
    import altair as alt


@dataclass(frozen=True)
class SensitivityRow:
    """Sensitivity of one layer."""

    name: str
    kind: str
    parameters: int
    score: dict[str, float]
    """Expected divergence from the float32 model, in nats per row, by precision; 0 for float32."""
    bytes: dict[str, int]
    ms: dict[str, float]
    """Milliseconds on the first batch, by precision; empty if latencies were not measured."""


@dataclass(frozen=True)
class SensitivityReport:
    """Result of :func:`sensitivity`."""

    rows: list[SensitivityRow]
    method: str
    bits: int
    batches: int
    seconds: float
    fingerprint: str
    """Fingerprint of the model's layers; a plan computed from the report carries it."""
    other_ms: float = 0.0
    """Milliseconds of the whole model on the first batch that are not spent in these layers."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> SensitivityReport:
        """Build a report from the result of :meth:`to_dict`.

        Raises:
            CorruptFileError: Keys are missing or unknown.
        """
        try:
            rows = [SensitivityRow(**row) for row in content["rows"]]
            return cls(**(content | {"rows": rows}))
        except (TypeError, KeyError) as error:
            raise CorruptFileError(f"the sensitivity report can't be read ({error}): create it again") from error

    def table(self) -> list[dict[str, Any]]:
        """Return one flat dictionary per layer, the most sensitive to INT8 first."""
        flat = [
            {"layer": row.name, "kind": row.kind, "parameters": row.parameters}
            | {f"{key} {name}": value for key in ("score", "bytes", "ms") for name, value in getattr(row, key).items()}
            for row in self.rows
        ]
        return sorted(flat, key=lambda row: -row.get("score int8", 0.0))

    def chart(self, precision: Mapping[str, str] | None = None) -> alt.Chart:
        """Draw the divergence of each layer in INT8 as an Altair chart, the most sensitive first.

        Altair must be installed.

        Args:
            precision: precision by layer, shown as color.
        """
        import altair as alt

        ordered = sorted(self.rows, key=lambda row: -row.score["int8"])
        planned = precision or {}
        # A logarithmic axis can't show zero.
        values: Any = [
            {"layer": r.name, "divergence": max(r.score["int8"], 1e-12), "precision": planned.get(r.name, "not planned")} for r in ordered
        ]
        colours = {"int8": "#0072B2", "bf16": "#E69F00", "fp16": "#009E73", "fp32": "#CC79A7", "not planned": "#8A8A8A"}
        chart: alt.Chart = (
            alt.Chart(alt.InlineData(values=values))
            .mark_point(filled=True, size=90)
            .encode(
                alt.X(
                    "divergence:Q",
                    title="divergence in INT8 (nats per row, log scale)",
                    scale=alt.Scale(type="log"),
                    axis=alt.Axis(format="~e"),
                ),
                alt.Y("layer:N", title="layer", sort=None, axis=alt.Axis(labelLimit=260)),
                alt.Color("precision:N", title="precision", scale=alt.Scale(domain=list(colours), range=list(colours.values()))),
                alt.Shape("precision:N", title="precision"),
                tooltip=["layer:N", "precision:N", alt.Tooltip("divergence:Q", format=".2e")],
            )
            .properties(width=640, height=70 + 20 * len(values))
        )
        return chart
