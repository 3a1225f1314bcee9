"""Prefect flows and the command line. Thin: what a worker must unpickle lives in `tasks`."""
