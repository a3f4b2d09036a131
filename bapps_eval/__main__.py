from cpips._utils import interrupts


def main() -> None:
    """Run the command line of this process; always ends in SystemExit, or by the signal of Ctrl-C."""
    interrupts.quiet()
    from .cli import app

    app()


if __name__ == "__main__":
    main()
