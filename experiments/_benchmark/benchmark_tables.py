"""The benchmark's results as tables on the terminal."""

from collections.abc import Sequence

from rich.table import Table

from deid_jax.reports.tables import percent
from experiments._benchmark.results import BenchmarkResult, CaseResult, Times
from experiments._common import terminal


def show_results(result: BenchmarkResult) -> None:
    """Prints times, throughput and notes."""
    console = terminal.console()
    if result.layers:
        layers = [((str(row.layer), row.direction), row.times) for row in result.layers]
        console.print(_times("ms per layer", ("layer", "pass"), layers))
    else:
        cases = [((str(row.case),), row.times) for row in result.cases]
        console.print(_times("ms per image and iteration", ("case",), cases))
        console.print(_throughputs(result.cases, result.matrix_product_gflops or 0.0))
    for note in result.notes:
        print(note)


def _times(
    what: str, headings: tuple[str, ...], rows: Sequence[tuple[tuple[str, ...], Times]]
) -> Table:
    title = f"{what} (× ours: where above 1, ours is faster)"
    table = Table(title=title, title_justify="left")
    for heading in (*headings, "ours", *rows[0][1].peers):
        table.add_column(heading, justify="left" if heading in headings else "right")
    for cells, times in rows:
        peers = [f"{peer.ms:.2f} ({peer.ratio:.2f}×)" for peer in times.peers.values()]
        table.add_row(*cells, f"{times.ours_ms:.2f}", *peers)
    return table


def _throughputs(rows: Sequence[CaseResult], rate: float) -> Table:
    title = f"ours beside this device's matrix product ({rate:.0f} GFLOP/s)"
    table = Table(title=title, title_justify="left")
    for heading in ("case", "GFLOP forward", "GFLOP/s", "share"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    with_torch = "torch" in rows[0].times.peers
    if with_torch:
        table.add_column("fastest torch")
    for row in rows:
        cells = [f"{row.forward_gflop:.2f}", f"{row.gflops:.0f}"]
        cells.append(percent(row.share_of_matrix_product, 0))
        variant = row.times.peers["torch"].variant if with_torch else None
        table.add_row(str(row.case), *cells, *([variant] if variant else []))
    return table
