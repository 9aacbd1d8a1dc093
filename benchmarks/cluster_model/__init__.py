"""324 runs on 1 to 256 GPUs by the driver's own rules: python -m benchmarks.cluster_model."""
