"""Lists the paths, the presets and the models. Imports no torch."""

import click

from bench.sweep.cases import expand
from bench.sweep.presets import load_preset, preset_names
from bench.terminal.exits import UNJUDGED
from bench.terminal.options import epilog
from bench.terminal.output import Output
from bench.terminal.tables import Rows, table
from resnet.models.table import NETWORKS
from resnet.paths import PATHS


def paths() -> Rows:
    """The table of paths: what each is, which modes it has and what it needs."""
    return [
        {"path": path.name, "what it is": path.summary, "modes": list(path.modes), "needs": list(path.needs)}
        for path in PATHS
    ]


def presets() -> Rows:
    """The presets that come with resbench, with the number of their cases."""
    loaded = map(load_preset, preset_names())
    return [{"preset": preset.name, "cases": len(expand(preset)), "what it is": preset.summary} for preset in loaded]


def models() -> Rows:
    """The models: their residual block and its repeats in each stage, what goes in and comes out, and weights."""
    return [
        {
            "model": name,
            "block": network.block,
            "blocks": list(network.blocks),
            "input": list(network.input),
            "classes": network.classes,
            "weights": "published" if network.published else "none published",
        }
        for name, network in NETWORKS.items()
    ]


LISTS = {"paths": paths, "presets": presets, "models": models}


@click.command("list", epilog=epilog("resbench list paths", "resbench list presets --json", exits=UNJUDGED))
@click.argument("what", type=click.Choice(tuple(LISTS)))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array on stdout.")
def list_(*, what: str, as_json: bool) -> None:
    """List the paths, presets or models."""
    rows = LISTS[what]()
    output = Output(as_json=as_json)
    if as_json:
        output.json(rows)
    else:
        output.console().print(table(rows))
