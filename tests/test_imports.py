"""Who may import whom, imports inside functions included."""

import ast
import pathlib

import odvae_jax

PACKAGE = pathlib.Path(odvae_jax.__file__).parent
# Each row may import the rows above it, and none of its own row.
LAYERS = [
    {"files", "scale"},
    {"types", "config", "digests", "flops", "registry", "shipped", "sharding"},
    {"pixels", "lowering"},
    {"posterior", "checks", "layers", "compilation"},
    {"autoencoder", "diffusion"},
    {"baselines"},
    {"parameters", "tiling"},
    {"inference", "inflation", "checkpoints"},
    {"data", "metrics"},
    {"latents"},
    {"calibration"},
    {"transcoding"},
    {"training"},
    {"evaluation"},
    {"ablate", "hub"},
    {"table2"},
    {"cli"},
    {"__main__"},
]
# Where less is allowed than the rows above: readers of videos need neither JAX nor a model.
ONLY = {"data": {"files", "digests"}, "lowering": {"sharding"}, "sharding": set()}
# What `import odvae_jax` offers is imported when it is first asked for.
DOOR = "__init__"


def imports():
    """Pairs of the parts that import and are imported, each with the file that does it."""
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }
    for module, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: a relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                package, *rest = name.split(".")
                if package == "odvae_jax":
                    part = rest[0] if rest and rest[0] in known() else DOOR
                    yield module.split(".")[0], part, path


def known():
    return {path.stem for path in PACKAGE.glob("*.py")} | {
        path.name for path in PACKAGE.iterdir() if path.is_dir()
    }


def test_every_part_has_its_row():
    parts = {name for name in known() if not name.startswith("__pycache__")} - {DOOR}
    assert sorted(parts) == sorted(part for row in LAYERS for part in row)


def test_imports_go_up_the_table_alone():
    row = {part: i for i, parts in enumerate(LAYERS) for part in parts}
    wrong = set()
    for importer, imported, path in imports():
        if importer in (imported, DOOR):
            continue
        if imported == DOOR:  # only the program, for its version
            allowed = importer == "cli"
        elif importer in ONLY:
            allowed = imported in ONLY[importer]
        else:
            allowed = row[imported] < row[importer]
        if not allowed:
            wrong.add(f"{path.relative_to(PACKAGE)} imports {imported}")
    assert not wrong, sorted(wrong)
