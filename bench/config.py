"""The typed configuration: a protocol says what is run, a run is one training of one model.

These models are the only source of keys and defaults: `python -m bench config` writes from them
config/schema.json (which Snakemake validates) and config/reference.yaml (every key, explained).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
from typing_extensions import TypedDict

from bench.data import DigitData, MoleculeData, StanfordData, Strict, SyntheticRoomsData
from bench.errors import ConfigError, unknown
from bench.registry import MODELS, TASKS, models_of, settings_of

Data = DigitData | MoleculeData | StanfordData | SyntheticRoomsData
"""Which one it is, a run's task says (`TasksConfig`)."""

CONFIG = Path(__file__).resolve().parent.parent / "config"
M = TypeVar("M", bound=BaseModel)


class TrainConfig(Strict):
    """How a network is trained."""

    epochs: int = Field(10, ge=1, description="passes over the training set")
    batch_size: int = Field(32, ge=2, description="samples of one optimiser step")
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adamw", description="AdamW decouples the decay; SGD has momentum 0.9"
    )
    learning_rate: float = Field(5e-3, gt=0, description="its highest value")
    weight_decay: float = Field(0.0, ge=0, description="of all parameters")
    schedule: Literal["constant", "step", "one_cycle"] = Field(
        "one_cycle",
        description="constant; times step_factor every step_epochs; or linear warm-up over the "
        "first fifth of the steps, then a cosine to 0",
    )
    step_epochs: int = Field(10, ge=1, description="schedule step: epochs between two decays")
    step_factor: float = Field(0.5, gt=0, le=1, description="schedule step: factor of a decay")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="of the cross entropy; qm7 has none"
    )
    amp: bool = Field(
        False,
        description="train in mixed precision (bfloat16 autocast) where the hardware gains by it; "
        "validation and test are in float32",
    )


TrainChanges: type[BaseModel] = create_model(  # type: ignore[call-overload]
    "TrainChanges",
    __base__=Strict,
    __doc__="Some keys of TrainConfig, to replace what a model's recipe says.",
    **{
        name: (key.annotation | None, Field(None, description=key.description))  # type: ignore[operator]
        for name, key in TrainConfig.model_fields.items()
    },
)


class ModelConfig(Strict):
    """What one model does differently from the rest of its task."""

    network: str | None = Field(
        None,
        description="registered model that this row of the table is a variant of; null: the one of "
        "its name",
    )
    train: TrainChanges = Field(default_factory=TrainChanges, description="keys to replace")
    n_train: int | None = Field(None, description="training samples; null: as data says")
    options: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the network's constructor"
    )


class TaskConfig(Strict):
    """One table: its data, its models, its training."""

    models: list[str] | None = Field(
        None, min_length=1, description="rows of the table; null: all registered models"
    )
    settings: list[str] | None = Field(
        None,
        min_length=1,
        description="training settings, of each model those that it has; null: all of them",
    )
    data: Data = Field(description="what a run sees")
    train: TrainChanges = Field(
        default_factory=TrainChanges,
        description="for every model, in place of its own recipe; null: as the recipe says",
    )
    model: dict[str, ModelConfig] = Field(
        default_factory=dict, description="by row: what it does differently"
    )


class DigitsConfig(TaskConfig):
    """Table 1."""

    data: DigitData = Field(default_factory=DigitData, description="the signals")


class MoleculesConfig(TaskConfig):
    """Table 3."""

    data: MoleculeData = Field(default_factory=MoleculeData, description="molecules, potentials")


class StanfordConfig(TaskConfig):
    """Table 2."""

    data: StanfordData = Field(default_factory=StanfordData, description="panoramas")


class SyntheticRoomsConfig(TaskConfig):
    """Table 2s: the same networks on SyntheticRooms."""

    data: SyntheticRoomsData = Field(default_factory=SyntheticRoomsData, description="panoramas")


class TasksConfig(TypedDict, total=False):
    """The tasks of a protocol by name; only those that are there are run."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    spherical_mnist: DigitsConfig
    qm7: MoleculesConfig
    stanford_2d3ds: StanfordConfig
    synthetic_rooms: SyntheticRoomsConfig


class ProtocolConfig(Strict):
    """All that `snakemake all` makes."""

    protocol: str = Field("default", pattern=r"^[a-z][a-z0-9_]*$", description="name, in paths")
    notice: str = Field("", description="printed above its tables")
    beside: str | None = Field(
        None,
        description="protocol in config/ on the other edition of Spherical MNIST, whose results "
        "stand beside these in Table 1",
    )
    seeds: int = Field(2, ge=1, description="runs of each model and setting")
    base_seed: int = Field(0, ge=0, description="all other seeds are derived from it")
    tracking: bool = Field(True, description="mirror runs in MLflow")
    require_data: bool = Field(
        False,
        description="fail, after all tables are made, if a data set could not be had; false: its "
        "table says so",
    )
    tasks: TasksConfig = Field(
        default_factory=lambda: TasksConfig(
            spherical_mnist=DigitsConfig(),
            qm7=MoleculesConfig(),
            synthetic_rooms=SyntheticRoomsConfig(),
            stanford_2d3ds=StanfordConfig(),
        ),
        description="by task name",
    )


class RunConfig(Strict):
    """One training, fully resolved; its hash identifies it."""

    protocol: str
    task: str
    model: str
    network: str
    setting: str
    seed: int
    base_seed: int
    data: Data
    train: TrainConfig
    options: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _data_of_its_task(cls, tree: Any) -> Any:
        """Keys alone may be those of several classes of data."""
        if isinstance(tree, dict) and isinstance(tree.get("data"), dict):
            config = get_type_hints(TasksConfig).get(tree.get("task", ""))
            if config is not None:
                kind = config.model_fields["data"].annotation
                return tree | {"data": kind.model_validate(tree["data"])}
        return tree

    @property
    def key(self) -> str:
        """<protocol>/<task>/<model>/<setting>/seed<k>: its folder under results/runs."""
        return f"{self.protocol}/{self.task}/{self.model}/{self.setting}/seed{self.seed}"

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON form."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def canonical_json(self) -> str:
        """What the run is: whether terms of use were accepted for its data is not part of it."""
        return json.dumps(self.model_dump(exclude={"data": {"accept_terms"}}), sort_keys=True)


def parse_protocol(tree: dict[str, Any]) -> ProtocolConfig:
    """Validate a protocol and every run it plans.

    Raises:
        ConfigError: one line, with the nearest valid name where a name is unknown.
    """
    protocol = validated(ProtocolConfig, tree)
    if protocol.beside is not None:
        protocol_file(protocol.beside)
    for task, config in _tasks(protocol).items():
        for kind, names in (("models", config.models or []), ("settings", config.settings or [])):
            for name in names:
                if names.count(name) > 1:
                    raise ConfigError(f"{kind} of task {task}: {name!r} is listed twice")
        for model in [*(config.models or []), *config.model]:
            network = _network(config, model)
            if network not in models_of(task):
                raise unknown(f"model of task {task}", network, models_of(task))
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", model):
                raise ConfigError(
                    f"row {model!r} of task {task}: a name is letters, digits, dots, + and -, "
                    "since files are named after it"
                )
        rows = config.models or models_of(task)
        for row, special in config.model.items():
            if special.network is not None and row not in rows:
                raise ConfigError(
                    f"row {row!r} of task {task} would not be run: list it in `models`, with the "
                    "other rows of the table"
                )
        own = [s for row in rows for s in settings_of(task, _network(config, row))]
        valid = dict.fromkeys([*TASKS[task].settings, *own])
        for setting in config.settings or []:
            if setting not in valid:
                raise unknown(f"setting of task {task}", setting, valid)
    planned_runs(protocol)
    return protocol


def protocol_file(name: str, whole: bool = False) -> Path | None:
    """The file in config/ of a protocol; None if there is none and the protocol is `whole` already.

    Raises:
        ConfigError: if there is no such protocol, with the nearest name.
    """
    path = CONFIG / f"{name}.yaml"
    if path.is_file():
        return path
    if whole:
        return None
    names = sorted(p.stem for p in CONFIG.glob("*.yaml") if p.stem != "reference")
    raise unknown("protocol", name, names)


def load_protocol(path: Path) -> ProtocolConfig:
    """Read a protocol from a YAML file.

    Raises:
        ConfigError: if it is not valid.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} does not hold a protocol: it has no keys")
    protocol = parse_protocol(tree)
    if path.resolve().parent == CONFIG and protocol.protocol != path.stem:
        raise ConfigError(
            f"{path} is protocol {path.stem}, and says `protocol: {protocol.protocol}`: change one"
        )
    return protocol


def shipped(name: str) -> ProtocolConfig | None:
    """The protocol of that name in config/, if there is one."""
    path = CONFIG / f"{name}.yaml"
    return load_protocol(path) if path.is_file() else None


def planned_runs(protocol: ProtocolConfig) -> list[RunConfig]:
    """Every run of a protocol: models x training settings x seeds, seeds outermost, so that an
    interrupted study has whole seeds."""
    runs = []
    for seed in range(protocol.seeds):
        for task, config in _tasks(protocol).items():
            for model in config.models or models_of(task):
                for setting in settings_of(task, _network(config, model)):
                    if setting in (config.settings or [setting]):
                        runs.append(_resolve(protocol, task, model, setting, seed))
    return runs


def _resolve(protocol: ProtocolConfig, task: str, model: str, setting: str, seed: int) -> RunConfig:
    """Defaults, then the model's published recipe, then the protocol's wishes, then those for
    this model alone."""
    config = _tasks(protocol)[task]
    network = _network(config, model)
    entry = MODELS[task, network]
    special = config.model.get(model, ModelConfig())
    parameters = inspect.signature(entry.build).parameters
    for name in special.options:
        if name not in parameters or name == "level":
            raise unknown(f"option of model {model}", name, [p for p in parameters if p != "level"])
    changes = {**entry.recipe, **_given(config.train), **_given(special.train)}
    train = validated(TrainConfig, changes, f"train of {model}")
    if task == "qm7" and train.label_smoothing:
        raise ConfigError(f"train of {model}.label_smoothing: qm7 has no labels, leave it at 0")
    return RunConfig(
        protocol=protocol.protocol,
        task=task,
        model=model,
        network=network,
        setting=setting,
        seed=seed,
        base_seed=protocol.base_seed,
        data=_data(config, special, model),
        train=train,
        options=special.options,
    )


def _data(config: TaskConfig, special: ModelConfig, model: str) -> Data:
    """The task's, with the model's own number of training samples if it has one."""
    if special.n_train is None:
        return config.data
    changed = config.data.model_dump() | {"n_train": special.n_train}
    return validated(type(config.data), changed, f"data of {model}")


def _tasks(protocol: ProtocolConfig) -> dict[str, TaskConfig]:
    return cast(dict[str, TaskConfig], protocol.tasks)


def _network(config: TaskConfig, model: str) -> str:
    """The registered model behind a row of a table."""
    return config.model.get(model, ModelConfig()).network or model


def _given(changes: BaseModel) -> dict[str, Any]:
    return changes.model_dump(exclude_none=True)


def validated(model: type[M], tree: Any, where: str = "configuration") -> M:
    """`model.model_validate`, with its first error as one ConfigError line."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise _one_line(model, error, where) from error


def _one_line(model: type[BaseModel], error: ValidationError, where: str) -> ConfigError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        keys = _keys_at(model.model_json_schema(), path[:-1])
        if path[:-1] == ["tasks"]:
            return unknown("task", path[-1], keys)
        return unknown(f"key in {'.'.join([where, *path[:-1]])}", path[-1], keys)
    got = "" if first["type"] == "missing" else f", got {first['input']!r}"
    return ConfigError(f"{'.'.join([where, *path])}: {first['msg'].lower()}{got}")


def _keys_at(schema: dict[str, Any], path: list[str]) -> list[str]:
    """The keys that a JSON schema admits below a path."""
    node = schema
    for part in [*path, None]:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        if part is not None:
            node = node.get("properties", {}).get(part) or node.get("additionalProperties", {})
    return list(node.get("properties", {}))


def json_schema() -> str:
    """The JSON schema of a protocol, for Snakemake and editors."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(dialect | ProtocolConfig.model_json_schema(), indent=2) + "\n"


def reference_yaml() -> str:
    """Every key with its default and its meaning, as commented YAML."""
    lines = ["# Every key of a protocol with its default. Made by `python -m bench config`."]
    lines += _yaml_lines(ProtocolConfig, 0)
    lines += ["# The keys of `train` where neither a recipe nor the protocol says otherwise:"]
    lines += [f"# {line}" for line in _yaml_lines(TrainConfig, 0)]
    return "\n".join(lines) + "\n"


def _yaml_lines(model: type[BaseModel], depth: int) -> list[str]:
    pad, lines = "  " * depth, []
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        lines.append(f"{pad}# {field.description}")
        if isinstance(default, BaseModel):
            lines += [f"{pad}{name}:", *_yaml_lines(type(default), depth + 1)]
        elif isinstance(default, dict) and default:
            lines += [f"{pad}{name}:"]
            for key, value in default.items():
                lines += [f"{pad}  {key}:", *_yaml_lines(type(value), depth + 2)]
        else:
            lines.append(f"{pad}{name}: {json.dumps(default)}")
    return lines
