"""The cache inside an application: a transport for its HTTP client."""
