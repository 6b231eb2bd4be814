"""The machine: graph, planning, execution, identity, store, provenance, display, trackers."""
