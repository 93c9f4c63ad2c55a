"""The benchmark's figures as tables on the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from experiments._common.timing import Case


def show(figures: dict[str, Any]) -> None:
    """Prints what `benchmark.json` holds: times, throughput, notes."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    if figures["layers"]:
        console.print(_times(figures["layers"], "ms per layer", ("layer", "pass")))
    else:
        rows = [row | {"case": str(_case(row))} for row in figures["cases"]]
        console.print(_times(rows, "ms per image and iteration", ("case",)))
        console.print(_throughputs(rows, figures["matrix_product_gflops"]))
    for note in figures["notes"]:
        print(note)


def _case(row: dict[str, Any]) -> Case:
    return Case(*(row[field] for field in Case._fields))


def _times(rows: list[dict[str, Any]], what: str, headings: tuple[str, ...]) -> Table:
    title = f"{what} (× ours: where above 1, ours is faster)"
    table = Table(title=title, title_justify="left")
    for heading in (*headings, "ours", *rows[0]["peers"]):
        table.add_column(heading, justify="left" if heading in headings else "right")
    for row in rows:
        peers = [f"{peer['ms']:.2f} ({peer['ratio']:.2f}×)" for peer in row["peers"].values()]
        cells = [row[heading] for heading in headings]
        table.add_row(*cells, f"{row['ours_ms']:.2f}", *peers)
    return table


def _throughputs(rows: list[dict[str, Any]], rate: float) -> Table:
    title = f"ours beside this device's matrix product ({rate:.0f} GFLOP/s)"
    table = Table(title=title, title_justify="left")
    for heading in ("case", "GFLOP forward", "GFLOP/s", "share"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    variants = "torch" in rows[0]["peers"]
    if variants:
        table.add_column("fastest torch")
    for row in rows:
        cells = [f"{row['forward_gflop']:.2f}", f"{row['gflops']:.0f}"]
        cells.append(f"{row['share_of_matrix_product']:.0%}")
        cells += [row["peers"]["torch"]["variant"]] if variants else []
        table.add_row(row["case"], *cells)
    return table
