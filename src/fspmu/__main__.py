"""`python -m fspmu`: the same commands as `fspmu`."""

from fspmu.cli import main

if __name__ == "__main__":
    main()
