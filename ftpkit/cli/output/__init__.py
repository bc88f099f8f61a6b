"""The output of commands: progress, tables, plots, the status screen."""
