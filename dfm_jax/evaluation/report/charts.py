"""Line charts as SVG, drawn here so that a page needs no program and no network; colours and letters are the page's."""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 560, 280
SMALL_WIDTH, SMALL_HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 10, 42
MOST_POINTS = 600  # of a line


@dataclasses.dataclass(frozen=True)
class Series:
    """points: (step, value). smoothed: drawn pale, with a running mean over it. dots: every point is marked."""

    points: Sequence[tuple[int, float]]
    smoothed: bool = False
    dots: bool = False


def chart(
    title: str,
    unit: str,
    series: Mapping[str, Series],
    *,
    rules: Mapping[str, float] | None = None,
    last: int = 0,
    from_zero: bool = False,
    small: bool = False,
) -> str:
    """A figure of series over steps, with a legend; '' where there is no point.

    rules: values of horizontal lines, by name. last: the step where the axis ends, at least. from_zero: the values'
    axis begins at 0. small: for a place beside others.
    """
    width, height = (SMALL_WIDTH, SMALL_HEIGHT) if small else (WIDTH, HEIGHT)
    drawn = {name: _thinned(each.points) for name, each in series.items() if each.points}
    values = [value for points in drawn.values() for _, value in points if math.isfinite(value)]
    if not values:
        return ""
    rules = dict(rules or {})
    # A spike of the first steps must not flatten the rest.
    high = max(sorted(values)[min(len(values) - 1, int(0.995 * len(values)))], *rules.values(), -math.inf)
    low = 0.0 if from_zero else min(*values, *rules.values(), math.inf)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 0.5
    low, high = (0.0 if from_zero else low - margin), high + margin
    end = max(last, max(step for points in drawn.values() for step, _ in points), 1)

    def x(step: float) -> float:
        return LEFT + (width - LEFT - RIGHT) * step / end

    def y(value: float) -> float:
        return TOP + (height - TOP - BOTTOM) * (high - min(max(value, low), high)) / (high - low)

    parts = []
    for tick in _ticks(low, high, 4 if small else 6):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in _ticks(0, end, 4 if small else 6):
        place = f'x="{x(tick):.1f}" y="{height - BOTTOM + 18}"'
        parts.append(f'<text class="tick" {place} text-anchor="middle">{_short(tick)}</text>')
    parts.append(
        f'<text class="tick" x="{(LEFT + width - RIGHT) / 2}" y="{height - 4}" text-anchor="middle">step</text>'
    )
    legend = []
    for name, value in rules.items():
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{width - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        legend.append(("rule", f"{name} {value:.3f}"))
    for number, (name, points) in enumerate(drawn.items()):
        each = series[name]
        if each.smoothed and len(points) > 10:
            parts.append(f'<polyline class="s{number} pale" points="{_places(points, x, y)}"/>')
            points = smooth(points)
        parts.append(f'<polyline class="s{number}" points="{_places(points, x, y)}"/>')
        if each.dots and len(points) <= 60:
            parts += [f'<circle class="s{number}" cx="{x(s):.1f}" cy="{y(v):.1f}" r="3"/>' for s, v in points]
        last_value = points[-1][1]
        shown = f"{last_value:.3f}" if 0.1 <= abs(last_value) < 100 else _short(last_value, 4)
        legend.insert(number, (f"s{number}", f"{name} {shown}"))
    for name, value in rules.items():  # above all lines, and where a curve is soon gone
        parts.append(f'<text class="tick on" x="{LEFT + 4}" y="{y(value) - 5:.1f}">{html.escape(name)}</text>')
    heading = html.escape(f"{title}, {unit}" if unit else title)
    keys = "".join(f'<span class="key {kind}">{html.escape(words)}</span>' for kind, words in legend)
    picture = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{heading}">{"".join(parts)}</svg>'
    return (
        f'<figure class="{"small" if small else "large"}"><figcaption>{heading}</figcaption>'
        f'<p class="legend">{keys}</p>{picture}</figure>'
    )


def _places(points: Sequence[tuple[int, float]], x, y) -> str:
    return " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points if math.isfinite(value))


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Not more than MOST_POINTS of them, the last one always."""
    every = -(-len(points) // MOST_POINTS)
    return [point for i, point in enumerate(points) if (len(points) - 1 - i) % every == 0]


def smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A centred mean over a thirtieth of the points, narrower at the ends."""
    half = max(1, len(points) // 60)
    found = []
    for i, (step, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        window = [value for _, value in points[i - reach : i + reach + 1]]
        found.append((step, sum(window) / len(window)))
    return found


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers in [low, high], not more than `most`."""
    span = high - low
    step = 10 ** math.floor(math.log10(span))
    step = next(step * factor for factor in (0.1, 0.2, 0.5, 1, 2, 5, 10) if span / (step * factor) <= most)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(value: float, digits: int = 3) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.{digits}g}{suffix}"
    return f"{value:.{digits}g}" if abs(value) < 1e3 else f"{value:,.0f}"
