"""The command ``cpips``. Each command imports what it needs when it runs, so that ``cpips --help`` is quick."""


def main() -> None:
    """Run the command line of this process; always ends in SystemExit."""
    from .app import app

    app()
