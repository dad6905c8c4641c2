"""BuildSpec: what a user asks for. It is the form in the Prefect UI and the file of the CLI.

Unknown keys are errors with "did you mean". The models can be validated by anyone (Prefect, the
API); `parse_spec` and `load_spec` give the errors of `trtforge.errors`, one line each.
"""

from trtforge.spec.benchmark import WORKLOADS, BenchmarkSpec, SloSpec, Workload, WorkloadName
from trtforge.spec.build import AliasName, BuildSpec, PublishSpec
from trtforge.spec.engine import EngineSpec, OptionValue, TimingCacheMode
from trtforge.spec.gates import GatesSpec, PerformanceGateSpec, PerformanceMetric, PromptSet
from trtforge.spec.model import CheckpointSpec, ModelName, ModelSpec
from trtforge.spec.part import did_you_mean
from trtforge.spec.reading import SpecError, SpecFileError, load_spec, parse_spec

__all__ = [
    "WORKLOADS",
    "AliasName",
    "BenchmarkSpec",
    "BuildSpec",
    "CheckpointSpec",
    "EngineSpec",
    "GatesSpec",
    "ModelName",
    "ModelSpec",
    "OptionValue",
    "PerformanceGateSpec",
    "PerformanceMetric",
    "PromptSet",
    "PublishSpec",
    "SloSpec",
    "SpecError",
    "SpecFileError",
    "TimingCacheMode",
    "Workload",
    "WorkloadName",
    "did_you_mean",
    "load_spec",
    "parse_spec",
]
