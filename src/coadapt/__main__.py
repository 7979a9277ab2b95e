"""``python -m coadapt``, the same as the command ``coadapt``."""

from coadapt.cli import main

if __name__ == "__main__":
    main()
