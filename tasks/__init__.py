"""Units of work: plain functions that run in this process or on Ray."""
