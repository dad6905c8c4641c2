"""The hardware limit, on numbers that can be checked by hand."""

from typing import Any

import pytest

from trtforge.benchmark.limits import DeviceRates, ModelShape, limit

# SmolLM2-135M: tied embeddings, grouped queries.
SMOL: dict[str, Any] = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
}


def smol() -> ModelShape:
    shape = ModelShape.from_config(SMOL)
    assert shape is not None
    return shape


class TestShape:
    def test_the_weights_are_those_of_the_model(self) -> None:
        # 134,515,008 parameters, of which 61 norms of 576.
        shape = smol()
        assert shape.layer_weights + shape.head_weights == 134_515_008 - 61 * 576

    def test_keys_and_values_of_a_token(self) -> None:
        assert smol().cache_bytes(1) == 30 * 2 * 3 * 64 * 2

    @pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "vocab_size"])
    def test_a_config_that_lacks_a_number_has_no_limit(self, missing: str) -> None:
        assert ModelShape.from_config({k: v for k, v in SMOL.items() if k != missing}) is None

    def test_without_grouped_queries_every_head_has_keys(self) -> None:
        plain = ModelShape.from_config({**SMOL, "num_key_value_heads": None})
        assert plain is not None
        assert plain.kv_heads == 9


class TestLimit:
    def test_one_request_is_bound_by_the_weights_that_must_be_read(self) -> None:
        shape = smol()
        rates = DeviceRates(copy_bytes_per_s=10e9, matmul_flops_per_s=1e15)
        found = limit(shape, rates, concurrency=1, input_tokens=128, output_tokens=32)
        moved = shape.weight_bytes + shape.cache_bytes(144)
        assert found.itl_s == moved / 10e9
        assert found.output_tokens_per_s == 32 / (found.ttft_s + 31 * found.itl_s)

    def test_a_long_prompt_is_bound_by_the_products(self) -> None:
        shape = smol()
        rates = DeviceRates(copy_bytes_per_s=1e15, matmul_flops_per_s=1e12)
        found = limit(shape, rates, concurrency=2, input_tokens=1000, output_tokens=2)
        assert found.ttft_s == 2 * shape.prefill_flops(1000) / 1e12
        assert shape.prefill_flops(1000) > 2 * shape.layer_weights * 1000

    def test_requests_share_the_reading_of_the_weights(self) -> None:
        rates = DeviceRates(10e9, 1e15)
        one, eight = (
            limit(smol(), rates, concurrency=c, input_tokens=8, output_tokens=8) for c in (1, 8)
        )
        assert 7 < eight.output_tokens_per_s / one.output_tokens_per_s < 8

    def test_two_ranks_have_twice_the_rates(self) -> None:
        asked = {"concurrency": 1, "input_tokens": 8, "output_tokens": 8}
        one = limit(smol(), DeviceRates(2e9, 2e12), **asked)  # type: ignore[arg-type]
        two = limit(smol(), DeviceRates(1e9, 1e12), ranks=2, **asked)  # type: ignore[arg-type]
        assert one == two
