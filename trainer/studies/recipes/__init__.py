"""The papers' experiments, one short file each, and what runs them and compares the numbers."""
