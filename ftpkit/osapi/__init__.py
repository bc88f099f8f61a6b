"""System calls beyond portable Python, each with its fallback."""
