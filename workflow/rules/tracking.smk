# MLflow mirrors the files. Its database is made once, before runs start side by side.


rule init_tracking:
    output:
        touch("results/.tracking_ready"),
    log:
        "results/logs/init_tracking.log",
    localrule: True
    params:
        protocol=PROTOCOL.model_dump_json(),
    shell:
        "python -m bench init --protocol {params.protocol:q} > {log} 2>&1"


# After the tables: complete what live tracking missed; a dead tracker is said, not fatal.
rule complete_tracking:
    input:
        TABLES,
    output:
        "results/tables/tracking.txt",
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
