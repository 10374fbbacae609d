"""Adapters between AnnData objects and the array cores: reading counts, writing results, storing models, files."""
