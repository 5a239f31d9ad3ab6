"""The names of the files in a run directory, and of those that a sweep keeps beside its runs."""

# Where runs lie unless the user says otherwise: one run, or a sweep of them.
OUTPUTS, MULTIRUN = "outputs", "multirun"

# A run's. docs/run_directory.md says what is in each.
CONFIG = "config.yaml"
METADATA = "metadata.json"
METRICS = "metrics.csv"
EVALS = "evals.csv"
WINDOWS = "windows.csv"  # which held-out windows are evaluated
WINDOW_LOSSES = "window_losses.csv"
VERDICT = "verdict.json"
LOG = "run.log"
TOKENIZER = "tokenizer.json"
TOKENS = "tokens.safetensors"  # of a run on the user's own token ids
SNAPSHOTS = "checkpoints.safetensors"
MODEL = "model.safetensors"
STATE = "state.safetensors"
UNIGRAM = "unigram.safetensors"
RECORD = "record"  # a folder: one Zarr group, with `recorder`
LIFECYCLE = "lifecycle.parquet"  # written when a record is analysed
PLOTS = "plots"  # a folder
LAST_PLOT = f"{PLOTS}/hidden.png"  # drawn after all others
FILES = (
    *(CONFIG, METADATA, METRICS, EVALS, WINDOWS, WINDOW_LOSSES, VERDICT),
    *(LOG, TOKENIZER, SNAPSHOTS, MODEL, STATE, UNIGRAM),
)

# Of a run and of a sweep.
LOCK, SOFT_LOCK = ".lock", ".lock.held"

# A sweep's. A search has the last three as well.
STARTED = ".started"  # empty: its time is that of the sweep's last start
PRODUCTS = "product_choices"  # a folder: how its jobs multiply, a file for each shape
SUMMARY = "summary.csv"
PAGE = "compare.html"
SEARCH = "search.json"
CONTINUING = ".continuing"  # a folder: copies of runs that are about to be continued for another threshold
JOURNAL = "study.log"
DATABASE = "study.db"  # in place of the journal, where the study is served
FRONTIER = "frontier.png"

# Of a search whose workers a launcher starts: a folder for each worker, by its number, with its log.
WORKERS = "workers"
WORKER_LOG = "worker.log"
WORKERS_START = f"{WORKERS}/start"  # the name of their start: a worker that reads it shares the folder
