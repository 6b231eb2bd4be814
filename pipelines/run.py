"""`python -m pipelines.run paper=sds` is `effllm run paper=sds`."""

import sys

from effllm.pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
