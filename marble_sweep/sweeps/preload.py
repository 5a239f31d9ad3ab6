"""What every job asks and none answers otherwise: known once, to the process that jobs are forked from."""

from marble_sweep.metadata import package_versions
from marble_sweep.runs.provenance import code_sha256

package_versions()
code_sha256()
