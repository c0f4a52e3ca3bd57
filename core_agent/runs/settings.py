"""Arguments from the command line and from YAML files in rl-zoo's format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from core_agent.environments.suite import bare_id
from core_agent.validation import check

EXAMPLES = {"--set": "batch_size=16", "--env-set": "image_size=64"}
ZOO_ONLY = ("n_envs", "normalize", "frame_stack", "env_wrapper", "callback")


class _Loader(yaml.SafeLoader):
    """Reads ``1e-3`` as a number, as YAML 1.2 does; for PyYAML only ``1.0e-3`` is one."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _read_yaml(name: str, text: str, source: str) -> Any:
    """The value of a text, read as YAML.

    :param name: option that the text comes from, for the error message
    :param source: what the error message quotes
    :raises ValueError: if ``text`` is not valid YAML
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{name} must be valid YAML, got {source!r} ({why})") from error


def parse_settings(settings: list[str] | None, option: str) -> dict[str, Any]:
    """``["a=1", "b.c=x"]`` to ``{"a": 1, "b": {"c": "x"}}``, values read as YAML.

    :param option: name of the option that they come from
    :raises ValueError: for an entry without ``=``, a value that is not valid YAML, or a dotted key
        such as ``b.c`` if ``b`` is not a dict
    """
    result: dict[str, Any] = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ValueError(
                f"{option} must have the form key=value, got {setting!r}; for example "
                f"{option} {EXAMPLES[option]}"
            )
        *parents, name = key.split(".")
        target = result
        for parent in parents:
            target = target.setdefault(parent, {})
            check(
                isinstance(target, dict),
                option,
                "have a dict before each dot",
                setting,
                f"{parent} is {target!r}; give one of the two",
            )
        target[name] = _read_yaml(option, value, setting)
    return result


def read_config(path: Path | None, env_id: str) -> dict[str, Any]:
    """Constructor arguments, and ``n_timesteps``, from a YAML file in rl-zoo's format.

    :param path: the file; ``None``: no arguments
    :param env_id: environment whose entry is read
    :raises ValueError: if there is no such file or entry, the file is not valid YAML, or the entry
        has settings that only rl-zoo can apply
    """
    if path is None:
        return {}
    check(path.is_file(), "--config", "be a YAML file", str(path))
    entries = _read_yaml("--config", path.read_text(), str(path)) or {}
    env_id = bare_id(env_id)
    known = sorted(entries) if isinstance(entries, dict) else entries
    check(
        isinstance(entries, dict) and isinstance(entries.get(env_id), dict),
        "--config",
        f"have an entry for {env_id}",
        str(path),
        f"it has {known}",
    )
    arguments = {key: value for key, value in entries[env_id].items() if key != "policy"}
    needs_zoo = sorted(set(arguments) & set(ZOO_ONLY))
    check(
        not needs_zoo,
        "--config",
        "hold constructor arguments and n_timesteps",
        needs_zoo,
        "python -m core_agent.zoo takes rl-zoo's other settings",
    )
    if isinstance(arguments.get("train_freq"), list):
        arguments["train_freq"] = tuple(arguments["train_freq"])
    return arguments
