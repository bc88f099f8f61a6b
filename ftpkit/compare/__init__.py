"""Comparisons: framing, transports and schedules, under repeatable conditions."""
