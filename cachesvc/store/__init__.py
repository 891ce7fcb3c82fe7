"""Where entries live: the port, and Postgres behind it."""
