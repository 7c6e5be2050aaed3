# Tables are built from the runs' files alone.


rule tables:
    input:
        tables_metrics,
        "results/reference/paper_tables.csv",
    output:
        [in_report(path) for path in TABLES],
    log:
        "results/logs/tables.log",
    localrule: True
    params:
        protocol=PROTOCOL.model_dump_json(),
        unavailable=json.dumps(UNAVAILABLE),
    shell:
        "python -m bench tables --protocol {params.protocol:q}"
        " --unavailable {params.unavailable:q} > {log} 2>&1"


# After everything else, under protocols with `require_data`: fails if data could not be had. Its
# output is never made, so that it is asked at every start.
rule require_data:
    input:
        TABLES,
        TRACKED,
    output:
        f"{FOLDER}/all_data_were_there",
    log:
        "results/logs/require_data.log",
    localrule: True
    params:
        unavailable=json.dumps(UNAVAILABLE),
    shell:
        "echo data not available: {params.unavailable:q} | tee {log}; exit 1"
