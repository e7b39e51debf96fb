"""The cases of interrupt_cases.py, in a process that has imported no framework.

The command line imports none either; torch, once imported, crashes where a signal's handler raises.
"""

import subprocess
import sys
from pathlib import Path


def test_interrupts_in_a_process_of_their_own():
    file = Path(__file__).with_name("interrupt_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=file.parent.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout
