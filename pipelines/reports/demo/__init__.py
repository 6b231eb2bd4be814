"""The first look: three methods on little text."""
