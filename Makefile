# The newcomer's two commands are `make all` and `make test`; both make .venv first, once.
PYTHON ?= python3
CORES ?= 8
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
IN_ENV := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: all report ui browser test lint env lock clean-env slurm postgres

all: $(READY)
	$(IN_ENV) snakemake --cores $(CORES) all

# The page of the protocol's finished runs, as they are.
PROTOCOL ?= default
report: $(READY)
	$(IN_ENV) python -m bench report --protocol $(PROTOCOL)

# MLflow's page of all runs, for this machine alone, without MLflow's seven processes for jobs.
PORT ?= 5000
ui: $(READY)
	@case "$$MLFLOW_TRACKING_URI" in http*) echo "error: the runs are on a server, open $$MLFLOW_TRACKING_URI" >&2; exit 1;; esac
	@echo 'http://127.0.0.1:$(PORT): choose "Model training" at the top left. Ctrl-C ends it.'
	@$(IN_ENV) MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
		mlflow ui --host 127.0.0.1 --port $(PORT) --workers 1 \
		--backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/results/mlflow.db}"

# A browser for the tests that look at pages; without it they are skipped.
browser:
	command -v chromium || apt-get install --yes --no-install-recommends chromium

# Two files at a time: many tests start processes of their own, and those take two cores.
test: $(READY)
	$(IN_ENV) python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(IN_ENV) ruff check .
	$(IN_ENV) ruff format --check .
	$(IN_ENV) mypy
	$(IN_ENV) snakefmt --check Snakefile workflow/rules
	$(IN_ENV) snakemake --lint

env: $(READY)

# torch comes second and without a hash: its CPU and CUDA wheels differ; everything it shares with
# the lock file is already there, so it adds at most its own CUDA libraries.
$(READY): requirements.lock requirements-torch.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "Python 3.11 to 3.14 is needed, this is " + sys.version.split()[0] + ": call make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet -r requirements-torch.txt
	@touch $(READY)

# What the tests of profiles/slurm need on Debian (as root); without it they are skipped.
slurm: $(READY)
	apt-get install --yes --no-install-recommends slurmctld slurmd slurm-client munge
	$(IN_ENV) python -m pip install --quiet --no-deps \
		snakemake-executor-plugin-slurm==2.8.0 snakemake-executor-plugin-slurm-jobstep==0.6.1

# What the test of tracking on a server needs on Debian (as root), a database of its own; without it
# that test is skipped.
postgres:
	apt-get install --yes --no-install-recommends postgresql

clean-env:
	rm -rf $(VENV)

# Refresh the lock file (needs uv). CUDA packages are torch's own business, see above.
CUDA_PACKAGES := $(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile \
	curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx) \
	cuda-bindings cuda-pathfinder cuda-toolkit triton
lock:
	uv pip compile pyproject.toml --extra bench --extra test --constraint requirements-torch.txt \
		--universal --python-version 3.11 --generate-hashes --no-annotate --output-file requirements.lock \
		$(addprefix --no-emit-package ,torch $(CUDA_PACKAGES))
