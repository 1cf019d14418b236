"""The architecture, checked on the source: imports point down, kernels live in ``kernels/``, the library does not print."""
from __future__ import annotations

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tritonq"

# A module's floor is that of the longest name here that starts it. It may import its own floor and those below.
FLOORS = {
    "tritonq.act_order": 0,
    "tritonq.derived": 0,
    "tritonq.dtypes": 0,
    "tritonq.errors": 0,
    "tritonq.interpreter": 0,
    "tritonq.files": 0,
    "tritonq.kept": 0,
    "tritonq.sizes": 0,
    "tritonq._triton": 0,
    "tritonq._version": 0,
    "tritonq.backend": 0,
    "tritonq.formats": 0,
    "tritonq.scheme": 1,
    "tritonq.layouts": 1,
    "tritonq.qtensor": 1,
    "tritonq.qstack": 1,
    "tritonq.shards": 1,
    "tritonq.levels": 1,
    "tritonq.methods": 1,
    "tritonq.devices": 1,
    "tritonq.reference": 2,
    "tritonq.kernels": 3,
    "tritonq.plans": 4,
    "tritonq.torch_ops": 5,
    "tritonq.fake_quantize_op": 5,
    "tritonq.ops": 5,
    "tritonq.codegen": 5,
    "tritonq.nn": 6,
    "tritonq.matrix": 6,
    "tritonq.nf4_quantizer": 6,
    "tritonq.checkpoints": 6,
    "tritonq.planner": 6,
    "tritonq.memory_plan": 6,
    "tritonq.model_config": 6,
    "tritonq.assignment": 6,
    "tritonq.bench": 6,
    "tritonq.tuning": 6,
    "tritonq.integrations": 7,
    "tritonq.distributed": 7,
    "tritonq.cli": 7,
    "tritonq.__main__": 7,
    "tritonq": 8,  # the package itself gathers the public names
}
# kernels and layouts know floors 0 and 1 (and kernels their own) only: the judge must not be used by the judged
NOT_IMPORTED_BY = {"tritonq.kernels": ("tritonq.reference",), "tritonq.layouts": ("tritonq.reference",)}
# Upward on purpose, inside a function: q.dequantize() is where users look for it
DELIBERATE = {("tritonq.qtensor", "tritonq.ops")}
MAY_LAUNCH_PROGRAMS = ("tritonq.kernels",)
MAY_PRINT = ("tritonq.cli", "tritonq.__main__")


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def floor_of(module: str) -> int | None:
    """The floor, or None for a module that the table does not name."""
    known = [name for name in FLOORS if within(module, name) and (name != "tritonq" or module == "tritonq")]
    return FLOORS[max(known, key=len)] if known else None


def module_name(path: pathlib.Path, root: pathlib.Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, is_package: bool, modules: set[str]) -> list[tuple[str, int]]:
    """Every tritonq module that ``module`` imports, at top level or inside a function, with its line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                anchor = parts[: len(parts) - node.level + is_package]
                base = ".".join([*anchor, *([node.module] if node.module else [])])
            for alias in node.names:  # `from . import errors` imports a module, `from .errors import X` a name of one
                inner = f"{base}.{alias.name}"
                found.append((inner if inner in modules else base, node.lineno))
    return sorted({(name, line) for name, line in found if within(name, "tritonq")})


def import_faults(path: pathlib.Path, source: str, modules: set[str], root: pathlib.Path = ROOT) -> list[str]:
    module = module_name(path, root)
    floor = floor_of(module)
    if floor is None:
        return [f"{module}: no floor in the table of tests/test_floors.py"]
    faults = []
    for name, line in imports(ast.parse(source), module, path.name == "__init__.py", modules):
        if (module, name) in DELIBERATE:
            continue
        target = floor_of(name)
        if target is not None and target > floor:  # a module without a floor is reported once, for itself
            faults.append(f"{module}:{line} (floor {floor}) imports {name} (floor {target})")
        for package, barred in NOT_IMPORTED_BY.items():
            if within(module, package) and any(within(name, b) for b in barred):
                faults.append(f"{module}:{line} imports {name}, which {package} must not know")
    return faults


def call_faults(path: pathlib.Path, source: str, root: pathlib.Path = ROOT) -> list[str]:
    module = module_name(path, root)
    may_launch = any(within(module, m) for m in MAY_LAUNCH_PROGRAMS)
    may_print = any(within(module, m) for m in MAY_PRINT)
    faults = []
    for node in ast.walk(ast.parse(source)):
        if not may_launch and isinstance(node, ast.Attribute) and node.attr in ("program_id", "num_programs"):
            faults.append(f"{module}:{node.lineno} uses tl.{node.attr}; only kernels/ may")
        if not may_print and isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            faults.append(f"{module}:{node.lineno} prints; only the command line may")
    return faults


def sources() -> list[pathlib.Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "_autotune_configs" not in p.parts)


def test_imports_point_down() -> None:
    modules = {module_name(p) for p in sources()}
    faults = [fault for path in sources() for fault in import_faults(path, path.read_text(), modules)]
    assert not faults, "\n".join(faults)


def test_docstrings_name_the_floor_of_their_module() -> None:
    said = {path: re.match(r"Floor (\d+)\.", ast.get_docstring(ast.parse(path.read_text())) or "") for path in sources()}
    wrong = [f"{module_name(path)}: {found[0]}" for path, found in said.items() if found and int(found[1]) != floor_of(module_name(path))]
    assert not wrong, "\n".join(wrong)


def test_programs_only_in_kernels_and_no_prints() -> None:
    faults = [fault for path in sources() for fault in call_faults(path, path.read_text())]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("formats/int4.py", "from ..scheme import Scheme", "imports tritonq.scheme"),
        ("formats/__init__.py", "from .. import scheme", "imports tritonq.scheme"),
        ("formats/int4.py", "def f():\n    import tritonq.plans.core", "imports tritonq.plans.core"),
        ("scheme.py", "import tritonq", "imports tritonq (floor 8)"),
        ("scheme.py", "from .reference import quantize", "imports tritonq.reference"),
        ("kernels/quantize.py", "from ..reference import quantize", "must not know"),
        ("surprise.py", "x = 1", "no floor"),
    ],
)
def test_a_planted_import_is_caught(file: str, source: str, expected: str) -> None:
    modules = {"tritonq", "tritonq.scheme", "tritonq.reference", "tritonq.plans.core", "tritonq.formats"}
    assert expected in "\n".join(import_faults(PACKAGE / file, source, modules))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("formats/int4.py", "def f():\n    return tl.program_id(0)"),
        ("plans/core.py", "print('x')"),
        ("ops.py", "tl.num_programs(0)"),
    ],
)
def test_a_planted_call_is_caught(file: str, source: str) -> None:
    assert call_faults(PACKAGE / file, source)


def test_downward_imports_and_cli_prints_pass() -> None:
    modules = {"tritonq.errors", "tritonq.formats"}
    assert not import_faults(PACKAGE / "plans" / "core.py", "from ..errors import X\nfrom .. import formats\nimport torch", modules)
    assert not call_faults(PACKAGE / "cli" / "demo.py", "print('x')")
    assert not call_faults(PACKAGE / "kernels" / "q.py", "tl.program_id(0)")
