"""`make bench-peers`: cachesvc beside other caches, one at a time, with one embedding stub."""
