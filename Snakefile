# Everything: data, runs, tables. `snakemake --cores 8 all` makes the default protocol's tables;
# `--config protocol=paper` chooses another of config/, `--configfile FILE` one of your own.
from snakemake.utils import min_version, validate

min_version("9.19")


# The Dockerfile's base, without our dependencies: to run in a container build that (docs/scaling.md).
container: "docker://python:3.11-slim"


report: "workflow/report/workflow.rst"


include: "workflow/rules/protocol.smk"


if PROTOCOL_FILE:

    configfile: PROTOCOL_FILE


include: "workflow/rules/common.smk"


validate(config, "config/schema.json")


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/tracking.smk"


rule all:
    default_target: True
    input:
        METRICS,
        TABLES,
        PAGE,
        FIGURES,
        TRACKED,
        REQUIRED,


onsuccess:
    print_tables()
