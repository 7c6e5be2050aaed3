"""`python -m bench convergence`: all measurements of `bench.convergence` and `bench.stencil_digits`
in CSV files, Markdown tables and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator
from tqdm import tqdm

from bench.convergence import DEGREE, fit_order, measure_family, measure_fibre
from bench.errors import ConfigError
from bench.hardware import hardware
from bench.provenance import origin
from bench.source_tree import git_state
from bench.stencil_digits import compare_on_digits, cost, digits_of
from bench.stencil_families import EQUAL, FAMILIES, LINEAR, SMOOTH, Family, Smoother
from data_prep.files import atomic_path
from data_prep.mnist import Digits
from pdo.mesh import MAX_LEVEL

SEEDS = (0, 1)
DETAILED = "nearest ring (paper)"
SINGLE = ("d1", "d2", "d11", "d12", "d22", "lifting layer", "group layer")
COMPOSED = ("conj(eth)^2 eth^2", "deep stack", "deep stack, mesh units")
SHOWN = (
    "nearest ring (paper)",
    "2 rings, Gaussian 1",
    "order 3, 2 rings, Gaussian 1",
    "equal average",
    "linear average",
    "smoothed (default)",
)
"""Families in the figure."""
POOLS = {
    "equal": EQUAL,
    "linear": LINEAR,
    "smooth (default)": SMOOTH,
    "smooth, 3 rings, Gaussian 1.5": Smoother(3, 1.5, exact=1, area=True),
}


def measure(levels: tuple[int, int], images: Digits | None) -> dict[str, pd.DataFrame]:
    """The tables, by name:

    - errors: family, quantity, level, h, rms, max, equivariance;
    - orders: family, quantity, error (which), order, half_width (95 %), constant, finest (its value
      at the finest level);
    - fibre: interpolation, quantity, N, level, h, rms, of_fibre (see `measure_fibre`);
    - fibre_orders: interpolation, quantity, level, order, half_width of of_fibre in 1 / N, from
      N = 9 on, where it falls like a power of it;
    - families: cost and, with digits, movement, N/N, N/R at level 4, or the finest if that is
      coarser; pools: likewise.
    """
    first, last = levels
    span, level = range(first, last + 1), min(4, last)
    errors, fibre, families, pools = [], [], [], []

    def on_digits(family: Family, pool: Smoother) -> dict[str, float]:
        if images is None:
            return {}
        found = [compare_on_digits(family, images, level, seed, pool) for seed in SEEDS]
        return pd.DataFrame(found).mean().to_dict()

    for name, family in tqdm(FAMILIES.items(), "families"):
        for at in span:
            errors += [{"family": name} | row for row in measure_family(family, at)]
        families.append({"family": name} | cost(family, level) | on_digits(family, SMOOTH))
    for at in tqdm(span, "fibre interpolation"):
        fibre += measure_fibre(at)
    if images is not None:
        for name, pool in tqdm(POOLS.items(), "pools"):
            for average in ("equal average", "smoothed (default)"):
                row = on_digits(FAMILIES[average], pool)
                pools.append({"family": average, "pool": name} | row)
    frame, by_samples = pd.DataFrame(errors), pd.DataFrame(fibre)
    tables = {"errors": frame, "orders": _orders(frame)}
    tables |= {"fibre": by_samples, "fibre_orders": _fibre_orders(by_samples)}
    tables["families"] = pd.DataFrame(families)
    return tables | ({"pools": pd.DataFrame(pools)} if pools else {})


def write_report(
    levels: tuple[int, int], digits: int, data: Path, out: Path
) -> tuple[dict[str, Any], list[Path]]:
    """Measure and write <table>.csv, convergence.md and convergence.png into `out`. Returns where
    the numbers come from and all tables, as plain values (NaN as null), and the files. `digits` > 0
    test digits have three times as many for the classifier.

    Raises:
        ConfigError: unless 1 <= first level < last level <= 7; or, with digits, whose network goes
            two levels down, if the last is below 3; or there are not so many digits, or 1.
        DataError: the raw MNIST files are damaged.
    """
    first, last = levels
    if not 1 <= first < last <= MAX_LEVEL:
        raise ConfigError(f"--levels must be two of 1..{MAX_LEVEL}, coarse first, not {levels}")
    if digits < 0 or digits == 1:
        raise ConfigError(f"--digits must be 0, or at least 2 (features vary), not {digits}")
    if digits and last < 3:
        raise ConfigError(f"--levels must go up to 3 at least with digits, not to {last}")
    images = digits_of(data, 3 * digits, digits) if digits else None
    source = {  # before the measurements: the code may be edited while they run
        "command": f"python -m bench convergence --levels {levels[0]} {levels[1]} "
        f"--digits {digits}",
        "digits": images.source if images else None,
        **git_state(),
        **hardware(torch.device("cpu")),
    }
    tables = measure(levels, images)
    if images is None:
        (out / "pools.csv").unlink(missing_ok=True)  # of another time, not of this page
    paths = []
    for name, table in tables.items():
        paths.append(out / f"{name}.csv")
        with atomic_path(paths[-1]) as path:
            table.to_csv(path, index=False, float_format="%.6g")
    paths.append(out / "convergence.md")
    with atomic_path(paths[-1]) as path:
        path.write_text(_markdown(tables, source))
    paths.append(out / "convergence.png")
    with atomic_path(paths[-1]) as path:
        _figure(tables, path)
    plain = {
        name: table.astype(object).where(table.notna(), None) for name, table in tables.items()
    }
    return source | {name: table.to_dict("records") for name, table in plain.items()}, paths


def _orders(errors: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (family, quantity), group in errors.groupby(["family", "quantity"], sort=False):
        for error in ("rms", "max", "equivariance"):
            if group[error].notna().all():
                slope, half_width, constant = fit_order(group["h"], group[error])
                row = {"family": family, "quantity": quantity, "error": error, "order": slope}
                row |= {"half_width": half_width, "constant": constant}
                rows.append(row | {"finest": group[error].iloc[-1]})
    return pd.DataFrame(rows)


def _fibre_orders(fibre: pd.DataFrame) -> pd.DataFrame:
    linear = fibre[(fibre["interpolation"] == "linear") & (fibre["N"] >= 9)]
    linear = linear[linear["of_fibre"] > 0]  # not the lifting layer, which reads no fibre
    rows = []
    for (quantity, level), group in linear.groupby(["quantity", "level"], sort=False):
        order = fit_order(1 / group["N"], group["of_fibre"])
        row = {"interpolation": "linear", "quantity": quantity, "level": level}
        rows.append(row | {"order": order.slope, "half_width": order.half_width})
    return pd.DataFrame(rows)


def _markdown(tables: dict[str, pd.DataFrame], source: dict[str, Any]) -> str:
    errors, names = tables["errors"], list(FAMILIES)
    last = errors["level"].max()
    orders = tables["orders"]
    orders = orders.assign(order=orders["order"].map("{:.2f}".format) + _interval(orders))
    detail = orders[(orders["family"] == DETAILED) & orders["quantity"].isin(SINGLE)]
    rms = orders[orders["error"] == "rms"]
    rms = rms.assign(shown=rms["order"] + rms["finest"].map(" ({:.2g})".format))
    rms = rms.pivot(index="family", columns="quantity", values="shown").loc[names]
    fibre = tables["fibre"].pivot(
        index=["interpolation", "quantity", "N"], columns="level", values=["rms", "of_fibre"]
    )
    by_samples = tables["fibre_orders"]
    by_samples = by_samples.assign(
        order=by_samples["order"].map("{:.2f}".format) + _interval(by_samples)
    ).pivot(index=["interpolation", "quantity"], columns="level", values="order")
    sections = {
        f"{DETAILED}: error = constant h^order, with its 95 % interval": detail.drop(
            columns=["family", "half_width"]
        ),
        f"rms errors: order, its 95 % interval, and the error at level {last}": rms[
            ["d1", "d11", "d12", "lifting layer", "group layer"]
        ].reset_index(),
    }
    for quantity in ("group layer", *COMPOSED):
        found = errors[errors["quantity"] == quantity]
        found = found.pivot(index="family", columns="level", values="equivariance").loc[names]
        sections[f"{quantity}: equivariance error by level"] = found.reset_index()
    sections["Cost and digits"] = tables["families"]
    if "pools" in tables:
        sections["Pooling"] = tables["pools"]
    sections["N samples of a fibre, nearest ring: rms error by level"] = fibre["rms"].reset_index()
    sections["What of it comes from the samples: difference from whole fibres by level"] = fibre[
        "of_fibre"
    ].reset_index()
    sections["Its order in 1 / N, with its 95 % interval, by level"] = by_samples.reset_index()
    text = [
        "# Convergence, measured",
        f"{origin(source['command'], source)}; digits: {source['digits'] or 'none'}. Errors are "
        f"relative, on all Wigner-D functions of degree {DEGREE}; definitions in "
        "`bench/convergence.py` and `bench/stencil_digits.py`.",
    ]
    for title, table in sections.items():
        text += [f"## {title}", table.to_markdown(index=False, floatfmt=".4g")]
    return "\n\n".join(text) + "\n"


def _interval(orders: pd.DataFrame) -> pd.Series:
    return orders["half_width"].map(lambda w: "" if pd.isna(w) else f" ± {w:.2f}")


def _figure(tables: dict[str, pd.DataFrame], path: Path) -> None:
    matplotlib.use("Agg")
    errors, fibre = tables["errors"], tables["fibre"]
    ticks = errors.loc[errors["family"] == DETAILED, "h"].unique()
    figure, axes = plt.subplots(2, 2, figsize=(11, 8.5), layout="constrained")

    def lines(ax: plt.Axes, groups: Any, error: str) -> None:
        for name, group in groups:
            ax.loglog(group["h"], group[error], "o-", label=name, markersize=4)
        ax.set_xlabel("mesh size h (radians)")
        ax.set_xticks(ticks, minor=False)
        ax.xaxis.set_major_formatter("{x:.2g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)

    paper = errors[(errors["family"] == DETAILED) & errors["quantity"].isin(SINGLE)]
    lines(axes[0, 0], paper.groupby("quantity", sort=False), "rms")
    axes[0, 0].set_title(f"{DETAILED}: rms error")
    shown = errors[errors["family"].isin(SHOWN)]
    panels = (
        (axes[0, 1], "lifting layer", "rms", "lifting layer: rms error"),
        (axes[1, 0], "conj(eth)^2 eth^2", "equivariance", "conj(eth)² eth²: equivariance error"),
    )
    for ax, quantity, error, title in panels:
        lines(ax, shown[shown["quantity"] == quantity].groupby("family", sort=False), error)
        ax.set_title(title)
    groups = fibre[fibre["quantity"] == "group layer"].groupby(["interpolation", "level"])
    for (interpolation, level), group in groups:
        style = "o-" if interpolation == "linear" else "x--"
        label = f"level {level}" if interpolation == "linear" else None
        axes[1, 1].loglog(
            group["N"], group["of_fibre"], style, color=f"C{level}", label=label, markersize=4
        )
    axes[1, 1].set_title("group layer: N samples against whole fibres")
    axes[1, 1].set_xlabel("N (solid: linear interpolation, dashed: trigonometric)")
    axes[1, 1].set_xticks(sorted(fibre["N"].unique()), minor=False)
    axes[1, 1].xaxis.set_major_formatter("{x:.0f}")
    axes[1, 1].xaxis.set_minor_locator(NullLocator())
    axes[1, 1].grid(alpha=0.3)
    axes[1, 1].legend(fontsize=8)
    figure.savefig(path, dpi=80, format="png")
    plt.close(figure)
