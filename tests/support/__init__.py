"""Test tools that need no GPU: the repaired interpreter, the PTX simulator, offline code generation, poisoned tensors."""
