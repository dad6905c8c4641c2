"""The flows behind entrypoints: what they take, and whether given parameters are that."""

import importlib
import inspect
import json
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from pydantic import PydanticSchemaGenerationError, PydanticUndefinedAnnotation, TypeAdapter
from pydantic import ValidationError as PydanticError

from deployments.errors import EntrypointError, ParameterError
from trtforge.errors import InputError
from trtforge.spec import BuildSpec, did_you_mean, parse_spec


@dataclass(frozen=True)
class FlowSignature:
    """What a deployment needs to know of its flow.

    Attributes:
        name: Of the flow, on the server.
        description: Of the flow.
        schema: OpenAPI schema of its parameters: the run form, and what the API checks runs
            against. Unknown parameters are refused too, which Prefect's own schemas leave open.
        annotations: Type of each parameter.
    """

    name: str
    description: str
    schema: dict[str, Any]
    annotations: dict[str, Any]

    def check(self, where: str, parameters: Mapping[str, Any]) -> None:
        """Refuse parameters that a run would fail with; missing ones are the run form's.

        Raises:
            ParameterError: With `where` and the field.
        """
        for name, value in parameters.items():
            if name not in self.annotations:
                raise ParameterError(
                    f"the flow {self.name} has no such parameter",
                    field=where,
                    value=name,
                    remedy=did_you_mean(name, sorted(self.annotations)),
                )
            self._check_value(f"{where}.{name}", self.annotations[name], value)
        # Python reads "1" as 1; the API does not.
        errors = validate(dict(parameters), self.schema, raise_on_error=False, ignore_required=True)
        if errors:
            raise ParameterError(
                errors[0].message,
                field=".".join([where, *(str(part) for part in errors[0].absolute_path)]),
                value=errors[0].instance,
                remedy="Correct it as the run form of the deployment says",
            )

    def _check_value(self, where: str, annotation: Any, value: Any) -> None:
        try:
            if annotation is BuildSpec:
                parse_spec(value)
            elif annotation is not inspect.Parameter.empty:
                TypeAdapter(annotation).validate_python(value)
        except PydanticError as error:
            first = error.errors(include_url=False)[0]
            raise ParameterError(
                first["msg"][0].lower() + first["msg"][1:],
                field=".".join([where, *(str(part) for part in first["loc"])]),
                value=first["input"],
                remedy=f"Correct it as the flow {self.name} describes it",
            ) from error
        except InputError as error:
            raise ParameterError(
                error.problem,
                field=f"{where}.{error.field}",
                value=error.value,
                remedy=error.remedy,
            ) from error
        except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
            return  # such a type is checked by the schema alone


def load(where: str, entrypoint: str) -> FlowSignature:
    """The flow that `entrypoint` (`package.module.flow`) names.

    Raises:
        EntrypointError: With `where`: it is not a module path, cannot be imported, or is no flow.
    """
    module_name, _, attribute = entrypoint.rpartition(".")
    if not module_name or ":" in entrypoint or "/" in entrypoint:
        raise _wrong(where, entrypoint, "this is not a module path", "Write package.module.flow")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(error.name or "\0"):
            raise _wrong(
                where,
                entrypoint,
                f"importing it needs the module {error.name}",
                "Install it here, as on the workers",
            ) from error
        remedy = did_you_mean(module_name, _siblings(module_name) or ["an installed module"])
        raise _wrong(where, entrypoint, "there is no such module", remedy) from error
    except Exception as error:
        problem = f"importing it fails ({type(error).__name__}: {error})"
        raise _wrong(where, entrypoint, problem, "Correct the module") from error
    found = getattr(module, attribute, None)
    if not isinstance(found, Flow):
        flows = [name for name, value in vars(module).items() if isinstance(value, Flow)]
        remedy = did_you_mean(attribute, flows or ["a function with @flow"])
        raise _wrong(where, entrypoint, "the module has no flow of that name", remedy)
    schema = parameter_schema(found.fn).model_dump_for_openapi()
    schema["additionalProperties"] = False
    signature = inspect.signature(found.fn, eval_str=True)
    return FlowSignature(
        name=found.name,
        description=found.description or "",
        # Tuples become lists, as they will be on the server.
        schema=json.loads(json.dumps(schema)),
        annotations={name: p.annotation for name, p in signature.parameters.items()},
    )


def _siblings(module_name: str) -> list[str]:
    package = module_name.rpartition(".")[0]
    try:
        path = importlib.import_module(package).__path__
    except (ImportError, AttributeError, ValueError):
        return []
    return [f"{package}.{module.name}" for module in pkgutil.iter_modules(path)]


def _wrong(where: str, entrypoint: str, problem: str, remedy: str) -> EntrypointError:
    return EntrypointError(problem, field=where, value=entrypoint, remedy=remedy)
