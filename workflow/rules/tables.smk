# Tables are built from the runs' files alone.


rule tables:
    input:
        expand("results/runs/{key}/metrics.json", key=RUNS),
        "results/reference/paper_tables.csv",
    output:
        TABLES,
    log:
        "results/logs/tables.log",
    localrule: True
    params:
        protocol=PROTOCOL.model_dump_json(),
    shell:
        "python -m bench tables --protocol {params.protocol:q} > {log} 2>&1"
