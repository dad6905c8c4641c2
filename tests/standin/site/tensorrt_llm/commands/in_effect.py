"""A `build_config` in effect, after upstream's clipping: `_init_max_seq_len` and
`check_max_num_tokens` of 0.16, which 1.x has too."""

from trtllm_table_parser import table_of

from tensorrt_llm.version import __version__

_NOT_PLUGINS = {"log_level", "logits_dtype", "lora_ckpt_source", "profiling_verbosity"}


def engine_config(args, model_config, logger):
    max_seq_len = args.max_seq_len or model_config["max_position_embeddings"]
    max_input_len = min(args.max_input_len, max_seq_len)
    plugins = _plugin_config(args, model_config)
    max_num_tokens, opt_num_tokens = _tokens(args, plugins, max_seq_len, max_input_len, logger)
    told = {
        "max_input_len": max_input_len,
        "max_seq_len": max_seq_len,
        "opt_batch_size": 8,
        "max_batch_size": args.max_batch_size,
        "max_beam_width": args.max_beam_width,
        "max_num_tokens": max_num_tokens,
        "opt_num_tokens": opt_num_tokens,
        "max_prompt_embedding_table_size": args.max_prompt_embedding_table_size,
        "kv_cache_type": getattr(args, "kv_cache_type", "paged").upper(),
        "gather_context_logits": args.gather_context_logits or args.gather_all_token_logits,
        "gather_generation_logits": args.gather_generation_logits or args.gather_all_token_logits,
        "strongly_typed": True,
        "force_num_profiles": None,
        "profiling_verbosity": args.profiling_verbosity,
        "enable_debug_output": args.enable_debug_output,
        "max_draft_len": args.max_draft_len,
        "speculative_decoding_mode": 1,
        "use_refit": False,
        "input_timing_cache": args.input_timing_cache,
        "output_timing_cache": args.output_timing_cache,
        "lora_config": {
            "lora_dir": args.lora_dir or [],
            "lora_ckpt_source": args.lora_ckpt_source,
            "max_lora_rank": args.max_lora_rank,
            "lora_target_modules": args.lora_target_modules or [],
            "trtllm_modules_to_hf_modules": {},
        },
        "weight_sparsity": args.weight_sparsity,
        "weight_streaming": args.weight_streaming,
        "plugin_config": plugins,
        "use_strip_plan": args.strip_plan,
        "max_encoder_input_len": args.max_encoder_input_len,
        "use_fused_mlp": args.use_fused_mlp == "enable",
        "monitor_memory": args.monitor_memory,
        "use_mrope": False,
    }
    if table_of(__version__) != "1.2":
        told["auto_parallel_config"] = {"world_size": 1, "gpus_per_node": args.gpus_per_node}
    return told


def _plugin_config(args, model_config):
    told = {"dtype": model_config["dtype"]}
    for name, value in vars(args).items():
        if name in _NOT_PLUGINS:
            continue
        if value == "enable" or (value == "disable" and not name.endswith("_plugin")):
            told[name] = value == "enable"
        elif name.endswith("_plugin"):
            told[name] = None if value == "disable" else value
    return {
        **told,
        "paged_kv_cache": True,
        "tokens_per_block": args.tokens_per_block,
        "manage_weights": args.fast_build,
    }


def _tokens(args, plugins, max_seq_len, max_input_len, logger):
    most = max_seq_len * args.max_batch_size
    if not plugins["remove_input_padding"]:
        return most, args.opt_num_tokens
    tokens, best = args.max_num_tokens, args.opt_num_tokens
    if best is None and not plugins["multiple_profiles"]:
        best = min(args.max_batch_size * args.max_beam_width, tokens)
    if tokens > most:
        logger.warning(
            f"max_num_tokens ({tokens}) shouldn't be greater than max_seq_len * max_batch_size "
            f"({most}), specifying to max_seq_len * max_batch_size ({most})."
        )
        tokens = most
    if plugins["context_fmha"]:
        tokens = max(tokens, plugins["tokens_per_block"])
    else:
        tokens = max(tokens, max_input_len)
    return tokens, None if best is None else min(best, tokens)
