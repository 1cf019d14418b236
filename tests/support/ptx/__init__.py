"""A lockstep simulator of the PTX that Triton emits. The face is ``tests.support.ptx_sim``."""
