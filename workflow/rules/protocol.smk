# Which file in config/ holds the protocol.
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, workflow.basedir)

from bench.config import protocol_file
from bench.errors import ConfigError

# A protocol of your own may come whole by `--configfile`, under a name that config/ does not have.
try:
    PROTOCOL_FILE = protocol_file(
        config.get("protocol", "default"), whole="tasks" in config
    )
except ConfigError as error:
    raise WorkflowError(str(error)) from None
