"""Statistics of what enters each layer, block by block."""
