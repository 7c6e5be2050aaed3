# Everything: data, runs, tables. `snakemake --cores 8 all` makes the default protocol's tables;
# `--configfile config/paper.yaml` (test, workstation, paper) chooses another.
from snakemake.utils import min_version, validate

min_version("9.19")


if "protocol" not in config:

    configfile: "config/default.yaml"


container: "docker://python:3.11-slim"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/tracking.smk"


validate(config, "config/schema.json")


rule all:
    default_target: True
    input:
        TABLES,
        "results/tables/tracking.txt",


onsuccess:
    print_tables()
