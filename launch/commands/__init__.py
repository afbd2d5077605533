"""The subcommands. These modules import click alone at the top, so that ``--help`` stays fast."""
