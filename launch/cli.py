"""The ``ovtrain`` command: a dict from subcommand to "module:function", resolved when called.

Exit status: 0 done, 2 an error of the input or of the command line (one ``error:`` line, no
traceback), 130 interrupted, otherwise the status of the job that was started.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from ovtrain.schema.errors import exit_status

COMMANDS: dict[str, str] = {
    "demo": "launch.commands.demo:demo",
    "prepare": "launch.commands.data:prepare",
    "cluster": "launch.commands.cluster:cluster",
    "train": "launch.commands.training:train",
    "profile": "launch.commands.training:profile",
    "plan": "launch.commands.training:plan",
    "probe": "launch.commands.training:probe",
    "export": "launch.commands.training:export",
    "report": "launch.commands.inspection:report",
    "watch": "launch.commands.inspection:watch",
    "data": "launch.commands.data:data",
    "codec": "launch.commands.codec:codec",
    "launch": "launch.commands.slurm:launch",
}


class LazyGroup(click.Group):
    """Imports a command's module only when that command is asked for (or listed)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, name = target.partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command), target
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ovtrain")
def cli() -> None:
    """Pretrain OneVision-Encoder-style vision encoders from codec-selected patches."""


def run(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    try:
        return exit_status(lambda: _status(arguments))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130


def _status(arguments: list[str] | None) -> int:
    status = cli.main(args=arguments, prog_name="ovtrain", standalone_mode=False)
    return status if isinstance(status, int) else 0


def main() -> None:
    sys.exit(run())


if __name__ == "__main__":
    main()
