# Fetch, verify, prepare.
# The folders are those that bench/data.py names.


wildcard_constraints:
    grid=r"[a-z0-9-]+",
    source=r"mnist|synthetic-\d+-\d+",
    edition="published|corrected",
    chunk=r"(-chunk([2-9]|[1-9]\d+))?",
    molecules=r"qm7|synthetic-\d+-seed\d+",
    power=r"[12]",
    radius="half|whole",
    exclusion="index|nearest",
    n=r"\d+",
    height=r"\d+",
    seed=r"\d+",
    quirks="".join(f"(-{quirk})?" for quirk in QUIRKS),


# The files are outputs of no rule: Snakemake would delete those that are there before it fetches the
# others, one that a user has put in place included.
rule fetch_mnist:
    output:
        touch("data/raw/mnist/complete"),
    log:
        "results/logs/fetch_mnist.log",
    localrule: True
    shell:
        "python -m data_prep fetch mnist --out data/raw/mnist 2>&1 | tee {log}"


rule prepare_spherical_mnist:
    input:
        raw=ancient(raw_digits),
    output:
        "data/spherical_mnist/{source}-{edition}{chunk}-seed{seed}/{grid}/card.json",
    log:
        "results/logs/prepare_spherical_mnist/{source}-{edition}{chunk}-seed{seed}/{grid}.log",
    threads: THREADS
    params:
        options=digit_options,
    shell:
        "python -m data_prep spherical-mnist {params.options} --grid {wildcards.grid}"
        " --out $(dirname {output}) 2>&1 | tee {log}"


rule fetch_qm7:
    output:
        "data/raw/qm7/qm7.npz",
    log:
        "results/logs/fetch_qm7.log",
    localrule: True
    shell:
        "python -m data_prep fetch qm7 --out data/raw/qm7 2>&1 | tee {log}"


rule prepare_qm7:
    input:
        raw=ancient(raw_molecules),
    output:
        "data/qm7/{molecules}-power{power}-{radius}-{exclusion}/{grid}/card.json",
    log:
        "results/logs/prepare_qm7/{molecules}-power{power}-{radius}-{exclusion}/{grid}.log",
    threads: THREADS
    params:
        source=molecule_source,
    shell:
        "python -m data_prep qm7 {params.source} --grid {wildcards.grid} --power {wildcards.power}"
        " --radius {wildcards.radius} --self-exclusion {wildcards.exclusion}"
        " --out $(dirname {output}) 2>&1 | tee {log}"


# The panoramas and the file that says what they are, are outputs of no rule: see fetch_mnist.
rule generate_synthetic_rooms:
    output:
        touch("data/raw/synthetic_rooms/{n}-{height}-seed{seed}/complete"),
    log:
        "results/logs/generate_synthetic_rooms/{n}-{height}-seed{seed}.log",
    threads: 2 * THREADS
    shell:
        "python -m data_prep synthetic-rooms --panoramas {wildcards.n} --height {wildcards.height}"
        " --seed {wildcards.seed} --workers {threads} --out $(dirname {output}) 2>&1 | tee {log}"


rule prepare_synthetic_rooms:
    input:
        ancient(rules.generate_synthetic_rooms.output),
    output:
        "data/synthetic_rooms/{n}-{height}-seed{seed}/{grid}/card.json",
    log:
        "results/logs/prepare_synthetic_rooms/{n}-{height}-seed{seed}/{grid}.log",
    threads: 2 * THREADS
    shell:
        "python -m data_prep rooms --raw $(dirname {input}) --grid {wildcards.grid}"
        " --seed {wildcards.seed} --workers {threads} --out $(dirname {output}) 2>&1 | tee {log}"


# The areas are outputs of no rule: Snakemake would delete them when a download is interrupted.
rule fetch_stanford:
    output:
        touch("data/raw/stanford/complete"),
    log:
        "results/logs/fetch_stanford.log",
    localrule: True
    params:
        accept="--accept-terms" if STANFORD_ACCEPTED else "",
    shell:
        "python -m data_prep fetch stanford {params.accept} --out data/raw/stanford"
        " 2>&1 | tee {log}"


rule prepare_stanford:
    input:
        ancient(rules.fetch_stanford.output),
    output:
        "data/stanford_2d3ds/seed{seed}{quirks}/{grid}/card.json",
    log:
        "results/logs/prepare_stanford/seed{seed}{quirks}/{grid}.log",
    threads: 2 * THREADS
    params:
        quirks=quirk_options,
    shell:
        "python -m data_prep rooms --raw data/raw/stanford --grid {wildcards.grid}"
        " --seed {wildcards.seed} {params.quirks} --workers {threads} --out $(dirname {output})"
        " 2>&1 | tee {log}"
