"""The recorder: write the results queue into the timeline."""

import sys

from workers.process import startup
from workers.recorder.worker import record_results

if __name__ == "__main__":
    sys.exit(startup.run_program("recorder", record_results))
