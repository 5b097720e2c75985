"""A page that shows runs side by side: `python -m util.report`."""
