"""Test tools that need no GPU: the repaired interpreter, the PTX simulator, surveys of launches, poisoned tensors."""
