"""The `fedpipe` command. Steps skip the command line's libraries, so that containers start fast."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command and returns its exit code."""
    if sys.argv[1:2] == ["step"] and not {"--help", "-h"} & set(sys.argv[2:]):
        from fedpipe.steps.supervision import main as step

        return step(sys.argv[2:])
    try:
        from fedpipe.cli.main import main as command
    except KeyboardInterrupt:  # Ctrl-C during the imports
        print("\nstopped; run the same command again to resume", file=sys.stderr)
        return 130
    return command()


if __name__ == "__main__":
    sys.exit(main())
