"""What every command shares: how it is registered, the display, and the one place that turns errors into exit codes."""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer

from lepton_edge import errors, interrupts
from lepton_edge.cli_options import OUTPUT, QUANTIZE, TUNING, Group
from lepton_edge.errors import LeptonError, LimitError, UsageError


def command(app: typer.Typer, *groups: Group, name: str | None = None) -> Callable[[Callable], Callable]:
    """Register a function as a command; the options of ``groups`` reach it as one namespace ``opts``.

    The docstring is the help text. OUTPUT is always among the groups.
    """
    options = {k: v for g in (*groups, OUTPUT) for k, v in g.items()}

    def wrap(function: Callable) -> Callable:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "opts"]
        extra = [
            inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for k, (kind, default) in options.items()
        ]

        @functools.wraps(function)
        def run(**values: Any) -> None:
            opts = SimpleNamespace(**{k: values.pop(k) for k in options})
            if opts.verbose:
                os.environ["LEPTON_EDGE_VERBOSE"] = "1"
            guarded(lambda: function(**values, opts=opts), opts)

        run.__signature__ = inspect.Signature([*own, *extra])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*own, *extra)}
        del run.__wrapped__  # type: ignore[attr-defined]
        app.command(name, help=help_text(function.__doc__ or ""))(run)
        return function

    return wrap


def help_text(doc: str) -> str:
    """The docstring with its example on lines of its own (\\b keeps click from filling them into a paragraph)."""
    text, _, example = inspect.cleandoc(doc).partition("Example: ")
    lines = [f"  {line.strip().replace('`', '')}" for line in example.split("·")]
    return "\n".join([text.rstrip(), "", "\b", "Example:", *lines])


def run(app: typer.Typer) -> int:
    """Run the command line and return its exit code; a call that typer refuses is told like any other error."""
    opts = SimpleNamespace(as_json="--json" in sys.argv[1:], verbose=False)
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        return errors.EXIT_INTERRUPTED
    except Exception as e:
        # Typer brings its own copy of click or imports the real one: its errors are told by what they can do.
        if not hasattr(e, "format_message"):
            raise
        if type(e).__name__ == "NoArgsIsHelpError":
            typer.echo(e.format_message(), err=True)
        else:
            command = getattr(getattr(e, "ctx", None), "command_path", "lepton-edge")
            say(UsageError(e.format_message(), f"see '{command} --help'"), opts)
        return errors.EXIT_USAGE
    return code if isinstance(code, int) else errors.EXIT_OK


def guarded(action: Callable[[], None], opts: SimpleNamespace) -> None:
    """Run a command; every way it can end becomes a line for the user and an exit code."""
    interrupts.listen()
    try:
        action()
        if opts.as_json:
            typer.echo(json.dumps(opts.document, indent=1, default=str))
    except LeptonError as e:
        fail(e, opts)
    except KeyboardInterrupt:
        from lepton_edge.launch import close_all

        close_all()
        interrupts.ignore()
        text = "interrupted; finished steps are kept, so the same command goes on from there"
        if opts.as_json:
            typer.echo(_error_document(text, "", errors.EXIT_INTERRUPTED, opts))
        typer.echo(text, err=True)
        raise typer.Exit(errors.EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of our output has gone (head, a closed pager): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(errors.EXIT_ERROR) from None
    except OSError as e:
        fail(_os_error(e), opts)
    except (typer.Exit, typer.Abort):
        raise
    except Exception as e:
        _bug(e, opts)


def _os_error(e: OSError) -> LeptonError:
    where = f"{e.filename}: " if e.filename else ""
    if e.errno == errno.ENOSPC:
        return LeptonError(
            f"{where}the disk is full",
            "free some space, or choose another folder with --out or LEPTON_EDGE_CACHE",
        )
    if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return LeptonError(f"{where}cannot be read or written ({e.strerror})", "check its permissions")
    return LeptonError(f"{where}{e.strerror or e}", "check the path")


def say(error: LeptonError, opts: SimpleNamespace) -> None:
    """What is wrong and how to mend it: a line each, and one JSON document with --json."""
    message, hint = (" ".join(text.split()) for text in (error.message, error.hint))
    if opts.as_json:
        typer.echo(_error_document(message, hint, error.exit_code, opts))
    typer.echo(f"error: {message}", err=True)
    if hint:
        typer.echo(f"hint: {hint}", err=True)


def _error_document(message: str, hint: str, code: int, opts: SimpleNamespace) -> str:
    """The one JSON document of a command that failed; a result that was ready before (a limit not met) is in it."""
    result = getattr(opts, "document", None)
    error = {"message": message, "hint": hint, "exit_code": code}
    return json.dumps({**(result if isinstance(result, dict) else {}), "error": error}, indent=1, default=str)


def fail(error: LeptonError, opts: SimpleNamespace) -> None:
    """Say what is wrong and exit with the error's code."""
    say(error, opts)
    if opts.verbose:
        import traceback

        traceback.print_exception(error)
    raise typer.Exit(error.exit_code)


def _bug(error: Exception, opts: SimpleNamespace) -> None:
    import traceback

    at = traceback.extract_tb(error.__traceback__)[-1]
    text = f"internal error: {type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"
    if opts.verbose:
        traceback.print_exception(error)
    bug = LeptonError(text, "this is a defect of lepton-edge; run again with -v and report the traceback")
    bug.exit_code = errors.EXIT_BUG
    say(bug, opts)
    raise typer.Exit(errors.EXIT_BUG)


def progress(opts: SimpleNamespace):
    """The progress display that the options ask for."""
    from lepton_edge.progress import progress_for

    return progress_for(quiet=opts.quiet or opts.as_json)


def recipe_from(opts: SimpleNamespace, base: Any = None, *, presets: bool = False):
    """The recipe of a command: the file given (else ``base``, else the defaults), with the options laid over it.

    ``presets``: the command also takes the name of a preset. Raises UsageError for what is neither, and for a preset
    where none is taken.
    """
    from lepton_edge import recipe as recipes

    preset = _preset(opts.recipe) if opts.recipe else ""
    if preset and not presets:
        raise UsageError(
            f"'{preset}' is a preset, and presets are for compress", f"lepton-edge compress --recipe {preset}"
        )
    r = recipes.load(opts.recipe) if opts.recipe and not preset else base or recipes.Recipe()
    if preset:
        r = recipes.override(r, "compress", preset=preset)
    given = vars(opts)
    r = recipes.override(
        r,
        "data",
        calibration=given.get("data"),
        evaluation=given.get("evaluation"),
        training=given.get("train"),
        samples=given.get("samples"),
        evaluation_samples=given.get("evaluation_samples"),
    )
    r = recipes.override(
        r,
        "compress",
        device=given.get("device"),
        seed=given.get("seed"),
        max_drop=given.get("max_drop"),
        max_size=given.get("max_size"),
        max_latency=given.get("max_latency"),
        to=given.get("to"),
    )
    if chosen := {k: given[k] for k in QUANTIZE if given.get(k)}:
        import dataclasses

        r = dataclasses.replace(r, quantize={**r.quantize, **chosen})
    r = recipes.override(r, "bench", **{k: given.get(k) for k in ("seconds", "threads", "cpus", "processes")})
    if given.get("preprocess"):
        import dataclasses

        from lepton_edge.preprocess import from_dict

        from_dict(given["preprocess"], "--preprocess")
        r = dataclasses.replace(r, preprocess={**r.preprocess, "preset": given["preprocess"]})
    return r


def _preset(path: Path) -> str:
    """The preset that is meant by what was given as a recipe; "" for a file."""
    if path.suffix or path.name != str(path):
        return ""
    from lepton_edge.chains import presets

    known = list(presets())
    if str(path) not in known and not path.is_file():
        raise UsageError(f"{path}: no such recipe file, and no preset", errors.did_you_mean(str(path), known))
    return str(path) if str(path) in known else ""


def tuning(opts: SimpleNamespace) -> dict[str, Any]:
    """The options of TUNING that were given, by name."""
    return {name: value for name in TUNING if (value := getattr(opts, name)) is not None}


def conversion(opts: SimpleNamespace):
    """What the options of CONVERT ask of a conversion."""
    from lepton_edge.conversion import Conversion

    shapes, values = (";".join(given or ()) for given in (opts.input_shape, opts.fix))
    return Conversion(shapes, opts.batch, values, opts.dtype, opts.runtime_release, opts.trust)


def names(text: str | None) -> tuple[str, ...] | None:
    """A comma-separated option as a tuple. Raises UsageError when it is empty."""
    if text is None:
        return None
    found = tuple(t.strip() for t in text.split(",") if t.strip())
    if not found:
        raise UsageError("an empty list was given", "for example --to tflite,onnx")
    return found


def counts(text: str | None, option: str) -> tuple[int, ...]:
    """A list of whole numbers above 0, "1,2,4", as a tuple; () for none. Raises UsageError."""
    words = [t.strip() for t in text.split(",")] if text is not None else []
    if not all(w.isdecimal() and int(w) > 0 for w in words):
        raise UsageError(f"{option} {text}: not a list of whole numbers above 0", f"for example {option} 1,2,4")
    return tuple(dict.fromkeys(int(w) for w in words))


def emit(data: Any, opts: SimpleNamespace, show: Callable[[], None]) -> None:
    """Print the result: JSON for machines (once the command has ended), else what ``show`` prints, else nothing."""
    if opts.as_json:
        opts.document = data
    elif not opts.quiet:
        show()


def check_drop(made: dict, limit: float | None) -> None:
    """Raise LimitError where an artefact lost more points of top-1 than allowed, or none were measured."""
    drop = made["drop_points"]
    if limit is not None:
        if drop is None:
            raise LimitError(
                "--max-drop was given, and there are no labels to measure it",
                "add labelled samples with --eval",
            )
        if drop > limit:
            raise LimitError(
                f"top-1 drops {drop:.2f} points, more than the {limit:g} allowed",
                f"{made['path']} was written",
            )
