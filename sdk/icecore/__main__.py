"""`python -m icecore` is the command line `icecore`."""

from icecore.cli import main

if __name__ == "__main__":
    main()
