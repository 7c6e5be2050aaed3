# One job is one run. Its checkpoint stands beside metrics.json and is no output: Snakemake deletes
# the outputs of a job that was interrupted.


rule train:
    input:
        ancient(prepared_data),
    output:
        "results/runs/{protocol}/{task}/{model}/{setting}/seed{seed}/metrics.json",
    log:
        "results/logs/train/{protocol}/{task}/{model}/{setting}/seed{seed}.log",
    threads: THREADS
    resources:
        gpu=GPUS,
        mem_mb=memory_mb,
    params:
        run=run_json,
        tracking=tracking_option,
    shell:
        "python -m bench train --run {params.run:q} --gpus {resources.gpu} {params.tracking}"
        " > {log} 2>&1"
