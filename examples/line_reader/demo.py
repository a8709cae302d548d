"""From a model to an answer on this machine: each command is shown, then run. `make demo` runs this.

python demo.py
"""

import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = {"python": sys.executable, "edgesdk": str(Path(sys.executable).with_name("edgesdk"))}  # of this environment, whatever PATH says

STORY = (
    "python prepare.py",  # fetch the model, draw samples
    "edgesdk package --quick",  # compress it, prove that it still reads, pack it; without --quick it searches longer
    "edgesdk deploy local",  # bring it to the device, which is this machine
    "python read.py line.png",  # ask it
    "edgesdk bench local line-reader --limit-s 10",  # how long does that take?
    "edgesdk report local",  # what programs have seen so far
)


def main() -> None:
    for command in STORY:
        print(f"\n$ {command}", flush=True)
        program, *arguments = shlex.split(command)
        finished = subprocess.run([PROGRAMS[program], *arguments], cwd=HERE, check=False)
        if finished.returncode:
            sys.exit(finished.returncode)


if __name__ == "__main__":
    main()
