# One page to look at, made of the tables' runs.


rule report:
    input:
        TABLES,
    output:
        "results/report.html",
    log:
        "results/logs/report.log",
    localrule: True
    params:
        protocol=PROTOCOL.model_dump_json(),
        unavailable=json.dumps(UNAVAILABLE),
    shell:
        "python -m bench report --protocol {params.protocol:q}"
        " --unavailable {params.unavailable:q} > {log} 2>&1"
