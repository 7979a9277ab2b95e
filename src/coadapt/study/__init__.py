"""Studies: fair grids of runs, and the statistics that make them believable."""
