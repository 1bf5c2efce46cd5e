"""Scripts that maintain the repository; not installed."""
