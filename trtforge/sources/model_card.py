"""The one thing read from a model card: its licence."""

import re

import yaml

_FRONT_MATTER = re.compile(r"\A\ufeff?---\s*?\n(.*?)\n---\s*?(?:\n|\Z)", re.DOTALL)


def licence_of_card(text: str) -> str | None:
    """Licence id from a README.md with YAML front matter; None when it has none."""
    block = _FRONT_MATTER.match(text.replace("\r\n", "\n"))
    if block is None:
        return None
    try:
        data = yaml.safe_load(block.group(1))
    except yaml.YAMLError:
        return None
    if not isinstance(data, dict):
        return None
    return licence_id(data.get("license"), data.get("license_name"))


def licence_id(licence: object, name: object = None) -> str | None:
    """The licence id; `license: other` gives way to `license_name`, a list is joined."""
    if licence == "other" and isinstance(name, str) and name:
        return name
    if isinstance(licence, list):
        return ", ".join(str(one) for one in licence) or None
    return licence if isinstance(licence, str) and licence else None
