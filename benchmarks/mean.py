"""Mean of ten updates of 100 MB held in memory, compared with Flower and NVFlare."""

from __future__ import annotations

from benchmarks.measure import Row, at_least, median, script


def run() -> list[Row]:
    """Throughput in MB of updates per second."""
    seconds = {
        name: median(script(environment, f"peers/mean_{name}.py")["seconds"])
        for name, environment in (("ours", "ours"), ("flower", "bench"), ("nvflare", "bench"))
    }
    speed = {name: 1000 / s for name, s in seconds.items()}
    return [
        at_least(f"mean of 10 x 100 MB against {name}", speed["ours"], speed[name], name, 2.0, "MB/s")
        for name in ("flower", "nvflare")
    ]
