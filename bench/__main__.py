"""`python -m bench`: what the workflow calls, and what a person may."""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from bench import config, tracking
from bench.config import ProtocolConfig, RunConfig
from bench.engine import Interrupted, train
from bench.errors import ConfigError, RunError, unknown
from bench.gpus import run_device
from bench.registry import MODELS
from data_prep.files import DataError, atomic_path


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; a mendable error is one line on stderr and exit status 1."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    options = _parser().parse_args(arguments)
    try:
        return options.action(options) or 0
    except (ConfigError, RunError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print(f"stopped by {interrupted.signal}; the next start goes on", file=sys.stderr)
        return interrupted.status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, action: object, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(action=action)
        return sub

    one = add("train", _train, "train one run, or go on with it")
    one.add_argument("--run", help="the resolved run as JSON (Snakemake's way); or name it:")
    one.add_argument("--protocol", default="default", help="name in config/")
    one.add_argument("--task", default="spherical_mnist")
    one.add_argument("--model")
    one.add_argument("--setting")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--data", type=Path, default=Path("data"), help="folder of prepared data")
    one.add_argument("--gpus", type=int, default=1, help="0: stay on the CPU")
    one.add_argument("--threads", type=int, default=1, help="CPU threads")
    one.add_argument("--no-tracking", action="store_true", help="leave MLflow alone")

    tables = add("tables", _tables, "build the tables from the runs there are")
    recorded = add("record", _record, "copy finished runs and tables to results/recorded")
    robust = add("robustness", _robustness, "table and figures: rotations of trained networks")
    planned = add("plan", _plan, "runs, hours, disk and downloads of a protocol, from measurements")
    planned.add_argument("--json", action="store_true", help="print all numbers")
    energies = add("energies", _energies, "figures of QM7: learning curve, parity")
    rooms = add("rooms", _rooms, "table and figures of segmentation: classes, panoramas")
    rooms.add_argument("--task", default="synthetic_rooms", help="or stanford_2d3ds")
    rooms.add_argument("--data", type=Path, default=Path("data"), help="folder of prepared data")
    report = add("report", _report, "one page of tables, figures and runs")
    report.add_argument("--data", type=Path, default=Path("data"), help="folder of prepared data")
    tables.add_argument(
        "--recorded", action="store_true", help="of the recorded runs, into results/recorded"
    )
    tables.add_argument("--rows", nargs="+", help="rows of the tables; needs --out")
    tables.add_argument("--columns", nargs="+", help="columns, for example N/N N/R; needs --out")
    tables.add_argument("--out", type=Path, help="folder (default results/tables/<protocol>)")
    for sub in (tables, report):
        sub.add_argument(
            "--unavailable", type=json.loads, help="why data sets are missing: JSON, by task"
        )
    for sub in (tables, recorded, robust, planned, rooms, report):
        sub.add_argument("--protocol", default="default", help="name in config/, file, or JSON")
    energies.add_argument(
        "--protocol", nargs="+", default=["default"], help="the first gives the parity plots"
    )
    robust.add_argument("--rotations", type=int, default=8, help="random rotations")
    robust.add_argument("--digits", type=int, default=100, help="signals of each kind")
    robust.add_argument("--data", type=Path, default=Path("data"), help="holds raw/mnist, or not")
    for sub in (robust, energies, rooms):
        sub.add_argument("--out", type=Path, help="folder (default results/tables/<protocol>)")
    sync = add("sync", _sync, "make MLflow agree with the files")
    sync.add_argument("--lenient", type=Path, help="write the outcome to this file and do not fail")
    certify = add("equivariance", _equivariance, "measure how rotations move a network's outputs")
    certify.add_argument("model", help="a registered model")
    certify.add_argument("--task", help="the run's, or the first one with such a model")
    certify.add_argument("--level", type=int, help="icosphere level: the run's, or the task's")
    certify.add_argument("--rotations", type=int, default=8, help="random rotations")
    certify.add_argument(
        "--signals", type=int, help="of each kind (100 digits, 40 molecules, 8 rooms)"
    )
    certify.add_argument("--weights", type=Path, help="a run's weights.safetensors; else untrained")
    certify.add_argument("--seed", type=int, default=0, help="of network, rotations and signals")
    certify.add_argument("--data", type=Path, default=Path("data"), help="holds raw/, or not")
    certify.add_argument("--json", action="store_true", help="all numbers, and their definitions")
    orders = add("convergence", _convergence, "measure how stencils and layers converge")
    orders.add_argument("--levels", type=int, nargs=2, default=(2, 6), help="first and last")
    orders.add_argument("--digits", type=int, default=400, help="to test on; 0: only harmonics")
    orders.add_argument("--data", type=Path, default=Path("data"), help="holds raw/mnist, or not")
    orders.add_argument("--out", type=Path, default=Path("results/convergence"))
    orders.add_argument("--json", action="store_true", help="print all numbers")
    fast = add("speed", _speed, "measure the time and memory of layers and networks")
    fast.add_argument("--level", type=int, default=4, help="icosphere level")
    fast.add_argument("--threads", type=int, default=1, help="CPU threads")
    fast.add_argument("--repeats", type=int, default=7, help="medians are over so many")
    fast.add_argument("--peers", type=Path, help="compare with other libraries, installed here")
    fast.add_argument("--out", type=Path, default=Path("results/speed"))
    fast.add_argument("--json", action="store_true", help="print all numbers")
    predict = add("predict", _predict, "classify digits, put on the sphere, by a trained network")
    predict.add_argument("file", type=Path, help="28 x 28 image, or .npy of one or more")
    predict.add_argument("--model", default="pdo-es2cnn-small-mnist", help="a name of pdo.load")
    predict.add_argument("--rotate", type=int, metavar="SEED", help="a random rotation for each")
    predict.add_argument("--json", action="store_true", help="all numbers")
    editions = add("edition", _edition, "tell which edition of Spherical MNIST a file holds")
    editions.add_argument("file", type=Path, help="S2CNN's .gz, .npz, .npy or a prepared folder")
    editions.add_argument("--json", action="store_true", help="all numbers")
    released = add("release", _release, "copy recorded networks into the package, pdo/pretrained")
    audited = add("audit", _audit, "check every run, recorded table and quoted number")
    audited.add_argument("protocols", nargs="*", help="names of protocols (default: all)")
    audited.add_argument("--evaluate", metavar="RUN", help="evaluate the weights of one run")
    again = add("reproduce", _reproduce, "train one recorded run again and compare")
    again.add_argument("run", help="PROTOCOL/TASK/MODEL/SETTING/seedK")
    scratch = Path("results/reproduced")
    again.add_argument("--out", type=Path, default=scratch, help="folder of the new run")
    for sub in (audited, again):
        sub.add_argument("--data", type=Path, default=Path("data"), help="folder of prepared data")
    migrated = add("migrate", _migrate, "rename runs of earlier releases")
    with_results = (one, tables, recorded, robust, planned, energies, rooms, report, sync, released)
    for sub in (*with_results, audited, again, migrated):
        sub.add_argument("--results", type=Path, default=Path("results"), help="results folder")
    add("models", _models, "list the registered models")
    add("config", _config, "write config/schema.json and config/reference.yaml")
    return parser


def _use_threads(count: int) -> None:
    if count < 1:
        raise ConfigError(f"--threads must be at least 1, not {count}")
    torch.set_num_threads(count)


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{what} is no JSON: {error}") from error


def _protocol(argument: str) -> ProtocolConfig:
    if argument.endswith(".yaml"):
        return config.load_protocol(Path(argument))
    if argument.startswith("{"):
        return config.parse_protocol(_json(argument, "--protocol"))
    file = config.protocol_file(argument)
    assert file is not None  # only a whole protocol may have none
    return config.load_protocol(file)


def _train(options: argparse.Namespace) -> None:
    if options.run:
        run, enabled = config.validated(RunConfig, _json(options.run, "--run"), "run"), True
    else:
        protocol = _protocol(options.protocol)
        run, enabled = _named_run(protocol, options), protocol.tracking
    _use_threads(options.threads)
    _keep_freed_memory()
    tracked = enabled and not options.no_tracking
    with run_device(options.gpus, options.results) as device:
        metrics = train(run, options.results, options.data, device, tracked)
    print(options.results / "runs" / run.key / "metrics.json", metrics["status"], metrics["test"])


def _named_run(protocol: ProtocolConfig, options: argparse.Namespace) -> RunConfig:
    if options.task not in protocol.tasks:
        raise unknown("task", options.task, protocol.tasks)
    runs = [r for r in config.planned_runs(protocol) if r.task == options.task]
    for kind in ("model", "setting", "seed"):
        wanted = getattr(options, kind)
        valid = list(dict.fromkeys(getattr(r, kind) for r in runs))
        if wanted not in valid:
            raise unknown(kind, wanted, valid)
        runs = [r for r in runs if getattr(r, kind) == wanted]
    return runs[0]


def _tables(options: argparse.Namespace) -> None:
    from bench.typesetting import write_tables  # pandas and scipy.stats: not at every start

    if (options.rows or options.columns) and options.out is None:
        raise ConfigError("--rows and --columns make a part of a table: name its folder by --out")
    protocol, chosen = _protocol(options.protocol), (options.rows, options.columns)
    if options.recorded:
        from bench.record import write_recorded_tables

        out = options.out or options.results / "recorded" / protocol.protocol
        paths = write_recorded_tables(protocol, options.results, out, *chosen)
    else:
        paths = write_tables(
            protocol, options.results, options.unavailable, options.out, None, *chosen
        )
    print(*paths, sep="\n")


def _report(options: argparse.Namespace) -> None:
    from bench.report import write_report
    from bench.rooms import write_rooms
    from bench.tables import tables_folder
    from bench.tasks import TASK_CLASSES
    from bench.tasks_rooms import Rooms

    protocol = _protocol(options.protocol)
    for task in protocol.tasks:
        if TASK_CLASSES[task] is Rooms:
            try:  # the page shows panoramas where there are runs and their data
                out = tables_folder(options.results, protocol)
                write_rooms(protocol, task, options.results, options.data, out)
            except RunError as error:
                logging.getLogger("bench").info("no panoramas of %s: %s", task, error)
    print(write_report(protocol, options.results, options.unavailable))


def _robustness(options: argparse.Namespace) -> None:
    from bench.robustness import write_robustness
    from bench.tables import tables_folder

    torch.set_num_threads(1)
    _keep_freed_memory()
    protocol = _protocol(options.protocol)
    out = options.out or tables_folder(options.results, protocol)
    for path in write_robustness(
        protocol, options.results, options.data, out, options.digits, options.rotations
    ):
        print(path)


def _energies(options: argparse.Namespace) -> None:
    from bench.energies import write_energies
    from bench.tables import tables_folder

    protocols = [_protocol(protocol) for protocol in options.protocol]
    out = options.out or tables_folder(options.results, protocols[0])
    for path in write_energies(protocols, options.results, out):
        print(path)


def _rooms(options: argparse.Namespace) -> None:
    from bench.rooms import write_rooms
    from bench.tables import tables_folder

    protocol = _protocol(options.protocol)
    if options.task not in protocol.tasks:
        raise unknown("task", options.task, protocol.tasks)
    out = options.out or tables_folder(options.results, protocol)
    for path in write_rooms(protocol, options.task, options.results, options.data, out):
        print(path)


def _record(options: argparse.Namespace) -> None:
    from bench.record import record

    runs = record(_protocol(options.protocol), options.results)
    print(*runs, f"{len(runs)} runs recorded", sep="\n")


def _sync(options: argparse.Namespace) -> int:
    try:
        outcome, status = f"{tracking.sync(options.results)} runs changed", 0
    except Exception as error:
        outcome, status = f"MLflow could not be synced: {' '.join(str(error).split())[:300]}", 1
    print(outcome, file=sys.stderr)
    if options.lenient:
        with atomic_path(options.lenient) as path:
            path.write_text(outcome + "\n")
        return 0
    return status


def _equivariance(options: argparse.Namespace) -> None:
    from bench.certificate import as_text, certificate

    torch.set_num_threads(1)  # as in training: the sums come out the same everywhere
    _keep_freed_memory()
    result = certificate(
        options.model,
        task=options.task,
        level=options.level,
        rotations=options.rotations,
        signals=options.signals,
        weights=options.weights,
        seed=options.seed,
        data=options.data,
    )
    print(json.dumps(result, indent=2, allow_nan=False) if options.json else as_text(result))


def _convergence(options: argparse.Namespace) -> None:
    from bench.convergence_report import write_report

    torch.set_num_threads(1)
    _keep_freed_memory()
    levels = tuple(options.levels)
    result, paths = write_report(levels, options.digits, options.data, options.out)
    if options.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print(*paths, sep="\n")


def _speed(options: argparse.Namespace) -> None:
    from bench.speed_report import write_report

    _use_threads(options.threads)
    _keep_freed_memory()
    found, paths = write_report(options.level, options.repeats, options.peers, options.out)
    if options.json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        print(*paths, sep="\n")


def _plan(options: argparse.Namespace) -> None:
    from bench.plan import as_text, plan

    found = plan(_protocol(options.protocol), options.results / "recorded")
    print(json.dumps(found, indent=2, allow_nan=False) if options.json else as_text(found))


def _predict(options: argparse.Namespace) -> None:
    from bench.predict import as_text, predict_file

    torch.set_num_threads(1)
    found = predict_file(options.model, options.file, options.rotate)
    print(json.dumps(found, indent=2, allow_nan=False) if options.json else as_text(found))


def _edition(options: argparse.Namespace) -> None:
    from bench.edition import as_text, edition_of

    torch.set_num_threads(1)
    found = edition_of(options.file)
    print(json.dumps(found, indent=2, allow_nan=False) if options.json else as_text(found))


def _release(options: argparse.Namespace) -> None:
    from bench.release import release

    print(*release(options.results), sep="\n")


def _audit(options: argparse.Namespace) -> int:
    if options.evaluate:
        from bench.reproduce import evaluate_recorded

        text, same = evaluate_recorded(options.evaluate, options.results, options.data)
        print(text)
        return 0 if same else 1
    from bench.audit import audit

    found = audit(options.results, options.protocols or None, options.data)
    for fault in found.faults:
        print(fault)
    for note in found.notes:
        print(f"note: {note}")
    count = f"{found.runs} runs, {found.tables} tables and {found.quotes} quotes checked"
    print(f"{count}: {f'{len(found.faults)} faults' if found.faults else 'no fault'}")
    return 1 if found.faults else 0


def _reproduce(options: argparse.Namespace) -> int:
    from bench.reproduce import reproduce

    _keep_freed_memory()
    text, same = reproduce(options.run, options.results, options.data, options.out)
    print(text)
    return 0 if same else 1


def _migrate(options: argparse.Namespace) -> None:
    from bench.migrate import migrate

    renamed = migrate(options.results)
    for old, new in renamed:
        print(f"{old} -> {new}" if old != new else f"{old}: new keys")
    print(f"{len(renamed)} runs renamed")


def _models(options: argparse.Namespace) -> None:
    for task, model in MODELS:
        print(f"{task}\t{model}")


def _config(options: argparse.Namespace) -> None:
    files = {"schema.json": config.json_schema(), "reference.yaml": config.reference_yaml()}
    for name, text in files.items():
        with atomic_path(config.CONFIG / name) as path:
            path.write_text(text)
        print(config.CONFIG / name)


def _keep_freed_memory() -> None:
    """Let glibc keep what tensors free: returning and faulting in large blocks at every step
    costs more than the arithmetic. Elsewhere (macOS, musl) this does nothing."""
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


if __name__ == "__main__":
    sys.exit(main())
