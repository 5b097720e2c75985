"""What a run of sample_condition.py is made of."""
