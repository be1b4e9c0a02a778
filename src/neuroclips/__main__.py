"""``python -m neuroclips``, for launchers: ``accelerate launch --num_processes 2 -m neuroclips fit RECIPE``."""

from neuroclips.cli import main

if __name__ == "__main__":
    main()
