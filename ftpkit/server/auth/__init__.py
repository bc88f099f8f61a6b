"""Authentication, login throttling and quotas."""
