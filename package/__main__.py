"""The command, as `python -m weightcast`."""

from weightcast.start import main

if __name__ == "__main__":
    main()
