"""Configuration: what is refused and how, what is generated, what a hash depends on."""

import json
from pathlib import Path

import pytest
import yaml

from bench import config
from bench.config import load_protocol, parse_protocol, planned_runs, protocol_file
from bench.data import SyntheticRoomsData
from bench.errors import ConfigError
from bench.registry import FOLDS
from tests.conftest import tiny_protocol, tiny_run

CONFIG = Path(__file__).parents[2] / "config"
PROTOCOLS = ("test", "default", "workstation", "paper")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_shipped_protocols_are_valid_and_plan_every_model(name):
    protocol = load_protocol(CONFIG / f"{name}.yaml")
    assert protocol.protocol == name
    every = planned_runs(protocol)
    runs = [r for r in every if r.task == "spherical_mnist"]
    registered = set(config.models_of("spherical_mnist"))
    networks = {r.network for r in runs}  # `paper` lists those of the paper by name
    assert networks <= registered if name == "paper" else networks == registered
    variants = {r.model for r in runs if r.model != r.network}
    assert len(variants) == (3 if name == "paper" else 0)
    assert {r.setting for r in runs} == {"N", "R", "Omni"}
    assert {r.model for r in runs if r.setting == "Omni"} == {"SphereNet"}
    assert len({r.key for r in every}) == len(every) == len({r.hash for r in every})


def test_protocols_keep_their_promises():
    sizes = {name: load_protocol(CONFIG / f"{name}.yaml") for name in PROTOCOLS}
    data = {name: p.tasks["spherical_mnist"].data for name, p in sizes.items()}
    assert data["paper"].n_train is None and data["paper"].level == 4 and sizes["paper"].seeds == 5
    assert data["workstation"].n_train == 12_000 and data["workstation"].level == 4
    assert data["workstation"].n_test is None and sizes["workstation"].seeds == 3
    assert sizes["default"].seeds == 2 and "NOT THE PAPER" in sizes["default"].notice
    assert data["test"].source == "synthetic" and "not MNIST" in sizes["test"].notice


def test_protocols_train_on_molecules_too():
    tasks = {n: load_protocol(CONFIG / f"{n}.yaml").tasks["qm7"] for n in PROTOCOLS}
    for name, task in tasks.items():
        runs = [r for r in planned_runs(load_protocol(CONFIG / f"{name}.yaml")) if r.task == "qm7"]
        assert {r.model for r in runs} == set(config.models_of("qm7"))
        assert task.data.source == ("synthetic" if name == "test" else "qm7")
        folds = {r.setting for r in runs}
        assert folds == ({"fold0"} if name in ("test", "default") else set(FOLDS))
    assert all(r.data.n_train is None for r in runs), "the paper's protocol takes all molecules"


def test_learning_curve_changes_nothing_but_the_number_of_molecules():
    curve = planned_runs(load_protocol(CONFIG / "learning_curve.yaml"))
    whole = planned_runs(load_protocol(CONFIG / "workstation.yaml"))
    whole = {r.network: r for r in whole if (r.task, r.setting, r.seed) == ("qm7", "fold0", 0)}
    assert {(r.network, r.data.n_train) for r in curve} == {
        (network, n) for network in ("PDO-eS2CNN", "MLP-random-CM") for n in (500, 1000, 2000)
    }
    for run in curve:
        other = whole[run.network]
        assert (run.train, run.options, run.setting) == (other.train, other.options, other.setting)
        assert run.data == other.data.model_copy(update={"n_train": run.data.n_train})


def test_a_model_may_have_its_own_number_of_training_samples():
    tree = tiny_protocol()
    tree["tasks"]["spherical_mnist"]["model"] = {"UGSCNN": {"n_train": 60}}
    sizes = {r.model: r.data.n_train for r in planned_runs(parse_protocol(tree))}
    assert sizes.pop("UGSCNN") == 60 and 60 not in sizes.values()
    tree["tasks"]["spherical_mnist"]["model"] = {"UGSCNN": {"n_train": 3}}
    with pytest.raises(ConfigError, match=r"data of UGSCNN\.n_train: input should be greater"):
        parse_protocol(tree)


def test_ablation_has_a_row_for_each_choice():
    runs = planned_runs(load_protocol(CONFIG / "ablation.yaml"))
    choices = {
        (
            run.options.get("stencil", "smoothed"),
            run.options.get("transport", True),
            run.options.get("smooth_pooling", True),
        ): run.model
        for run in runs
    }
    assert len(choices) == len({run.model for run in runs}) == 8
    assert {run.network for run in runs} == {"PDO-eS2CNN-small"}
    for (stencil, transport, pooling), name in choices.items():
        said = [stencil, *["untransported"] * (not transport), *["subsampled"] * (not pooling)]
        assert name == "-".join(said)


def run_of(protocol: str, model: str, setting: str) -> config.RunConfig:
    """The run of a protocol with seed 0."""
    runs = planned_runs(load_protocol(CONFIG / f"{protocol}.yaml"))
    (found,) = (r for r in runs if (r.model, r.setting, r.seed) == (model, setting, 0))
    return found


def test_corrected_is_table_1_of_paper_but_for_the_edition():
    paper, corrected = (load_protocol(CONFIG / f"{name}.yaml") for name in ("paper", "corrected"))
    assert (paper.beside, corrected.beside) == ("corrected", "paper")
    assert list(corrected.tasks) == ["spherical_mnist"]
    digits = [run for run in planned_runs(paper) if run.task == "spherical_mnist"]
    assert {run.data.edition for run in digits} == {"published"}
    for run, other in zip(digits, planned_runs(corrected), strict=True):
        data = run.data.model_copy(update={"edition": "corrected"})
        assert other == run.model_copy(update={"protocol": "corrected", "data": data})


@pytest.mark.parametrize(
    ("row", "protocol", "model", "options"),
    [
        ("nearest-ring", "paper", "PDO-eS2CNN-small", {"stencil": "paper"}),
        (
            "nearest-ring-subsampled",
            "paper",
            "PDO-eS2CNN-small",
            {"stencil": "paper", "smooth_pooling": False},
        ),
        ("IcosahedralCNN-12000", "workstation", "IcosahedralCNN", {}),
    ],
)
def test_variants_of_the_paper_protocol_differ_in_what_their_names_say(
    row, protocol, model, options
):
    row = row if row.startswith(model) else f"{model}-{row}"
    for setting in "NR":
        plain = run_of(protocol, model, setting)
        data = plain.data.model_copy(update={"edition": "published"})
        named = {"protocol": "paper", "model": row, "options": options, "data": data}
        assert run_of("paper", row, setting) == plain.model_copy(update=named)


def test_beside_names_a_protocol_of_the_other_edition():
    tree = tiny_protocol(beside="nowhere")
    with pytest.raises(ConfigError, match=r"unknown protocol 'nowhere'"):
        parse_protocol(tree)


def test_a_variant_is_a_row_of_its_own_with_the_recipe_of_its_network():
    tree = tiny_protocol()
    task = tree["tasks"]["spherical_mnist"]
    name = "PDO-eS2CNN-small"
    task["models"] = [name, "mine"]
    task["model"] = {"mine": {"network": name, "train": {"weight_decay": 0.5}}}
    runs = {run.model: run for run in planned_runs(parse_protocol(tree)) if run.seed == 0}
    assert runs["mine"].network == runs[name].network == name
    assert runs["mine"].key != runs[name].key
    given = runs[name].train.model_dump() | {"weight_decay": 0.5}
    assert runs["mine"].train.model_dump() == given


def test_generated_files_are_current():
    """Mend with `python -m bench config`."""
    assert (CONFIG / "schema.json").read_text() == config.json_schema()
    assert (CONFIG / "reference.yaml").read_text() == config.reference_yaml()


def test_reference_is_itself_a_protocol_with_all_defaults():
    tree = yaml.safe_load(config.reference_yaml())
    assert parse_protocol(tree) == config.ProtocolConfig()


def spoilt(path: str, value: object) -> dict:
    """The tiny protocol with one key set, by its dotted path."""
    tree = node = json.loads(json.dumps(tiny_protocol()))
    *parents, last = path.split(".")
    for name in parents:
        node = node.setdefault(name, {})
    node[last] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seedz", 3, "unknown key in configuration 'seedz': did you mean 'seeds'?"),
        ("tasks.sphericl_mnist", {}, "unknown task 'sphericl_mnist': did you mean 'spherical_m"),
        ("tasks.spherical_mnist.models", ["ugscnn"], "did you mean 'UGSCNN'?"),
        ("tasks.spherical_mnist.models", ["PDO-eS2CNN-smal"], "did you mean 'PDO-eS2CNN-small'?"),
        ("tasks.spherical_mnist.settings", ["Q"], "unknown setting of task spherical_mnist 'Q'"),
        ("tasks.spherical_mnist", {"models": ["UGSCNN"], "settings": ["Omni"]}, "(valid: N, R)"),
        ("tasks.spherical_mnist.data.levle", 3, "'levle': did you mean 'level'?"),
        ("tasks.spherical_mnist.data.level", 9, "data.level: input should be less than or equal"),
        ("tasks.spherical_mnist.train.epoch", 3, "did you mean 'epochs'?"),
        ("tasks.spherical_mnist.train.epochs", 0, "epochs: input should be greater than"),
        ("tasks.spherical_mnist.model.UGSCNN", {"options": {"dropuot": 0}}, "'dropout'"),
        (
            "tasks.qm7.data.n_tests",
            3,
            "key in configuration.tasks.qm7.data 'n_tests': did you mean 'n_test'",
        ),
        ("tasks.qm7.data.power", 3, "data.power: input should be 1 or 2"),
        ("tasks.qm7.data.n_synthetic", 52, "n_synthetic: input should be a multiple of 5"),
        ("tasks.qm7.train.label_smoothing", 0.1, "label_smoothing: qm7 has no labels"),
        ("tasks.spherical_mnist.models", [], "models: list should have at least 1 item"),
        ("tasks.spherical_mnist.settings", [], "settings: list should have at least 1 item"),
        ("tasks.spherical_mnist.models", ["UGSCNN", "UGSCNN"], "'UGSCNN' is listed twice"),
        ("tasks.spherical_mnist.settings", ["N", "R", "N"], "mnist: 'N' is listed twice"),
        ("tasks.qm7.settings", ["fold5"], "unknown setting of task qm7 'fold5'"),
        ("seeds", "many", "seeds: input should be a valid integer"),
    ],
)
def test_bad_configuration_is_one_line_with_the_nearest_name(path, value, message):
    with pytest.raises(ConfigError) as error:
        parse_protocol(spoilt(path, value))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_protocol_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="unknown protocol 'papper': did you mean 'paper'"):
        protocol_file("papper")
    assert protocol_file("mine", whole=True) is None
    assert protocol_file("paper").name == "paper.yaml"
    (tmp_path / "broken.yaml").write_text("seeds: [1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not YAML"):
        load_protocol(tmp_path / "broken.yaml")


def test_a_model_leaves_out_the_settings_it_does_not_have():
    tree = tiny_protocol()
    task = tree["tasks"]["spherical_mnist"]
    task |= {"models": ["UGSCNN", "SphereNet", "mine"], "settings": ["Omni", "N"]}
    task["model"] = {"mine": {"network": "SphereNet"}}
    runs = [(r.model, r.setting) for r in planned_runs(parse_protocol(tree))]
    both = [(model, setting) for model in ("SphereNet", "mine") for setting in ("N", "Omni")]
    assert runs == [("UGSCNN", "N"), *both]


def test_recipe_then_protocol_then_model_decide():
    tree = tiny_protocol()
    task = tree["tasks"]["spherical_mnist"]
    task["train"] = {"epochs": 7}
    task["model"] = {
        "UGSCNN": {"train": {"batch_size": 8}, "options": {"dropout": 0.1}},
        "PDO-eS2CNN-large": {"options": {"stencil": "paper"}},
    }
    runs = {r.model: r for r in planned_runs(parse_protocol(tree))}
    assert runs["UGSCNN"].train.learning_rate == 1e-2  # its recipe
    assert runs["UGSCNN"].train.epochs == 7
    assert runs["UGSCNN"].train.batch_size == 8
    assert runs["UGSCNN"].options == {"dropout": 0.1}
    assert runs["PDO-eS2CNN-small"].options == {}
    assert runs["PDO-eS2CNN-large"].options == {"stencil": "paper"}


def test_a_resolved_run_knows_its_data_again():
    run = tiny_run()
    again = config.validated(config.RunConfig, json.loads(run.canonical_json()))
    assert again == run and type(again.data) is type(run.data) is config.DigitData
    tree = run.model_dump() | {"task": "qm7", "data": config.MoleculeData().model_dump()}
    again = config.validated(config.RunConfig, tree)
    assert type(again.data) is config.MoleculeData
    assert again.data.folder("none") == "qm7/qm7-power1-half-index/none"


def test_hash_depends_on_content_alone():
    assert tiny_run().hash == tiny_run().hash
    assert tiny_run().hash != tiny_run(epochs=3).hash
    assert tiny_run().hash != tiny_run(seed=1).hash


def test_data_are_those_of_the_task_even_if_their_keys_fit_another():
    """A run goes to its process as JSON, where a class of data is keys alone: these are digits'."""
    keys = {"level": 4, "n_train": 50, "n_test": None, "seed": 0}
    tree = tiny_run().model_dump() | {"task": "synthetic_rooms", "data": keys}
    run = config.RunConfig.model_validate_json(json.dumps(tree))
    assert isinstance(run.data, SyntheticRoomsData)
    assert config.RunConfig.model_validate_json(run.canonical_json()) == run


def test_accepting_terms_of_use_retrains_nothing():
    trees = [
        {"tasks": {"stanford_2d3ds": {"data": {"level": 4, "accept_terms": accepted}}}}
        for accepted in (False, True)
    ]
    first, second = (planned_runs(parse_protocol(tree)) for tree in trees)
    assert [run.canonical_json() for run in first] == [run.canonical_json() for run in second]


def test_a_variant_that_would_not_be_run_is_refused():
    tree = tiny_protocol()
    tree["tasks"]["spherical_mnist"]["model"] = {"mine": {"network": "UGSCNN"}}
    with pytest.raises(ConfigError, match="row 'mine' of task spherical_mnist would not be run"):
        parse_protocol(tree)
    tree["tasks"]["spherical_mnist"]["models"] = ["mine"]
    assert {run.model for run in planned_runs(parse_protocol(tree))} == {"mine"}


def test_synthetic_digits_need_their_numbers():
    tree = tiny_protocol()
    del tree["tasks"]["spherical_mnist"]["data"]["n_test"]
    with pytest.raises(ConfigError, match="source synthetic needs n_train and n_test"):
        parse_protocol(tree)


def test_no_more_samples_than_there_are():
    """Or a run of all of them would go by another number."""
    for task, name, there in (
        ("spherical_mnist", "n_train", 60_000),
        ("spherical_mnist", "n_test", 10_000),
        ("qm7", "n_train", 5_732),
        ("qm7", "n_test", 1_433),
    ):
        tree = {"protocol": "many", "tasks": {task: {"data": {name: there}}}}
        parse_protocol(tree)
        tree["tasks"][task]["data"][name] = there + 1
        with pytest.raises(ConfigError, match=f"{name}: there are {there:,} at most"):
            parse_protocol(tree)
    tree = {"protocol": "many", "tasks": {"qm7": {"model": {"S2CNN": {"n_train": 9999}}}}}
    with pytest.raises(ConfigError, match="n_train: there are 5,732 at most"):
        planned_runs(parse_protocol(tree))


def test_a_file_of_config_holds_the_protocol_of_its_name(monkeypatch, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((CONFIG / "ablation.yaml").read_text())
    assert load_protocol(path).protocol == "ablation"
    monkeypatch.setattr(config, "CONFIG", tmp_path.resolve())
    with pytest.raises(ConfigError, match=r"mine\.yaml is protocol mine, and says `protocol: abla"):
        load_protocol(path)
