"""Imports point to an earlier layer, never back (the table of docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "scoremle"
LAYERS = (
    ("arrays", "errors"),
    ("numerics", "divergence"),
    ("ode", "sde", "pixels", "nn"),
    ("times", "parameterization", "dequantize", "flow", "multistep"),
    ("loss", "likelihood", "sample", "fast", "predictor_corrector", "control"),
    ("bound", "conditional", "nodes", "reference", "importance"),
    ("pilot", "decoder", "flow_loss"),
    # --- above: mathematics. No config, no files, no Flax outside nn ---
    ("files",),
    ("data", "checkpoint", "quality", "metrics", "baselines", "checks", "config_files"),
    ("train", "evaluate", "report", "parts", "objective", "samplers"),
    ("experiment", "official", "features"),
    ("workdir", "tasks", "sampling_run"),
    ("suite",),
    ("training_run", "evaluation_run", "trained"),
    ("modes", "commands"),
    ("cli",),
    ("__main__",),
)
LAYER = {module: i for i, layer in enumerate(LAYERS) for module in layer}
MATHEMATICS = {module for layer in LAYERS[:7] for module in layer}
FRAMEWORKS = {"flax", "optax", "orbax", "ml_collections", "absl", "tensorflow", "torch", "PIL"}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it points"
            of_package = node.module in ("scoremle", "scoremle.nn", "scoremle.data")
            names |= (
                {f"{node.module}.{a.name}" for a in node.names} if of_package else {node.module}
            )
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_to_an_earlier_layer(path):
    module = module_of(path)
    if module == "__init__":  # the flat names that people type
        return
    assert module in LAYER, f"{module} has no layer: give it one, here and in the documentation"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "scoremle" and len(parts) > 1 and parts[1] != module:
            earlier = LAYER[parts[1]] < LAYER[module]
            assert earlier, f"{module} imports {parts[1]}, which is not in an earlier layer"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_mathematics_knows_no_config_no_files_and_no_flax(path):
    allowed = {"flax"} if module_of(path) == "nn" else set()
    if module_of(path) in MATHEMATICS:
        found = {name.split(".")[0] for name in imports(path)} & (FRAMEWORKS - allowed)
        assert not found, f"{module_of(path)} imports {sorted(found)}"
