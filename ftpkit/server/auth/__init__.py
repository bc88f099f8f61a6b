"""Authentication, delays for failed logins, and quotas."""
