"""The paper's Table 5: grid, cluster, statistics, report. Imports ``runs`` and all below it."""
