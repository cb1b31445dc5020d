"""Prints the lines of code of each floor, so that growth is seen."""

from pathlib import Path

source = Path(__file__).parents[1] / "src" / "moe_asr"
floors = {
    folder.name: sum(len(file.read_text().splitlines()) for file in folder.rglob("*.py"))
    for folder in sorted(source.iterdir())
    if folder.is_dir() and folder.name != "__pycache__"
}
floors["(top)"] = sum(len(file.read_text().splitlines()) for file in source.glob("*.py"))
print("lines per floor:", ", ".join(f"{name} {lines}" for name, lines in floors.items()), "| all", sum(floors.values()))
