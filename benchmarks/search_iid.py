"""Does a search find an answer where there is none? Searches on independent tokens, which no context predicts.

    python benchmarks/search_iid.py [--searches 20] [override ...]

Each search has a source and a seed of its own. The right answer of each is that nothing certifies.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

OVERRIDES = ["model.num_layers=0,1", "model.hidden_dim=range(2,9)", "trainer.total_steps=100"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("overrides", nargs="*", default=OVERRIDES)
    arguments = parser.parse_args()
    false_answers = 0
    for number in range(arguments.searches):
        with tempfile.TemporaryDirectory() as folder:
            words = ["data=iid", f"data.seed={number}", f"seed={100 * number}", *arguments.overrides]
            command = [sys.executable, "-m", "marble_sweep", "--multirun", "hydra/sweeper=smallest", *words]
            subprocess.run([*command, f"hydra.sweep.dir={folder}"], check=True, stderr=subprocess.DEVNULL)
            found = json.loads(Path(folder, "search.json").read_text(encoding="utf-8"))
        answer = found["thresholds"][0]["answer"]
        confirmed = answer is not None and answer["confirmed"]
        false_answers += confirmed
        told = "nothing certifies" if answer is None else f"{answer['size']} (confirmed: {confirmed})"
        certified = found["outcomes"].get("certified", 0)
        print(
            f"search {number}: {told}; {found['ended']} after {found['trials']} trials, {certified} certified, "
            f"{found['seconds']:.0f} s",
            flush=True,
        )
    print(f"{false_answers} false answers in {arguments.searches} searches")


if __name__ == "__main__":
    main()
