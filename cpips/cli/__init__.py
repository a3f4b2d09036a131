"""The command ``cpips``. Each command imports what it needs when it runs, so that ``cpips --help`` is quick."""


def main() -> None:
    """Run the command line of this process; always ends in SystemExit, or by the signal of Ctrl-C."""
    from .._utils import interrupts

    interrupts.quiet()
    from .app import app

    app()
