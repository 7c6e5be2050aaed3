# MLflow mirrors the files. Runs make the database themselves, under a lock: a rule for it, as an
# `ancient` input of `train`, would hide changes of the runs' own parameters from Snakemake whenever
# it had to run again.


# After the tables: complete what live tracking missed; a dead tracker is said, not fatal.
rule complete_tracking:
    input:
        TABLES,
    output:
        f"{FOLDER}/tracking.txt",
    log:
        "results/logs/complete_tracking.log",
    localrule: True
    shell:
        "python -m bench sync --lenient {output} > {log} 2>&1"


# By hand, and always when asked: the whole database from the files.
rule sync_tracking:
    log:
        "results/logs/sync_tracking.log",
    localrule: True
    shell:
        "python -m bench sync 2>&1 | tee {log}"
