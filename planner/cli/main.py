"""`planner`: finds its commands by file name and turns every failure into one sentence.

Exit codes: 0 done, 1 unexpected, 2 usage, 3 no plan meets the goal, 4 not certified, 5 the policy
does not fit, 6 invalid file, 7 interrupted and resumable.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import click

from planner import __version__
from planner.errors import PlannerError, UsageError, nearest

_HERE = Path(__file__).parent
_COMMAND = re.compile(r"^(def command\(|command\s*=)", re.MULTILINE)
_OFF = {"", "0", "false", "no"}
_BESIDE_THE_POINT = {
    "torch.utils._pytree": "is an Enum subclass",
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",
}
"""Warnings of torchao's import, which no user of planner can act on, by logger."""


class Commands(click.Group):
    """A group whose commands are the files beside this one; a new file edits nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the files that define `command`, with hyphens; none of them is imported."""
        del ctx
        files = (file for file in _HERE.glob("*.py") if _COMMAND.search(file.read_text("utf-8")))
        return sorted(file.stem.replace("_", "-") for file in files)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command's file; None where there is none of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = import_module(f"planner.cli.{_file(cmd_name).stem}")
        if not isinstance(module.command, click.Command):
            way_out = "decorate `command` in it with @click.command()"
            raise PlannerError(f"{module.__name__} has no click command", way_out=way_out)
        return module.command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the first sentence of each docstring, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(name)) for name in self.list_commands(ctx)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is a usage error that names the nearest."""
        if not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            way_out = nearest(args[0], self.list_commands(ctx))
            raise UsageError(f"no command is called {args[0]!r}", value=args[0], way_out=way_out)
        return super().resolve_command(ctx, args)


def _file(name: str) -> Path:
    return _HERE / f"{name.replace('-', '_')}.py"


def _summary(name: str) -> str:
    """Return the first line of the docstring of a command's function."""
    for node in ast.parse(_file(name).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == "command":
            return (ast.get_docstring(node) or "").partition("\n")[0].rstrip(".")
    return ""


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an unexpected error.")
@click.version_option(__version__, message="planner %(version)s")
def commands(debug: bool) -> None:
    """Find out which optimizations make a diffusion pipeline fast enough, and prove it.

    `planner tune --budget 2s` searches on the embedded model and writes a policy with its
    evidence; `planner.load(FILE).apply(pipe)` puts it on a pipeline.
    """
    del debug  # read from the arguments by `main`, which must know it when nothing was parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code; every failure is one sentence on stderr."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code that the house documents."""
    for logger, said in _BESIDE_THE_POINT.items():
        logging.getLogger(logger).addFilter(_without(said))
    color = False if os.environ.get("NO_COLOR") else None
    try:
        code = commands.main(list(arguments), "planner", standalone_mode=False, color=color)
    except PlannerError as error:
        return _say(str(error), error.exit_code)
    except click.Abort:
        return _say("interrupted: nothing finished is lost; `planner tune --resume` and `planner "
                    "bench caching --resume` go on", 7)  # fmt: skip
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        return _say(_usage(error), error.exit_code)
    except Exception as error:
        return _unexpected(error, arguments)
    return code if isinstance(code, int) else 0


def _without(said: str) -> Callable[[logging.LogRecord], bool]:
    """Return a filter that drops messages with these words."""
    return lambda record: said not in record.getMessage()


def _say(message: str, code: int) -> int:
    click.echo(f"planner: {message}", err=True)
    return code


def _usage(error: click.ClickException) -> str:
    """Word click's complaints like planner's own: what, value, way out."""
    if isinstance(error, click.NoSuchOption):
        known = [] if error.ctx is None else [
            name for option in error.ctx.command.params for name in (*option.opts,)
            if name.startswith("--")
        ]  # fmt: skip
        return f"no option is called {error.option_name!r}: {nearest(error.option_name, known)}"
    path = getattr(getattr(error, "ctx", None), "command_path", "planner")
    return f"{error.format_message().rstrip('.')}: see `{path} --help`"


def _unexpected(error: Exception, arguments: Sequence[str]) -> int:
    """Report a failure that planner did not foresee: a sentence, or its traceback if asked."""
    if "--debug" in arguments or os.environ.get("PLANNER_DEBUG", "").lower() not in _OFF:
        import traceback

        traceback.print_exception(error)
    first = (str(error).strip() or "no message").splitlines()[0]
    hint = "`planner --debug …` (or PLANNER_DEBUG=1) shows the traceback"
    return _say(f"unexpected {type(error).__name__} ({first}): {hint}", 1)


if __name__ == "__main__":
    main()
