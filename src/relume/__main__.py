"""`python -m relume` is the command line."""

from relume.cli import main

if __name__ == "__main__":
    main()
