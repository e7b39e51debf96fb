"""The commands about devices: what is known of them, boards that are added, wheels for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import typer

from lepton_edge import clikit
from lepton_edge.clikit import command, emit

app = typer.Typer(
    help=clikit.help_text("The devices that models are made for.\n\nExample: `lepton-edge devices list`"),
    no_args_is_help=True,
    rich_markup_mode=None,
)


@command(app, name="list")
def devices_list(*, opts: SimpleNamespace) -> None:
    """The known devices.

    Example: `lepton-edge devices list`
    """
    from lepton_edge import show
    from lepton_edge.device import load_devices

    found = [d.to_dict() for d in load_devices().values()]
    emit(found, opts, lambda: show.devices(found))


@command(app, name="add")
def devices_add(
    address: Annotated[str, typer.Argument(help="user@host[:port], or a Host of ~/.ssh/config; with adb a serial.")],
    name: Annotated[str | None, typer.Option("--name", help="What to call it (its host name).")] = None,
    transport: Annotated[str, typer.Option("--transport", help="How it is reached: ssh or adb.")] = "ssh",
    python: Annotated[str | None, typer.Option("--python", metavar="PATH", help="The interpreter there.")] = None,
    temp: Annotated[str | None, typer.Option("--temp", metavar="DIR", help="Where files may lie there.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Ask it again, and write its file anew.")] = False,
    *,
    opts: SimpleNamespace,
) -> None:
    """Reach a board, ask what it is, and keep that in a file.

    It needs SSH and Python 3.9 or later. Host keys are checked as your SSH settings say.

    Example: `lepton-edge devices add pi@raspberrypi.local --name pi`
    """
    from lepton_edge import probe, show

    reach = {key: value for key, value in (("python", python), ("temp", temp)) if value}
    added = probe.add(address, name, transport, reach, replace=replace)
    emit(added, opts, lambda: show.added(added))


@command(app, name="probe")
def devices_probe(
    name: Annotated[str, typer.Argument(help="A name from 'devices list'.")], *, opts: SimpleNamespace
) -> None:
    """Ask a device what it is now: processor, memory, temperature, runtimes.

    Example: `lepton-edge devices probe pi`
    """
    from lepton_edge import probe, show

    found = probe.probe(name)
    emit(found, opts, lambda: show.probed(found))


@command(app, name="remove")
def devices_remove(
    name: Annotated[str, typer.Argument(help="A device that you added.")], *, opts: SimpleNamespace
) -> None:
    """Forget a device that was added.

    Example: `lepton-edge devices remove pi`
    """
    from lepton_edge import probe, show

    files = {"removed": str(probe.remove(name))}
    emit(files, opts, lambda: show.files(files))


@command(app, name="show")
def devices_show(
    name: Annotated[str, typer.Argument(help="A name from 'devices list'.")], *, opts: SimpleNamespace
) -> None:
    """One device in full.

    Example: `lepton-edge devices show raspberrypi4`
    """
    from lepton_edge import show
    from lepton_edge.device import get_device

    found = get_device(name).to_dict()
    emit(found, opts, lambda: show.device(found))


@command(app, name="wheels")
def devices_wheels(
    name: Annotated[str, typer.Argument(help="A name from 'devices list', or a TOML file.")],
    runtime: Annotated[str, typer.Option("--runtime", metavar="NAME", help="The runtime to take along.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where to put the wheels.")],
    python: Annotated[str, typer.Option("--python", metavar="X.Y", help="The device's Python.")] = "3.11",
    glibc: Annotated[str, typer.Option("--glibc", metavar="X.Y", help="The device's C library.")] = "2.36",
    *,
    opts: SimpleNamespace,
) -> None:
    """Fetch the wheels of a runtime for a device that has no network.

    Example: `lepton-edge devices wheels raspberrypi5 --runtime litert -o wheels`
    """
    from lepton_edge import registry, wheelhouse
    from lepton_edge.device import get_device

    made = wheelhouse.for_device(get_device(name), registry.runtime(runtime), out, python=python, glibc=glibc)
    emit([str(path) for path in made], opts, lambda: typer.echo("\n".join(map(str, made))))
