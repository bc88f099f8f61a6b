"""What commands print: progress, bars, tables, plots."""
