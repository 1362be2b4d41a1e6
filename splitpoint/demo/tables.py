"""The demo's map and its legend, as rich renderables and, for README, as Markdown."""

from collections.abc import Sequence

from rich.table import Table

from splitpoint.demo.grid import DemoMap, MapCell
from splitpoint.demo.ways import BY_ITSELF, KINDS, Way

_LOST = "does not fit"


def map_table(grid: DemoMap) -> Table:
    """Map as a rich table: median latency, bytes and matching boxes of every way, per cell."""
    table = Table(
        title=f"Latency (median), kB sent, same boxes; an edge of {grid.share:.2f} of a core",
        title_justify="left",
    )
    table.add_column("")
    links = _links(grid)
    for link in links:
        table.add_column(link, justify="right")
    for title in _edges(grid):
        cells = _row(grid, title, links)
        table.add_row(f"[bold]{title}[/bold]")
        for way in (*KINDS.values(), BY_ITSELF):
            table.add_row(way, *(_styled(grid, cell, way) for cell in cells))
        table.add_row("  which took", *(_choice(cell) for cell in cells))
        table.add_section()
    return table


def map_markdown(grid: DemoMap) -> str:
    """Map as a Markdown table."""
    links = _links(grid)
    lines = ["| | " + " | ".join(links) + " |", "|---|" + "--:|" * len(links)]
    for title in _edges(grid):
        cells = _row(grid, title, links)
        lines.append(f"| **{title}** |" + " |" * len(links))
        for way in (*KINDS.values(), BY_ITSELF):
            shown = (_plain(grid, cell, way) for cell in cells)
            shown = (text.replace("[", "**").replace("]", "**") for text in shown)
            lines.append(f"| {way} | " + " | ".join(shown) + " |")
        lines.append("| which took | " + " | ".join(_choice(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def verdicts(grid: DemoMap) -> list[str]:
    """One line per cell: the fastest way, and its lead over the next."""
    return [_verdict(cell) for cell in grid.cells]


def _verdict(cell: MapCell) -> str:
    named = sorted((w for w in cell.ways if w.plan is not None), key=lambda way: way.latency_ms)
    best, *others = named
    line = f"{cell.edge}, {cell.link}: {best.title} is the fastest ({best.latency_ms:.0f} ms"
    if others:
        ratio = others[0].latency_ms / best.latency_ms
        line += f"; {others[0].title} takes {ratio:.1f} x"
    return f"{line}); Splitpoint {BY_ITSELF} took {cell.by_itself.latency_ms:.0f} ms."


def _links(grid: DemoMap) -> list[str]:
    return list(dict.fromkeys(str(cell.link) for cell in grid.cells))


def _edges(grid: DemoMap) -> list[str]:
    return list(dict.fromkeys(cell.edge for cell in grid.cells))


def _row(grid: DemoMap, title: str, links: Sequence[str]) -> list[MapCell | None]:
    found = {str(c.link): c for c in grid.cells if c.edge == title}
    return [found.get(link) for link in links]


def _plain(grid: DemoMap, cell: MapCell | None, title: str) -> str:
    """Latency, kilobytes and matching boxes of one way; in brackets for the fastest."""
    if cell is None:
        return ""
    way = _way(cell, title)
    if way is None:
        return _LOST
    agreed = grid.agreed(way)
    boxes = f"{agreed.matched}/{agreed.matched + agreed.missing}"
    text = f"{way.latency_ms:.0f} ms, {way.kilobytes:.1f} kB, {boxes}"
    return f"[{text}]" if way is cell.fastest else text


def _styled(grid: DemoMap, cell: MapCell | None, title: str) -> str:
    text = _plain(grid, cell, title)
    if text.startswith("["):
        return f"[bold green]{text[1:-1]}[/bold green]"
    return f"[dim]{text}[/dim]" if text == _LOST else text


def _way(cell: MapCell, title: str) -> Way | None:
    return next((way for way in cell.ways if way.title == title), None)


def _choice(cell: MapCell | None) -> str:
    return "" if cell is None else KINDS[cell.by_itself.usual["kind"]]
