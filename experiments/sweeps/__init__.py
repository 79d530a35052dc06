"""Many training runs: plans, execution, statistics and tables."""
