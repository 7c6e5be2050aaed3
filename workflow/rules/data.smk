# Fetch, verify, prepare.


wildcard_constraints:
    grid=r"[a-z0-9-]+",
    source=r"mnist|synthetic-\d+-\d+",
    variant=r"(-chunk\d+)?(-legacy)?-seed\d+",


rule fetch_mnist:
    output:
        "data/raw/mnist/train-images-idx3-ubyte",
        "data/raw/mnist/train-labels-idx1-ubyte",
        "data/raw/mnist/t10k-images-idx3-ubyte",
        "data/raw/mnist/t10k-labels-idx1-ubyte",
    log:
        "results/logs/fetch_mnist.log",
    shell:
        "python -m data_prep fetch mnist --out data/raw/mnist 2>&1 | tee {log}"


rule prepare_spherical_mnist:
    input:
        raw=ancient(raw_digits),
    output:
        "data/spherical_mnist/{source}{variant}/{grid}/card.json",
    log:
        "results/logs/prepare_spherical_mnist/{source}{variant}/{grid}.log",
    threads: THREADS
    params:
        options=preparation_options,
    shell:
        "python -m data_prep spherical-mnist {params.options} --grid {wildcards.grid}"
        " --out $(dirname {output}) 2>&1 | tee {log}"
