"""`python -m eepolicy.cli`."""

from eepolicy.cli import main

if __name__ == "__main__":
    main()
