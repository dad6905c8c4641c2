"""The numbers that `trtllm-bench` reports, under names with units. Standard library only.

1.x writes JSON (upstream's `ReportUtility.get_statistics_dict`, `bench/dataclasses/reporting.py`);
0.16 only prints them (`report_statistics`, `report_latency_statistics` of the same file).
"""

import re
from collections.abc import Mapping
from typing import Any

Headline = dict[str, "float | None"]

_JSON: "tuple[tuple[str, str, str, float], ...]" = (
    ("requests", "request_info", "num_requests", 1),
    ("avg_concurrent_requests", "request_info", "avg_num_concurrent_requests", 1),
    ("avg_input_tokens", "request_info", "avg_input_length", 1),
    ("avg_output_tokens", "request_info", "avg_output_length", 1),
    ("total_s", "performance", "total_latency_ms", 1e-3),
    ("avg_request_s", "performance", "avg_request_latency_ms", 1e-3),
    ("requests_per_s", "performance", "request_throughput_req_s", 1),
    ("output_tokens_per_s", "performance", "system_output_throughput_tok_s", 1),
    ("total_tokens_per_s", "performance", "system_total_throughput_tok_s", 1),
    ("output_tokens_per_s_per_user", "performance", "output_throughput_per_user_tok_s", 1),
    ("output_tokens_per_s_per_gpu", "performance", "output_throughput_per_gpu_tok_s", 1),
    ("avg_ttft_s", "streaming_metrics", "avg_ttft_ms", 1e-3),
    ("avg_tpot_s", "streaming_metrics", "avg_tpot_ms", 1e-3),
)
_TEXT: "tuple[tuple[str, str, float], ...]" = (
    ("requests", r"Number of requests:", 1),
    ("avg_input_tokens", r"Average Input Length \(tokens\):", 1),
    ("avg_output_tokens", r"Average Output Length \(tokens\):", 1),
    ("total_s", r"Total Latency \(ms\):", 1e-3),
    ("avg_request_s", r"Average request latency \(ms\):", 1e-3),
    ("requests_per_s", r"Request Throughput \(req/sec\):", 1),
    # What 0.16's throughput calls "Token Throughput" counts output tokens; its latency report has
    # a "Total Token Throughput" besides.
    ("output_tokens_per_s", r"(?<!Total )(?<!Generation )Token Throughput \(tokens/sec\):", 1),
    ("total_tokens_per_s", r"Total Token Throughput \(tokens/sec\):", 1),
    ("output_tokens_per_s_per_user", r"Generation Token Throughput \(tokens/sec\):", 1),
    ("avg_ttft_s", r"Average time-to-first-token \(ms\):", 1e-3),
    ("avg_tpot_s", r"Average inter-token latency \(ms\):", 1e-3),
)


def headline_of_report(report: "Mapping[str, Any]") -> Headline:
    """The headline numbers of a `--report_json` of 1.x; what it does not say is None.

    Raises:
        ValueError: It holds none of them.
    """
    return _require_some(
        {
            name: _number((report.get(part) or {}).get(key), scale)
            for name, part, key, scale in _JSON
        }
    )


def headline_of_log(log: str) -> Headline:
    """The headline numbers in what 0.16 prints.

    Raises:
        ValueError: It prints none of them.
    """
    found: Headline = {}
    for name, label, scale in _TEXT:
        match = re.search(label + r"\s*([-+\d.eE]+)", log)
        found[name] = _number(float(match[1]), scale) if match else None
    return _require_some(found)


def _require_some(headline: Headline) -> Headline:
    if not headline.get("total_s") or not headline.get("requests_per_s"):
        raise ValueError("no total latency or no request throughput in it")
    return headline


def _number(value: Any, scale: float) -> "float | None":
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value * scale
