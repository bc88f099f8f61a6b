"""Ways to move data set side by side, over links that are the same every time."""
