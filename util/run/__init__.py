"""A results folder: its files, its lock, and the processes that fill it."""
