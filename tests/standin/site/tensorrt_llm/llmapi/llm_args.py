"""`TrtLlmArgs`: the fields that `LLM` of the TensorRT backend takes."""

_NAMES = ("max_batch_size", "max_num_tokens", "max_seq_len", "max_beam_width", "kv_cache_config")


class TrtLlmArgs:
    model_fields = dict.fromkeys((*_NAMES, "gather_generation_logits"))
