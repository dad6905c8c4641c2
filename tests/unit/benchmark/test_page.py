"""The report page: self-contained, complete, and honest about what it does not know."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from trtforge.benchmark.limits import DeviceRates, ModelShape
from trtforge.benchmark.metrics import METRICS, Measurement, Terms, measure
from trtforge.benchmark.page import markdown, render
from trtforge.benchmark.page_tables import NOT_ENOUGH
from trtforge.benchmark.previous import Previous
from trtforge.benchmark.report import BenchmarkReport, limit_facts
from trtforge.benchmark.sample import Sample, of_cell
from trtforge.benchmark.summary import summarise
from trtforge.store.records import parse_record

_GOLDEN = Path(__file__).parents[2] / "fixtures" / "store-v1"
_SHAPE = ModelShape(
    layers=2, hidden=64, heads=4, kv_heads=2, head_size=16, intermediate=128, vocab=512
)


def samples(repeats: int = 3, requests: int = 1, slower: float = 4.0) -> list[Sample]:
    return [
        Sample(
            who, "8/3", c, repeat, wave * c + r, wave * 2.0,
            tuple(wave * 2.0 + t * f * c**0.5 for t in (0.125, 0.25, 0.375 + repeat / 64)), 8, 3,
        )
        for who, f in (("engine", 1.0), ("eager", slower))
        for c in (1, 2, 4)
        for repeat in range(repeats)
        for wave in range(-(-requests // c))
        for r in range(c)
    ]  # fmt: skip


def report(raw: list[Sample], terms: Terms | None = None) -> BenchmarkReport:
    summary = summarise(raw, terms)
    shorts = {
        who: [measure(of_cell(raw, who, p.concurrency)) for p in summary.of(who)]
        for who in ("engine", "eager")
    }
    return BenchmarkReport(
        machine={"cpu": "A <fast> CPU", "cores": 2},
        formulas={},
        engine=tuple(shorts["engine"]),
        eager=tuple(shorts["eager"]),
        engine_load_s=1.0,
        eager_load_s=2.0,
        engine_peak_rss_bytes=10**9,
        eager_peak_rss_bytes=2 * 10**9,
        eager_versions={"torch": "2.13"},
        correctness=(),
        summary=summary.to_json(),
        limits=limit_facts(_SHAPE, DeviceRates(1e9, 1e9), summary, 1),
        load_s=(1.0, 1.25),
    )


def page(raw: list[Sample], terms: Terms | None = None, previous: Previous | None = None) -> str:
    card = [("Model", "tiny <b>"), ("Engine", "5d" * 32)]
    return render(report(raw, terms), raw, title="Tiny on CPU", card=card, previous=previous)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.needs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "br", "path", "polyline", "circle"}:
            self.open.append(tag)
        self.needs += [f"{tag} {n}" for n, _ in attrs if n in {"src", "href", "srcset", "data"}]
        assert tag not in {"script", "link", "iframe"}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.needs += [f"{tag} {n}" for n, _ in attrs if n in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        if self.open and tag in self.open:
            assert self.open.pop() == tag


class TestThePage:
    def test_it_needs_nothing_but_itself(self) -> None:
        text = page(samples())
        parser = _Links()
        parser.feed(text)
        assert parser.needs == []
        assert parser.open == []
        assert "url(" not in text
        assert "http" not in re.sub(r"</?[a-z].*?>", "", text)

    def test_it_is_for_light_and_dark_and_for_phones(self) -> None:
        text = page(samples())
        assert "prefers-color-scheme: dark" in text
        assert 'name="viewport" content="width=device-width' in text

    def test_names_of_others_are_text(self) -> None:
        text = page(samples())
        assert "tiny &lt;b&gt;" in text
        assert "A &lt;fast&gt; CPU" in text

    def test_it_tells_every_formula(self) -> None:
        text = page(samples())
        for metric in METRICS.values():
            assert f"<code>{metric.name}</code>" in text
            assert metric.formula.replace("<", "&lt;") in text

    def test_it_has_the_curve_and_both_distributions(self) -> None:
        text = page(samples())
        assert text.count("<svg ") == 3
        # Engine and eager (the limit is far away); then three concurrencies, and eager.
        assert text.count("<polyline") == 2 + 2 * 4

    def test_too_few_requests_are_said(self) -> None:
        assert f"<td>{NOT_ENOUGH}" in page(samples(requests=1))
        many = page(samples(repeats=3, requests=40))
        assert f"<td>{NOT_ENOUGH}" not in many

    def test_goodput_and_cost_are_there_when_asked_for(self) -> None:
        assert '<th scope="col">Goodput/s</th>' not in page(samples())
        asked = page(samples(), Terms(ttft_s=0.2, hourly_price=3))
        assert '<th scope="col">Goodput/s</th>' in asked
        assert '<th scope="col">Cost per 10⁶</th>' in asked

    def test_lost_requests_are_counted(self) -> None:
        raw = samples()
        late = Sample("engine", "8/3", 1, 0, 9, 0.0, (1.0, 2.0, 900.0), 8, 3, "timed-out")
        assert "0 short, 0 failed, 1 timed-out" in page([*raw, late])


class TestTheEngineBefore:
    def old(self, **differs: float) -> Measurement:
        return Measurement(**{**report(samples()).engine[0].to_json(), **differs})  # type: ignore[arg-type]

    def test_it_stands_beside_the_new_one(self) -> None:
        now = report(samples()).engine[0].output_tokens_per_s
        before = Previous("ab" * 32, "latest", (self.old(output_tokens_per_s=now / 2),))
        text = page(samples(), previous=before)
        assert "Against the engine before" in text
        assert "engine before" in text

    @pytest.mark.parametrize(
        "before",
        [
            Previous("ab" * 32, "latest", why_not="its benchmark was not kept"),
            Previous("?", "latest", why_not="it cannot be read (gone)"),
        ],
    )
    def test_why_it_does_not_is_said(self, before: Previous) -> None:
        assert f"Not comparable: {before.why_not}" in page(samples(), previous=before)

    def test_another_workload_is_not_compared(self) -> None:
        before = Previous("ab" * 32, "latest", (self.old(input_tokens=999),))
        assert "was measured with another workload" in page(samples(), previous=before)


def test_the_short_form_has_the_same_numbers() -> None:
    raw = samples()
    told = report(raw)
    text = markdown(told, summarise(raw), title="Tiny on CPU")
    assert text.startswith("# Tiny on CPU\n")
    assert "output tokens/s at concurrency 4, 4.00× eager PyTorch" in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("| ")]
    assert [len(table) for table in tables] == [2 + 6, 2 + 6 * 4]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    first = tables[0][2].strip("| ").split(" | ")
    assert first[:2] == ["1", "engine"]
    assert first[2].startswith("7.69 ± ")
    assert first[3] == "4.00"


def test_reports_of_before_have_a_page_too() -> None:
    data = (_GOLDEN / "benchmark-report.json").read_bytes()
    old = parse_record(BenchmarkReport, data, "golden")
    raw = [Sample("engine", "", 1, n, 0, 0.0, (0.1, 0.2, 0.3), 0, 3) for n in range(3)]
    text = render(old, raw, title="Old", card=[])
    assert "Throughput and latency" in text
