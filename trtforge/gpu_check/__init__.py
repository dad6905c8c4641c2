"""Hold what trtforge believes of TensorRT-LLM against the real thing, on a GPU: `make gpu-check`.

The backend was written from upstream's sources, on machines without a GPU. One run of this on a
machine with one says which of its beliefs are true, in a report to paste into an issue:
`examination.examine` makes it, `report.render` writes it down. Nothing is imported here: a driver
lies below.
"""
