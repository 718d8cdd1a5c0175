"""Reports on runs: one page, tables and plots; see `report.command`."""
