"""The grids by name: `fspmu grid NAME` makes their runs, `fspmu table NAME` shows them. A list of runs and a line here add one."""

from fspmu.experiments.detector_grids import detectors_10k, detectors_memorised, detectors_small, detectors_wide, recipes, routes
from fspmu.experiments.grid_jobs import Grid
from fspmu.experiments.table_grids import baselines, full, learning, small

GRIDS: dict[str, Grid] = {
    "table-known": full("known"),
    "table-gmm": full("gmm"),
    "table-known-small": small("known"),
    "table-gmm-small": small("gmm"),
    "learning-small": learning(),
    "baselines-small": baselines(),
    "detectors-small": detectors_small(),
    "detectors-10k": detectors_10k(),
    "detectors-wide": detectors_wide(),
    "detectors-memorised": detectors_memorised(),
    "recipes-small": recipes(),
    "routes-small": routes(),
}
