"""Score models: one protocol with two views, and an adapter per checkpoint family."""
