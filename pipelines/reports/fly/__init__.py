"""The FLy reports."""
