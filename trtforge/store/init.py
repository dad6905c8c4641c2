"""Making a bucket ready: there, with a rule that clears up broken uploads, and really atomic."""

from dataclasses import dataclass
from typing import Any, Literal

from botocore.exceptions import ClientError

from trtforge.store.client import S3Client, bucket_missing, error_code, translated
from trtforge.store.objects import Bucket, ConditionalWritesError

RULE_ID = "trtforge-abort-incomplete-uploads"
ABORT_AFTER_DAYS = 7

Lifecycle = Literal["set", "was set", "not supported", "not allowed"]
_NO_BUCKET = {"404", "NoSuchBucket", "NotFound"}
_UNKNOWN = {"405", "501", "MethodNotAllowed", "NotImplemented", "XNotImplemented"}
_DENIED = {"403", "AccessDenied", "Forbidden"}


@dataclass(frozen=True)
class BucketState:
    """What `init_bucket` found and did.

    Attributes:
        created: Whether the bucket was made now.
        lifecycle: Of the rule for incomplete uploads. Where the service or the credentials do not
            allow one, `trtforge store gc` aborts them.
        conditional_writes: What the service does wrong with them, or empty: without them no
            engine can be published here.
    """

    bucket: str
    endpoint_url: str
    created: bool
    lifecycle: Lifecycle
    conditional_writes: str


def init_bucket(
    client: S3Client, name: str, *, create: bool = False, days: int = ABORT_AFTER_DAYS
) -> BucketState:
    """Make a bucket ready for the store; doing it again changes nothing.

    Args:
        create: Make the bucket if it is not there.
        days: Incomplete uploads older than this are aborted by the service.

    Raises:
        BucketMissingError: It is not there, and `create` is False.
    """
    endpoint = client.meta.endpoint_url
    with translated(endpoint, name):
        created = not _exists(client, name)
        if created and not create:
            raise bucket_missing(endpoint, name)
        if created:
            _create(client, name)
        lifecycle = _set_rule(client, name, days)
    finding = ""
    try:
        Bucket(client, name).probe_conditional_writes()
    except ConditionalWritesError as error:
        finding = error.problem
    return BucketState(name, endpoint, created, lifecycle, finding)


def _exists(client: S3Client, name: str) -> bool:
    try:
        client.head_bucket(Bucket=name)
    except ClientError as error:
        if error_code(error) in _NO_BUCKET:
            return False
        raise
    return True


def _create(client: S3Client, name: str) -> None:
    region = client.meta.region_name
    # AWS refuses its oldest region by name.
    where = {} if region == "us-east-1" else {"LocationConstraint": region}
    try:
        client.create_bucket(Bucket=name, **({"CreateBucketConfiguration": where} if where else {}))
    except ClientError as error:
        if error_code(error) != "BucketAlreadyOwnedByYou":  # somebody else's `init`
            raise


def _set_rule(client: S3Client, name: str, days: int) -> Lifecycle:
    try:
        current = _lifecycle(client, name)
        rules = current.pop("Rules")
        wanted = _rule(rules, days)
        if any(_covers(rule, days) for rule in rules):
            return "was set"
        others = [rule for rule in rules if rule.get("ID") != RULE_ID]
        client.put_bucket_lifecycle_configuration(
            Bucket=name, LifecycleConfiguration={"Rules": [*others, wanted]}, **current
        )
    except ClientError as error:
        code = error_code(error)
        if code in _UNKNOWN:
            return "not supported"
        if code in _DENIED:
            return "not allowed"
        raise
    return "set"


def _lifecycle(client: S3Client, name: str) -> dict[str, Any]:
    try:
        answer = client.get_bucket_lifecycle_configuration(Bucket=name)
    except ClientError as error:
        if error_code(error) in {"NoSuchLifecycleConfiguration", "404", "NotFound"}:
            return {"Rules": []}
        raise
    kept = ("Rules", "TransitionDefaultMinimumObjectSize")
    return {"Rules": []} | {key: answer[key] for key in kept if key in answer}


def _rule(rules: list[dict[str, Any]], days: int) -> dict[str, Any]:
    # AWS does not take rules of the old form, with `Prefix` beside `ID`, together with the new.
    old_form = any("Prefix" in rule for rule in rules)
    scope: dict[str, Any] = {"Prefix": ""} if old_form else {"Filter": {"Prefix": ""}}
    return {
        "ID": RULE_ID,
        "Status": "Enabled",
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": days},
        **scope,
    }


def _covers(rule: dict[str, Any], days: int) -> bool:
    """Whether a rule is ours, and as it should be."""
    after = rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation")
    return rule.get("ID") == RULE_ID and rule.get("Status") == "Enabled" and after == days
