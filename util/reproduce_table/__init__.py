"""A paper's table, run and compared: `python -m util.reproduce_table`."""
