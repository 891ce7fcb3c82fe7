"""Recall and latency of the search, beside an exact scan and the usual designs."""
