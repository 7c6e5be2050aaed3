# One page to look at, made of the tables' runs, and its figures. Snakemake's own report shows the
# figures, not the page: Chromium opens no embedded page of more than 2 MB.


rule report:
    input:
        TABLES,
    output:
        PAGE,
        report(
            directory(FIGURES),
            patterns=["{about}/{figure}.png"],
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{about}",
            labels={"figure": "{figure}"},
        ),
    log:
        "results/logs/report.log",
    localrule: True
    params:
        protocol=PROTOCOL.model_dump_json(),
        unavailable=json.dumps(UNAVAILABLE),
    shell:
        "python -m bench report --protocol {params.protocol:q}"
        " --unavailable {params.unavailable:q} > {log} 2>&1"
