"""What the operating system offers beyond plain Python, each with its plain fallback."""
