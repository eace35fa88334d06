"""Which module imports which, read from the code; ``make picture`` draws the rooms of the house."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: made by make picture -->\n", "<!-- /rooms -->"

# From the top to the bottom. A room is a package, or a module of `worker` itself.
LAYERS = (
    ("cli",),
    ("doctor", "sandbox", "tasks", "web"),
    ("app",),
    ("wiring",),
    ("engine",),
    ("work",),
    ("broker", "registry", "telling", "transfer", "upstream"),
    ("cancelling", "config", "http", "memory", "offload", "parsing", "process", "reach"),
    ("core",),
)


def imports(path: Path) -> set[str]:
    """Full names of everything a module imports, wherever in it the import is."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@functools.cache
def modules() -> dict[str, Path]:
    """Every module that has any code, by its full name."""
    paths = [path for package in ("worker", "config") for path in (ROOT / package).rglob("*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
        if path.read_text().strip()
    }


@functools.cache
def graph() -> dict[str, set[str]]:
    """The modules that each module imports, for its types and inside functions included."""
    edges: dict[str, set[str]] = {}
    for name, path in modules().items():
        found = (imports(path) & modules().keys()) - {name}
        # a package is named on the way to a module of it
        edges[name] = {m for m in found if not any(o.startswith(f"{m}.") for o in found)}
    return edges


def room(module: str) -> str:
    """The room of a module. The errors belong to the core."""
    top, *rest = module.split(".")
    if top == "config" or not rest:
        return top
    return "core" if rest[0] == "errors" else rest[0]


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Names that lead back to the first of them; empty if none do."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def between_rooms(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The rooms that each room imports from."""
    found: dict[str, set[str]] = {}
    for name, imported in edges.items():
        found.setdefault(room(name), set()).update(map(room, imported))
    return {name: others - {name} for name, others in found.items()}


def reachable(edges: Mapping[str, set[str]], start: str) -> set[str]:
    """All that can be reached from a name; the names must form no circle."""
    return edges[start].union(*(reachable(edges, other) for other in edges[start]))


def picture() -> str:
    """The rooms as a Mermaid diagram, without arrows that others make superfluous."""
    edges = between_rooms(graph())
    lines = ["```mermaid", "flowchart TD"]
    for number, layer in enumerate(LAYERS):
        if len(layer) > 1:
            lines += [f'  subgraph L{number}[" "]', "    direction LR"]
            lines += [f"    {name}" for name in layer]
            lines.append("  end")
        else:
            lines.append(f"  {layer[0]}")
    for name in sorted(edges):
        beyond = set[str]().union(*(reachable(edges, other) for other in edges[name]))
        lines += [f"  {name} --> {other}" for other in sorted(edges[name] - beyond)]
    return "\n".join([*lines, "```", ""])


def main() -> None:
    """Draw the picture in the docs again."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{picture()}{END}{after}")


if __name__ == "__main__":
    main()
