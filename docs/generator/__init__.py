"""What docs/generate.py makes the generated pages with."""
