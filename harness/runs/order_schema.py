"""The JSON schema of a whole order file: its sections, and the options of every plug-in.

docs/generate.py writes it to harness/order.schema.json, where editors and ``--explain``
read it without PyTorch. What it allows may still be refused: it knows types, names and bounds, and
neither data nor what goes together.
"""

from collections.abc import Iterable
from typing import Any

from harness.base.files import ROOT
from harness.base.registry import plugin_names
from harness.base.settings import DRAFT, json_schema
from harness.evaluation.endpoint import EndpointConfig
from harness.evaluation.settings import KL, Drift, Evaluate, PassAtK
from harness.evaluation.suite import RetentionTask
from harness.learning.method import get_method
from harness.learning.parametrisation import get_parametrisation
from harness.learning.part import get_part
from harness.runs.presets import preset_files, read_preset
from harness.runs.schema import (
    Budget,
    ChatTemplate,
    Checkpoints,
    ModelSpec,
    Power,
    Schema,
    SkillSpec,
)
from harness.sampling.settings import Rollout, VLLMConfig

Json = dict[str, Any]

FILE = ROOT / "harness" / "order.schema.json"
METHODS = ROOT / "methods"
SECTIONS = {
    "chat_template": ChatTemplate,
    "budget": Budget,
    "rollout": Rollout,
    "vllm": VLLMConfig,
    "judge": EndpointConfig,
    "power": Power,
    "checkpoints": Checkpoints,
}
NULL: Json = {"type": "null"}
TEXT: Json = {"type": "string"}
OWN_FILE: Json = {"$ref": "#/$defs/own_file"}


def order_schema() -> Json:
    """The schema (draft 2020-12) of an order file."""
    schema = json_schema(Schema)
    keys = schema["properties"]
    _put(keys, "model", {"anyOf": [TEXT, _of(ModelSpec)]})
    for name, config in SECTIONS.items():
        _put(keys, name, _of(config))
    evaluate = _of(Evaluate)
    for name, config in {"pass_at_k": PassAtK, "kl": KL, "drift": Drift}.items():
        _put(evaluate["properties"], name, {"anyOf": [_of(config), NULL]})
    _put(keys, "evaluate", evaluate)
    _put(keys, "skills", _list_of({"anyOf": [TEXT, _of(SkillSpec)]}))
    task = {**_of(RetentionTask), "required": ["task"]}  # lm-eval knows the metric of many
    tasks = _list_of({"anyOf": [TEXT, task]})
    _put(keys, "retention", {"anyOf": [TEXT, tasks, NULL]})
    values = {"type": "object", "additionalProperties": {"type": "array"}}
    _put(keys, "grid", {"type": "object", "additionalProperties": values})
    methods = plugin_names(METHODS)
    labels = {name: {"anyOf": [_ref("method", name), _ref("any_method"), NULL]} for name in methods}
    others = {"anyOf": [_ref("any_method"), NULL]}
    labelled = {"type": "object", "properties": labels, "additionalProperties": others}
    _put(keys, "methods", labelled)
    return {**schema, "title": "task-order file", "$schema": DRAFT, "$defs": _definitions(methods)}


def _put(keys: Json, name: str, schema: Json) -> None:
    """Let a key have this schema, with its own description and default."""
    kept = {word: keys[name][word] for word in ("description", "default") if word in keys[name]}
    keys[name] = {**schema, **kept}


def _of(config: type) -> Json:
    return {key: value for key, value in json_schema(config).items() if key != "$schema"}


def _list_of(entry: Json) -> Json:
    return {"type": "array", "items": entry}


def _ref(*path: str) -> Json:
    return {"$ref": f"#/$defs/{'.'.join(path)}"}


def _definitions(methods: Iterable[str]) -> Json:
    """What methods, parts and parametrisations take, by KIND.NAME, and what joins a method."""
    presets: dict[str, list[str]] = {}
    for preset in preset_files():
        presets.setdefault(read_preset(preset)["method"], []).append(preset)
    made: Json = {f"method.{name}": _method(name, presets.get(name, [])) for name in methods}
    named = {"anyOf": [{"required": ["method"]}, {"required": ["preset"]}]}
    made["any_method"] = {"anyOf": [*({**_ref("method", m), **named} for m in methods), OWN_FILE]}
    parts = plugin_names(METHODS / "parts")
    made |= {f"part.{name}": _of(get_part(name, None, "schema").Config) for name in parts}
    made["parts"] = {"type": "object", **_plugged("part", parts)}
    trained = plugin_names(METHODS / "parameters")
    for name in trained:
        config = get_parametrisation(name, None, "schema").Config
        made[f"parametrisation.{name}"] = _of(config)
    made["parameters"] = {
        "anyOf": [
            {"type": "string", "enum": trained},
            {"type": "object", "maxProperties": 1, **_plugged("parametrisation", trained)},
            NULL,
        ]
    }
    file = {**TEXT, "description": "a Python file of your own, with one such class"}
    made["own_file"] = {"type": "object", "properties": {"file": file}, "required": ["file"]}
    return made


def _method(name: str, presets: list[str]) -> Json:
    """The entry of a label that is the project's method ``name``."""
    schema = _of(get_method(name, None, "schema").Config)
    schema["properties"] |= {
        "method": {
            "enum": [name],
            "description": "the method, where the label is another name",
        },
        "with": {
            "anyOf": [_ref("parts"), NULL],
            "description": "parts that join the method, by name",
        },
        "parameters": {
            **_ref("parameters"),
            "description": "what the method trains, with its options; all weights if left out",
        },
    }
    if presets:
        about = {"enum": presets, "description": "settings of a paper, below those named here"}
        schema["properties"]["preset"] = about
    return schema


def _plugged(kind: str, names: list[str]) -> Json:
    """A mapping of plug-ins by name to their options, None for the defaults, or of own files."""
    own = {name: {"anyOf": [_ref(kind, name), OWN_FILE, NULL]} for name in names}
    return {"properties": own, "additionalProperties": OWN_FILE}
