"""Names that `tensorrt_llm` itself has, and where the stand-in keeps them."""

NAMES = {"SamplingParams": "tensorrt_llm.llmapi"}
