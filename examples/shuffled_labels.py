"""Shows the purpose of a vote: of five learners one has shuffled labels; collective learning and plain averaging.

    python examples/shuffled_labels.py shuffled [ROUNDS]

Four learners share handwritten digits; the fifth brings its own, with labels in a random order. The same learners learn
twice: by proposals and votes, then by plain averaging. `shuffled/report.html` shows both runs.
"""

import sys
from pathlib import Path

import numpy as np
import yaml

import fedpipe
from fedpipe.commands.compare import report


def write_data(folder: Path) -> None:
    """Write a fifth of the digits, with shuffled labels, to a file of its own."""
    with np.load(folder / "digits.npz") as digits:
        x, y = digits["x"], digits["y"]
    draw = np.random.default_rng(5)
    order = draw.permutation(len(y))
    own, shared = np.split(order, [len(y) // 5])
    np.savez_compressed(folder / "shared.npz", x=x[shared], y=y[shared])
    np.savez_compressed(folder / "shuffled.npz", x=x[own], y=draw.permutation(y[own]))


def write_federation(folder: Path, algorithm: dict, rounds: int) -> Path:
    """Write the federation of the same learners and one algorithm, from fresh weights."""
    content = yaml.safe_load((folder / "federation.yaml").read_text())
    content["data"]["uri"] = "shared.npz"
    content["learners"][4]["data"] = "shuffled.npz"
    content["training"] |= {"rounds": rounds, "start": "fresh"}
    content["algorithm"] = algorithm
    path = folder / f"{algorithm['name']}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def learn(folder: Path, rounds: int) -> dict[str, dict]:
    """Run both, write the report, and return the two summaries."""
    write_data(folder)
    found = {}
    for algorithm in ({"name": "collective"}, {"name": "averaging"}):
        file, name = write_federation(folder, algorithm, rounds), algorithm["name"]
        print(f"{name}: {rounds} rounds", flush=True)
        found[name] = fedpipe.run(file, name=name, out=folder / name).summary
    report(folder / "collective.yaml", "collective", folder / "report.html", beside=["averaging"])
    return found


def tell(found: dict[str, dict], folder: Path) -> None:
    """Print how often each learner was accepted, and the accuracy of both runs."""
    rounds = [entry["vote"] for entry in found["collective"]["rounds"] if entry["round"]]
    for name in rounds[0]["learners"]:
        mine = [vote for vote in rounds if vote["proposer"] == name]
        print(f"{name}: {sum(vote['accepted'] for vote in mine)} of {len(mine)} proposals accepted")
    for name, summary in found.items():
        print(f"{name}: central accuracy {summary['evaluation']['central']['metrics']['accuracy']:.4f}")
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    from fedpipe.commands.init import Algorithm, init

    target = Path(sys.argv[1])
    init(target, Algorithm.collective, force=True)
    tell(learn(target, int(sys.argv[2]) if len(sys.argv) == 3 else 20), target)
