"""The figures of the SparK report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.figures import COLOURS, figure, write_csv
from effllm.pipelines.reports.page import Figure
from effllm.pipelines.reports.spark.study import Study

_KINDS = {
    "SparkKeys": ("SparK", "o"),
    "ThinkKeys": ("ThinK", "s"),
    "ChannelIntegers": ("rounded keys", "^"),
    "TokenIntegers": ("rounded keys", "^"),
    "Dense": ("eviction alone", "D"),
}
_LEAST = 1e-7  # nats; a logarithmic axis has no zero


def undominated(study: Study) -> list[str]:
    """Arms that no other arm beats in both bytes and KL, by bytes."""
    points = {arm: (study.bytes_per_token(arm), study.texts.mean(arm, "kl").value)
              for arm in study.about}  # fmt: skip
    best = [
        arm
        for arm, point in points.items()
        if not any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in points.values())
    ]
    return sorted(best, key=lambda arm: points[arm])


def draw_tradeoff(study: Study, folder: Path) -> Figure:
    """KL against bytes, with the frontier."""
    table: list[dict[str, Any]] = []
    names = list(dict.fromkeys(name for name, _ in _KINDS.values()))
    seen: set[str] = set()
    with figure(folder, "tradeoff", size=(8.5, 5.2)) as axes:
        for arm, about in study.about.items():
            if arm == "dense":
                continue
            kind, marker = _KINDS[about["keys"]["class"]]
            evicts = about["evict"] is not None
            name = f"{kind} on SnapKV" if evicts and kind != "eviction alone" else kind
            size, kl = study.bytes_per_token(arm), study.texts.mean(arm, "kl")
            colour = COLOURS[names.index(kind)]
            axes.plot([size, size], [max(kl.low, _LEAST), max(kl.high, _LEAST)], color=colour,
                      linewidth=1.2)  # fmt: skip
            axes.plot(
                size, max(kl.value, _LEAST), marker, color=colour, markersize=7,
                markerfacecolor="white" if evicts else colour, label="" if name in seen else name,
            )  # fmt: skip
            seen.add(name)
            table.append(
                {"arm": arm, "bytes": size, "kl": kl.value, "low": kl.low, "high": kl.high}
            )
        kls = {row["arm"]: (row["bytes"], max(row["kl"], _LEAST)) for row in table}
        frontier = [arm for arm in undominated(study) if arm in kls]
        axes.plot(*zip(*map(kls.get, frontier), strict=True), color="#7f7f7f", linewidth=1,
                  linestyle="--", zorder=0, label="no other arm has less of both")  # fmt: skip
        for arm in frontier:
            axes.annotate(arm, kls[arm], xytext=(6, -11), textcoords="offset points", fontsize=7,
                          color="#5b6675")  # fmt: skip
        axes.set_yscale("log")
        axes.set_xlabel("bytes per token of the context, all layers")
        axes.set_ylabel("KL to the full cache, nats per token")
        axes.legend(fontsize=9)
    write_csv(folder, "tradeoff", table)
    return Figure(
        "tradeoff", "Bytes held and what they cost; lower left is better. 95 % intervals."
    )


def draw_kept(evaluated: Artifact, folder: Path) -> Figure | None:
    """Which channels each token keeps, in the middle layer's first head."""
    from safetensors.numpy import load_file

    file = evaluated.path / "kept.safetensors"
    if not file.is_file():
        return None
    kept = load_file(file)["kept"]
    with figure(folder, "kept", size=(9, 3.2)) as axes:
        axes.imshow(kept.T, aspect="auto", cmap="Blues", interpolation="nearest")
        axes.set_xlabel("token")
        axes.set_ylabel("channel")
        axes.grid(visible=False)
    shares = kept.mean(axis=0)
    write_csv(
        folder, "kept", [{"channel": n, "share": float(share)} for n, share in enumerate(shares)]
    )
    return Figure(
        "kept",
        "Kept channels (dark) of every packed token of the first window: middle layer, first head.",
    )
