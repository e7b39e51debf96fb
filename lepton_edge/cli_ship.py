"""The commands that bring models to where they are used: bundle and deploy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import typer

from lepton_edge import clikit
from lepton_edge.clikit import command, emit, progress
from lepton_edge.errors import UsageError

app = typer.Typer()


@command(app)
def deploy(
    bundle: Annotated[Path | None, typer.Argument(help="The bundle folder of a run.")] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="A device that can be reached, or its TOML file.")
    ] = None,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="The folder of applications there.")] = "~/lepton-edge",
    name: Annotated[str, typer.Option("--name", metavar="APP", help="The application (the model's name).")] = "",
    wheels: Annotated[
        Path | None,
        typer.Option(
            "--wheels", metavar="DIR", help="Carry the runtime along from these wheels; an empty folder is filled."
        ),
    ] = None,
    service: Annotated[bool, typer.Option("--service", help="Also a systemd service of the user there.")] = False,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="Whose signature the bundle must have (public key).")
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to the version before.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show the applications there and their versions.")] = False,
    *,
    opts: SimpleNamespace,
) -> None:
    """Bring a bundle to a device, and switch to it once it has proved itself there.

    Files and signature are verified on the device, the runtime is checked or installed, and the self-test is run there.
    Only then does the link 'current' lead to the new version; whatever fails before, the old one goes on. The last
    three versions are kept.

    Example: `lepton-edge deploy lepton-out/bundle --device pi` · `lepton-edge deploy --rollback --device pi --name cnn`
    """
    from lepton_edge import api, show_ship

    if device is None:
        raise UsageError("no device was named", "with --device, a name from 'devices list' or a TOML file")
    if sum((bundle is not None, rollback, list_)) != 1:
        raise UsageError("give a bundle, or --rollback, or --list", "one of the three")
    if list_:
        found = api.deployments(device, root=to, name=name, progress=progress(opts))
        emit(found, opts, lambda: show_ship.applications(found))
    elif rollback:
        if not name:
            raise UsageError("which application should go back is not said", "with --name; 'deploy --list' shows them")
        back = api.rollback(device, name, root=to, progress=progress(opts))
        emit(back, opts, lambda: show_ship.rolled_back(back))
    elif bundle is not None:
        done = api.deploy(
            bundle, device, root=to, name=name, wheels=wheels, units=service, key_file=key, progress=progress(opts)
        )
        emit(done, opts, lambda: show_ship.deployed(done))


@command(app)
def bundle(
    source: Annotated[Path, typer.Argument(help="A run folder of 'compress', or a bundle.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to write the bundle.")] = None,
    candidate: Annotated[
        str | None, typer.Option("--candidate", metavar="NAME", help="Another candidate than the picked one.")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="Sign it: a private key of OpenSSH or minisign.")
    ] = None,
    oci: Annotated[
        Path | None, typer.Option("--oci", metavar="FILE", help="Also an OCI image archive (.tar) that runs it.")
    ] = None,
    arch: Annotated[str, typer.Option("--arch", metavar="LIST", help="Its platforms: amd64, arm64.")] = "amd64,arm64",
    base: Annotated[
        list[Path] | None,
        typer.Option("--base", metavar="FILE", help="Build on this root file system (.tar) or OCI layout, not Debian."),
    ] = None,
    *,
    opts: SimpleNamespace,
) -> None:
    """The deployable folder of a run's model, made again; signed; as a container image.

    Of a bundle nothing is made again: it is signed, or put in an image. An image holds Debian's Python (by mmdebstrap,
    or what --base names), the runtime from its wheels for each platform, and the bundle.

    Example: `lepton-edge bundle lepton-out --sign ~/.ssh/id_ed25519 --oci model.tar`
    """
    from lepton_edge import api, show_ship

    archs = clikit.names(arch) or ()
    made = api.bundle(
        source, out, candidate=candidate, key=sign, image=oci, archs=archs, bases=base or (), progress=progress(opts)
    )
    emit(made, opts, lambda: show_ship.bundled(made))
