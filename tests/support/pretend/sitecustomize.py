"""On PYTHONPATH, this makes every Python process one that seems to have a GPU; see tests/support/pretended_gpu.py."""
from tests.support import pretended_gpu

pretended_gpu.install()
