"""Floor 6. Fair times of what tritonq does, beside other libraries and this machine's measured limits; docs/benchmarks.md."""
