"""`cachesvc certs`: certificates to start with."""

from __future__ import annotations

from pathlib import Path

import click

from cachesvc import certificates


@click.command(epilog="Example:  cachesvc certs --out certs --name cache.internal > cachesvc.toml")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where to write them.")
@click.option("--name", "names", multiple=True, help="A name or address of the service.")
@click.option("--tenant", default="default", show_default=True, help="Whose client and admin.")
@click.option("--force", is_flag=True, help="Write over what stands there.")
def certs(out: Path, names: tuple[str, ...], tenant: str, *, force: bool) -> None:
    """Make a CA, and certificates for the service, a client and an admin.

    Prints the settings that use them, for cachesvc.toml; operators' commands then take --cert-file
    and --key-file of the admin. Keep ca.key away from the service.
    """
    made = certificates.make(
        out,
        service_names=[*names, *certificates.DEFAULT_NAMES],
        tenant=tenant,
        force=force,
    )
    click.echo(made.toml)
