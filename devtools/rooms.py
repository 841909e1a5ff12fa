"""Draws docs/rooms.svg, the rooms of the code and who imports whom, from the code itself: `python3 dev.py run -m devtools.rooms`.

A room stands below all that import it. An arrow is left out where a longer way of arrows leads to the same room.
"""

from __future__ import annotations

import graphlib

from .imports import ENGINE, ROOT, TOPS, Imports, module_imports, room_imports

PICTURE = ROOT / "docs" / "rooms.svg"
BOX, HEIGHT, GAP, LINE, ROW = 140, 32, 24, 6, 76
INK, PAPER, LINES = "#334155", "#ffffff", "#64748b"
FILLS = {"engine": "#e0ecff", "hosts": "#e5f5e0", "beside": "#fdeccf"}


def shortened(edges: Imports) -> Imports:
    """The same without arrows where a longer way of arrows leads to the same room."""
    return {room: to - {far for near in to for far in reached(near, edges)} for room, to in edges.items()}


def reached(room: str, edges: Imports) -> set[str]:
    """All rooms that arrows lead to from a room."""
    return edges[room].union(*(reached(other, edges) for other in edges[room]))


def placed(edges: Imports) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of rooms, the uppermost first, each room as high as arrows run down; and each arrow's way, with a place in every row."""
    row: dict[str, int] = {}
    for room in reversed(list(graphlib.TopologicalSorter(edges).static_order())):
        row[room] = max((row[above] + 1 for above in row if room in edges[above]), default=0)
    ways = []
    for room, other in sorted((room, other) for room, to in edges.items() for other in to):
        ways.append([room, *(f"{room}>{other}>{between}" for between in range(row[room] + 1, row[other])), other])
    rows: list[list[str]] = [sorted(room for room in row if row[room] == index) for index in range(max(row.values()) + 1)]
    for place in (place for way in ways for place in way[1:-1]):
        rows[int(place.rsplit(">", 1)[1])].append(place)
    return rows, ways


def centres(rows: list[list[str]], ways: list[list[str]]) -> dict[str, float]:
    """Middle of every place. Each row is ordered, then set, by the places that its own are joined to, so arrows are short and few cross."""
    joined: dict[str, list[str]] = {name: [] for row in rows for name in row}
    for above, below in (pair for way in ways for pair in zip(way, way[1:])):
        joined[above].append(below)
        joined[below].append(above)
    centre = {name: at for row in rows for name, at in _set(row, [BOX * index for index in range(len(row))]).items()}
    for turn in range(40):
        for row in (*rows, *reversed(rows)):
            wished = {name: sum(centre[other] for other in joined[name]) / len(joined[name]) for name in row}
            if turn < 20:
                row.sort(key=wished.__getitem__)
            centre.update(_set(row, [wished[name] for name in row]))
    return centre


def _set(row: list[str], wished: list[float]) -> dict[str, float]:
    """Middles in this order, apart by their widths, as near to the wished ones as that allows: neighbours that push move together."""
    widths = [LINE if ">" in name else BOX for name in row]
    offset = [sum(widths[:index]) + GAP * index + widths[index] / 2 for index in range(len(row))]
    groups: list[list[float]] = []
    for at, shift in zip(wished, offset):
        groups.append([at - shift])
        while len(groups) > 1 and _mean(groups[-2]) > _mean(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    left = [_mean(group) for group in groups for _ in group]
    return {name: start + shift for name, start, shift in zip(row, left, offset)}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def drawn(edges: Imports) -> str:
    """The picture as SVG."""
    rows, ways = placed(shortened(edges))
    middle = centres(rows, ways)
    left, right = min(middle.values()) - BOX / 2 - GAP, max(middle.values()) + BOX / 2 + GAP
    spot = {name: (middle[name] - left, GAP + index * ROW) for index, row in enumerate(rows) for name in row}
    size = f"{right - left:.0f} {GAP * 2 + (len(rows) - 1) * ROW + HEIGHT}"
    lines = [_arrow([spot[name] for name in way]) for way in ways]
    boxes = [_box(room, *spot[room]) for room in sorted(edges)]
    return "\n".join([*_head(*size.split()), *lines, *boxes, "</svg>", ""])


def _head(width: str, height: str) -> list[str]:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    tip = f'<path d="M0 0 8 4 0 8z" fill="{LINES}"/>'
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="14">',
        "<title>The rooms of the code; arrows lead from a room to those it imports</title>",
        f'<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">{tip}</marker>',
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
    ]


def _arrow(points: list[tuple[float, int]]) -> str:
    (x, y), *rest = points
    path = f"M{x:.0f} {y + HEIGHT}"
    for to, top in rest:
        between = (y + HEIGHT + top) / 2
        path += f"C{x:.0f} {between:.0f} {to:.0f} {between:.0f} {to:.0f} {top}"
        path += f"V{top + HEIGHT}" if (to, top) != points[-1] else ""
        x, y = to, top
    return f'<path d="{path}" fill="none" stroke="{LINES}" stroke-width="1.3" marker-end="url(#tip)"/>'


def _box(room: str, x: float, y: int) -> str:
    fill = FILLS["beside" if room in TOPS else "hosts" if room.startswith("hosts") else "engine"]
    name = room if (ROOT / room).is_dir() or (ROOT / ENGINE / room).is_dir() else f"{room}.py"
    shape = f'<rect x="{x - BOX / 2:.0f}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="6" fill="{fill}" stroke="{INK}"/>'
    return f'{shape}<text x="{x:.0f}" y="{y + HEIGHT / 2 + 5:.0f}" fill="{INK}" text-anchor="middle">{name}</text>'


if __name__ == "__main__":
    PICTURE.write_text(drawn(room_imports(module_imports())), encoding="utf-8", newline="\n")
