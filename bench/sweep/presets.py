"""The presets that come with resbench, and those that people write. Imports no torch."""

from pathlib import Path

from bench.sweep.axes import Preset
from bench.sweep.preset_file import parse

PRESETS = Path(__file__).with_name("presets")


def preset_names() -> tuple[str, ...]:
    """The names of the presets that come with resbench."""
    return tuple(sorted(file.stem for file in PRESETS.glob("*.toml")))


def load_preset(name_or_path: str) -> Preset:
    """Read a preset of ours by its name, or somebody's own by the path of its TOML file.

    Raises:
        ValueError: there is no such preset, or it is malformed; the message names the file, the line and the key.
    """
    ours = name_or_path in preset_names()
    file = PRESETS / f"{name_or_path}.toml" if ours else Path(name_or_path)
    if not ours and file.suffix != ".toml":
        names = ", ".join(preset_names())
        raise ValueError(f"unknown preset {name_or_path!r}: choose from {names}, or give the path of a .toml file")
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read the preset {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read the preset {file}: it is not UTF-8 text") from error
    written = parse(text, file)
    return Preset(
        name=file.stem,
        summary=written.summary,
        settings=written.settings,
        blocks=written.sweep,
        budget_s=written.budget_s,
    )
