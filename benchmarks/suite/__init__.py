"""Benchmarks of the package's stages, for airspeed velocity."""
