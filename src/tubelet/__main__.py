"""``python -m tubelet``: the same as the command ``tubelet``."""

from tubelet.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
