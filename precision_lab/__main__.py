"""`python -m precision_lab` is `precision-lab`."""

from _precision_lab_command import main

if __name__ == "__main__":  # worker processes load this file, too
    main()
