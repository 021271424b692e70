"""The table of all workloads in Markdown, and as a chart."""

from __future__ import annotations

from pathlib import Path

from ..timing import median

COLUMNS = {
    "eager, numpy": "eager",
    "captured, numpy": "captured",
    "eager, numba": "eager, `fast`",
    "captured, numba": "captured, `fast`",
    "NumPy by hand": "NumPy by hand",
    "PyTorch": "PyTorch",
    "torch.compile": "torch.compile",
    "JAX": "JAX jit",
    "MyGrad": "MyGrad",
    "HIPS autograd": "HIPS autograd",
}
OURS = ("#9ecae1", "#4292c6", "#6baed6", "#08519c")
OTHERS = ("#969696", "#fdae6b", "#e6550d", "#74c476", "#c994c7", "#df65b0")


def write(directory: Path, rows: list[tuple[str, dict[str, list[float]]]]) -> None:
    """``speed.md`` and ``speed.png``: medians; in the chart as multiples of PyTorch's, on a logarithmic scale."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [f"| ms | {' | '.join(COLUMNS.values())} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for title, times in rows:
        cells = [f"{median(times[who]) * 1e3:.3g}" if who in times else "" for who in COLUMNS]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    (directory / "speed.md").write_text("\n".join(lines) + "\n")
    chart(directory / "speed.png", rows)


def chart(path: Path, rows: list[tuple[str, dict[str, list[float]]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.0 + 1.25 * len(rows)), layout="constrained")
    colours = dict(zip(COLUMNS, (*OURS, *OTHERS), strict=True))
    height, place, ticks = 0.8, 0.0, []
    seen: set[str] = set()
    for title, times in rows:
        present = [who for who in COLUMNS if who in times]
        base = median(times.get("PyTorch", times[present[0]]))
        start = place
        for who in present:
            value = median(times[who]) / base
            axes.barh(
                place, value, height, color=colours[who], label=None if who in seen else COLUMNS[who].replace("`", "")
            )
            axes.text(value * 1.03, place, f"{value:.2f}", va="center", fontsize=7)
            seen.add(who)
            place += 1
        ticks.append(((start + place - 1) / 2, title))
        place += 1
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks([y for y, _ in ticks], [title.replace(", ", ",\n", 1) for _, title in ticks], fontsize=8)
    axes.set_ylim(place - 1, -1)
    axes.set_xlabel("time of a step as a multiple of PyTorch's (eager); shorter is faster")
    figure.legend(fontsize=8, loc="outside upper center", ncols=5)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
