"""A chart over rounds as SVG that a style sheet colours: lines with bands, dots with error bars, gaps as gaps. Pure functions; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ddpo.markup import Html, join, tag
from ddpo.milestones import Milestone

Bars = Sequence[tuple[float, float, float]]
"""(round, low, high)."""

LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 12.0, 26.0
"""Room around the plot for ticks, in the units of the drawing."""
WIDE = (920.0, 300.0)
XMLNS = "http://www.w3.org/2000/svg"
COLOURS = 6
LETTER = 7.0
"""About how wide a letter is."""
STYLE = Path(__file__).with_suffix(".css")
"""The colours and lines of charts."""
MOST_STRETCHES = 250
"""A line of more rounds is cut into so many stretches, each with its lowest and its highest value."""


@dataclass(frozen=True)
class Line:
    label: str
    points: Sequence[tuple[float, float | None]]
    """Over rounds, or over what else the chart's axis has."""
    spread: Bars = field(default=())
    """A band around a line, or an error bar of each dot."""
    dots: bool = False
    of: int | None = None
    """A fitted curve: drawn dotted, in the colour of the line of this number, and not named beside the others."""


@dataclass(frozen=True)
class Panel:
    """A chart over rounds with its title."""

    title: str
    lines: Sequence[Line]
    label: str
    """What it shows, for those who cannot see it."""
    marks: Sequence[Milestone] = ()


@dataclass(frozen=True)
class Scale:
    """Where rounds and values lie in the drawing."""

    first: float
    last: float
    low: float
    high: float
    width: float
    height: float

    def x(self, number: float) -> float:
        share = (number - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return LEFT + 6 + share * (self.width - LEFT - RIGHT - 12)

    def y(self, value: float) -> float:
        return self.height - BOTTOM - (value - self.low) / (self.high - self.low) * (self.height - TOP - BOTTOM)


def chart(
    lines: Sequence[Line], label: str, marks: Iterable[Milestone] = (), wide: bool = False, across: str = "round", band: tuple[float, ...] = ()
) -> Html:
    """The lines over their rounds, and what happened there; ``label`` says to those who cannot see it what it shows.

    Args:
        across: what the horizontal axis has.
        band: from where to where something is expected.
    """
    drawing, named = _drawing(lines, label, marks, wide, across, band), _named(lines)
    legend = tag(
        "ul",
        *(tag("li", tag("i", class_=f"c{i % COLOURS}{' dot' if line.dots else ''}"), line.label) for i, line in named),
        class_="legend",
    )
    return join([*([legend] if len(named) > 1 else []), drawing])


def standalone(panels: Sequence[Panel]) -> str:
    """Charts one below the other as an SVG file that shows by itself: with its style, and a ground of its own, for light and dark pages alike."""
    (width, height), parts, y = WIDE, list[Html](), 0.0
    for panel in panels:
        parts.append(tag("text", panel.title, x=20, y=_f(y + 34), class_="title"))
        keys = [
            join([tag("tspan", "● " if line.dots else "━ ", class_=f"c{i % COLOURS} key", dx=18 if n else 0), line.label])
            for n, (i, line) in enumerate(_named(panel.lines))
        ]
        if len(keys) > 1:
            y += 22
            parts.append(tag("text", *keys, x=20, y=_f(y + 36)))
        parts.append(_drawing(panel.lines, panel.label, panel.marks, wide=True, x="0", y=_f(y + 46), width=f"{width:g}", height=f"{height:g}"))
        y += 46 + height
    size = dict(width=f"{width:g}", height=_f(y + 10))
    ground = tag("rect", x=0.5, y=0.5, width=f"{width - 1:g}", height=_f(y + 9), rx=10, class_="ground")
    style = tag("style", Html(STYLE.read_text(encoding="utf-8")))
    label = ". ".join(panel.label for panel in panels)
    return tag(
        "svg",
        style,
        ground,
        *parts,
        xmlns=XMLNS,
        viewBox=f"0 0 {size['width']} {size['height']}",
        role="img",
        aria_label=label,
        class_="file",
        **size,
    )


def _named(lines: Sequence[Line]) -> list[tuple[int, Line]]:
    """The lines that a legend names, with their numbers."""
    return [(i, line) for i, line in enumerate(lines) if line.of is None]


def _drawing(
    lines: Sequence[Line], label: str, marks: Iterable[Milestone], wide: bool, across: str = "round", band: tuple[float, ...] = (), **place: str
) -> Html:
    """A chart without its legend; ``place`` says where it is in another drawing."""
    width, height = WIDE if wide else (440.0, 190.0)
    lines = [thinned(line) for line in lines]
    scale = fitted(lines, width, height)
    seen = [mark for mark in marks if scale.first <= mark.round <= scale.last]
    parts = [_axes(scale, across), *(_happened(mark, scale, wide) for mark in seen)]
    if band:
        left, right = (scale.x(min(scale.last, max(scale.first, end))) for end in band)
        parts.append(tag("rect", x=_f(left), width=_f(max(1.0, right - left)), y=TOP, height=_f(height - TOP - BOTTOM), class_="peak"))
    for i, line in enumerate(lines):
        look = f"c{(i if line.of is None else line.of) % COLOURS}{'' if line.of is None else ' fitted'}"
        parts.append(tag("g", *_marks(line, scale, across), class_=look))
    label = ". ".join([label, *(f"{mark.label}: round {mark.round}" for mark in seen if mark.kind != "change")])
    return tag("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label, **place)


def thinned(line: Line) -> Line:
    """The line with fewer rounds where it has very many: the lowest and the highest of each stretch, and the first gap."""
    width = -(-len(line.points) // MOST_STRETCHES)
    if len(line.points) <= 2 * MOST_STRETCHES:
        return line
    kept = extremes(line.points, width) | {line.points[-1][0]}
    return replace(line, points=[p for p in line.points if p[0] in kept], spread=[bar for bar in line.spread if bar[0] in kept])


def extremes(points: Sequence[tuple[float, float | None]], width: int) -> set[float]:
    """The rounds of the lowest and the highest value, and of the first gap, in each stretch of ``width`` points."""
    found = set[float]()
    for start in range(0, len(points), width):
        stretch = points[start : start + width]
        known = [(value, number) for number, value in stretch if value is not None]
        found |= {number for _, number in (min(known), max(known))} if known else set()
        found |= set([number for number, value in stretch if value is None][:1])
    return found


def fitted(lines: Sequence[Line], width: float, height: float) -> Scale:
    """Scales that hold all lines, with 0 at the bottom where that is near."""
    values = [value for line in lines for _, value in line.points if value is not None]
    values += [value for line in lines for _, *ends in line.spread for value in ends]
    rounds = [number for line in lines for number, _ in line.points] or [0, 1]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low == high:
        low, high = low - (abs(low) * 0.1 or 0.0), high + (abs(high) * 0.1 or 1.0)
    room = (high - low) * 0.08
    return Scale(min(rounds), max(rounds), 0.0 if 0 <= low < 0.35 * high else low - room, high + room, width, height)


def ticks(low: float, high: float, wanted: float) -> list[float]:
    """Round numbers between two values: multiples of 1, 2, 2.5 or 5 times a power of ten."""
    raw = (high - low) / wanted or 1.0
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _axes(scale: Scale, across: str) -> Html:
    found = ticks(scale.first, max(scale.last, scale.first + 1), scale.width / 90)
    numbers = [x for x in found if (across != "round" or x == int(x)) and x <= scale.last]
    drawn = []
    for value in ticks(scale.low, scale.high, scale.height / 55):
        y = scale.y(value)
        drawn.append(tag("line", x1=LEFT, x2=_f(scale.width - RIGHT), y1=_f(y), y2=_f(y), class_="grid"))
        drawn.append(tag("text", f"{value:.8g}".replace("-", "−"), x=LEFT - 8, y=_f(y + 4), text_anchor="end"))
    bottom = _f(scale.height - 7)
    drawn += [tag("text", f"{x:g}", x=_f(scale.x(x)), y=bottom, text_anchor="middle") for x in numbers]
    return tag("g", *drawn, tag("text", across, x=LEFT - 8, y=bottom, text_anchor="end"), class_="axes")


def _marks(line: Line, scale: Scale, across: str) -> Iterator[Html]:
    """The band, the line in parts where it has gaps, and a dot for each round where there are few; each dot says its value."""
    known = {number for number, value in line.points if value is not None}
    bars = {number: (low, high) for number, low, high in line.spread}
    for part in _parts([(n, v if n in bars else None) for n, v in line.points] if not line.dots else []):
        edges = [[f"{_f(scale.x(n))},{_f(scale.y(bars[n][side]))}" for n, _ in part] for side in (0, 1)]
        yield tag("path", d=f"M{'L'.join(edges[0])}L{'L'.join(reversed(edges[1]))}Z", class_="band")
    if line.dots:
        for number in sorted(known & bars.keys()):
            low, high = bars[number]
            yield tag("line", x1=_f(scale.x(number)), x2=_f(scale.x(number)), y1=_f(scale.y(low)), y2=_f(scale.y(high)), class_="error")
    parts = list(_parts(line.points))
    for part in parts if not line.dots else []:
        if len(part) > 1:
            yield tag("path", d="M" + "L".join(f"{_f(scale.x(n))},{_f(scale.y(v))}" for n, v in part), class_="line")
    for part in parts:
        for number, value in part if line.of is None and (line.dots or len(line.points) <= 60 or len(part) == 1) else []:
            words = tag("title", f"{across[0].upper()}{across[1:]} {number:.4g}: {line.label} {value:.4g}")
            yield tag("g", words, tag("circle", cx=_f(scale.x(number)), cy=_f(scale.y(value)), r=4 if line.dots else 2.5))


HEADS = dict(alarm="M0,8L-6,-3L6,-3Z", best="M0,-6L5,0L0,6L-5,0Z")
LINES_DOWN = dict(change=0, alarm=1, best=2, fork=3)


def _happened(mark: Milestone, scale: Scale, wide: bool) -> Html:
    """A line where something happened: broken and before its round for a change, with a triangle for an alarm, a diamond for the best round."""
    at = scale.x(max(scale.first, mark.round - 0.5) if mark.kind == "change" else mark.round)
    x, words = _f(at), mark.label if len(mark.label) <= 48 else f"{mark.label[:47]}…"
    late = at > (scale.width + LEFT) / 2 if mark.kind == "change" else scale.width - RIGHT - at < LETTER * len(words)
    found = [
        tag("title", mark.text if mark.kind == "change" else f"Round {mark.round}: {mark.text}"),
        tag("line", x1=x, x2=x, y1=TOP, y2=_f(scale.height - BOTTOM)),
    ]
    if mark.kind in HEADS:
        found.append(tag("path", d=HEADS[mark.kind], transform=f"translate({x}, {TOP})"))
    if wide:
        y, side = TOP + 10 + 15 * LINES_DOWN[mark.kind], "end" if late else "start"
        found.append(tag("text", words, x=_f(at + (-8 if late else 8)), y=y, text_anchor=side))
    return tag("g", *found, class_=f"mark {mark.kind}")


def _parts(points: Sequence[tuple[float, float | None]]) -> Iterator[list[tuple[float, float]]]:
    """Stretches of points without a gap."""
    part: list[tuple[float, float]] = []
    for number, value in points:
        if value is not None:
            part.append((number, value))
        elif part:
            yield part
            part = []
    if part:
        yield part


def _f(value: float) -> str:
    return f"{value:.1f}"
