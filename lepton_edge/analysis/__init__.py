"""The sensitivity of a model to int8: measured in a worker, told as a table, a plot, files and advice."""
