"""Charts: SVG that any browser reads, with every point where it belongs."""

import base64
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtforge.benchmark.metrics import Measurement
from trtforge.card_plots import throughput, token_distribution, token_times, with_plots
from trtforge.charts import Chart, Series, image, svg

SVG = "{http://www.w3.org/2000/svg}"
numbers = st.floats(min_value=0, max_value=1e7, allow_subnormal=False)
finite_or_not = st.one_of(numbers, st.sampled_from([math.nan, math.inf, -math.inf]))
points = st.lists(st.tuples(finite_or_not, finite_or_not), max_size=20).map(
    lambda found: sorted(found, key=lambda p: (not math.isfinite(p[0]), p[0]))
)


def chart(*series: Series, x_ticks: tuple[float, ...] = (), title: str = "Speed") -> Chart:
    return Chart(title=title, x_label="x", series=series, x_ticks=x_ticks)


def texts(document: str) -> list[str]:
    return [found.text or "" for found in ElementTree.fromstring(document).iter(f"{SVG}text")]


@settings(deadline=None)
@given(st.lists(st.builds(Series, st.text("ab<&\"'>", max_size=5), points), max_size=4))
def test_any_numbers_and_names_give_well_formed_svg_within_its_frame(series: list[Series]) -> None:
    root = ElementTree.fromstring(svg(chart(*series)))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for line in root.iter(f"{SVG}polyline"):
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


@settings(deadline=None)
@given(st.lists(numbers.filter(lambda n: n > 1e-3), min_size=1, max_size=8))
def test_higher_values_are_higher_up(values: list[float]) -> None:
    line = Series("a", [(float(n), value) for n, value in enumerate(values, 1)])
    root = ElementTree.fromstring(svg(chart(line)))
    [drawn] = [polyline.attrib["points"] for polyline in root.iter(f"{SVG}polyline")]
    heights = [-float(pair.split(",")[1]) for pair in drawn.split()]
    in_order = [height for _, height in sorted(zip(values, heights, strict=True))]
    assert in_order == sorted(heights)


def test_a_few_doubled_concurrencies_are_evenly_spaced_with_their_values() -> None:
    document = svg(chart(Series("engine", [(1, 80.2), (2, 150), (4, 260)]), x_ticks=(1, 2, 4)))
    places = [float(x) for x in re.findall(r'circle cx="([\d.]+)"', document)]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)
    assert {"80.2", "150", "260", "engine", "1", "2", "4"} <= set(texts(document))


def test_one_concurrency_is_a_point_in_the_middle() -> None:
    document = svg(chart(Series("engine", [(8, 80.0)]), x_ticks=(8,)))
    assert re.findall(r'circle cx="([\d.]+)"', document) == ["340.0"]


def test_a_chart_reads_on_a_dark_page_as_on_a_light_one() -> None:
    document = svg(chart(Series("engine", [(1, 2)])))
    ground = next(ElementTree.fromstring(document).iter(f"{SVG}rect"))
    assert ground.attrib["fill"] == "#ffffff"
    for colour in set(re.findall(r'<text[^>]* fill="#(\w{6})"', document)):
        assert _contrast_with_white(colour) > 4.5  # WCAG AA


def test_the_image_is_one_line_of_markdown() -> None:
    line = image(chart(Series("a", [(1, 2)]), title="a [b]\nc"))
    match = re.fullmatch(r"!\[a \(b\) c\]\(data:image/svg\+xml;base64,([\w+/=]+)\)", line)
    assert match
    assert base64.b64decode(match[1]).startswith(b"<svg")


def measurement(concurrency: int, per_s: float) -> dict[str, object]:
    return Measurement(concurrency, 8, 8, 1, 0.1, 0.01, per_s, per_s, per_s).to_json()


BENCHMARK = {
    "engine": [measurement(4, 160.0), measurement(1, 80.0)],
    "eager": [measurement(4, 90.0), measurement(1, 40.0)],
}


def test_throughput_is_of_both_in_order_of_concurrency() -> None:
    drawn = throughput(BENCHMARK)
    assert [(line.name, list(line.points)) for line in drawn.series] == [
        ("engine", [(1, 80.0), (4, 160.0)]),
        ("eager", [(1, 40.0), (4, 90.0)]),
    ]
    assert list(drawn.x_ticks) == [1, 4]


def test_the_times_of_tokens_are_those_between_measured_tokens() -> None:
    lines = [
        '{"who": "engine", "id": "prompt-0", "step_s": [[0.1, 0.9]]}',
        '{"who": "engine", "id": "concurrency-1", "step_s": [[0.5, 0.75, 1.25], [1, 1.5]]}',
        '{"who": "eager", "id": "concurrency-1", "step_s": [[1, 3]]}',
    ]
    assert token_times(lines) == {"engine": [0.25, 0.5, 0.5], "eager": [2]}


@settings(deadline=None)
@given(st.lists(st.floats(min_value=1e-6, max_value=100), min_size=1, max_size=300))
def test_the_distribution_rises_to_its_last_percent(seconds: list[float]) -> None:
    [line] = token_distribution({"engine": seconds}).series
    times = [x for x, _ in line.points]
    assert times == sorted(times)
    assert times[0] == pytest.approx(1e3 * min(seconds))
    assert times[-1] <= 1e3 * max(seconds) * (1 + 1e-12)


def test_plots_go_below_the_benchmark_heading_and_change_nothing_else() -> None:
    card = "# Engine\n\n## Benchmark\n\nMedian.\n\n## How\n"
    plotted = with_plots(card, BENCHMARK, {"engine": [0.1, 0.2], "eager": [0.3]})
    lines = plotted.splitlines()
    pictures = [line for line in lines if line.startswith("![")]
    assert len(pictures) == 2
    assert lines[lines.index("## Benchmark") + 2] == pictures[0]
    rest = "\n".join(line for line in lines if line not in pictures)
    assert re.sub(r"\n{2,}", "\n\n", rest) == card.strip()
    assert with_plots(card, None) == card


def _contrast_with_white(colour: str) -> float:
    def linear(part: str) -> float:
        value = int(part, 16) / 255
        return value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(colour[n : n + 2]) for n in (0, 2, 4))
    return 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)
