"""What a doctor finds before the first run: on the driver, in the session, on each executor."""
