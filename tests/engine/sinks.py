"""Every place where a run shows its numbers, held against history.json."""

import json
import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EPOCH_LINE = re.compile(r"Epoch\(val\) \[(\d+)\]\[\d+/\d+\]  +(.*)")
STEPS_LINE = re.compile(r"Epoch\(train\) +\[(\d+)\]\[ *(\d+)/(\d+)\]  (.*)  \(means of (\d+) steps, lr of the last\)")
PAIR = re.compile(r"([\w/]+): ([-\d.e]+)")


def check_sinks(folder: Path, console: str) -> list[dict]:
    """Asserts that console, log file, JSON lines and TensorBoard say what history.json says, and nothing beside it.

    Returns:
        The records of history.json.
    """
    records = json.loads((folder / "history.json").read_text())
    wanted = {(key, r["iter"]): x for r in records for key, x in r.items() if key not in ("iter", "epoch")}
    paths = sorted(folder.glob("*/vis_data/scalars.json"))
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    by_json = {(key, line["step"]): x for line in lines for key, x in line.items() if key not in ("step", "epoch")}
    compare("JSON lines", by_json, wanted, 0.0)
    by_tensorboard = {}
    for path in folder.glob("*/vis_data"):
        events = EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["scalars"]:
            steps = [event.step for event in events.Scalars(tag)]
            assert steps == sorted(set(steps)), f"{tag}: one value for a step, in order"
            by_tensorboard |= {(tag, event.step): event.value for event in events.Scalars(tag)}
    compare("TensorBoard", {key: x for key, x in by_tensorboard.items() if key[0] != "epoch"}, wanted, 1e-6)
    logs = "".join(path.read_text() for path in sorted(folder.glob("*/*.log")))
    for name, text in (("log file", logs), ("console", console)):
        found = {}
        for epoch, values in EPOCH_LINE.findall(text):
            pairs = dict(PAIR.findall(values))
            found |= {(f"val/{key}", int(epoch)): float(x) for key, x in pairs.items() if "time" not in key}
        by_epoch = {(key, r["epoch"]): x for r in records for key, x in r.items() if key.startswith("val/")}
        compare(name, found, by_epoch, 5e-5, relative=False)
        lines = STEPS_LINE.findall(text)
        assert len(lines) == text.count("Epoch(train)"), f"{name}: every line of steps says what its numbers are"
        for epoch, step, steps, values, averaged in lines:
            at = (int(epoch) - 1) * int(steps) + int(step)
            assert int(averaged) == min(10, at)
            pairs = dict(PAIR.findall(values))
            for key in ("loss", "lr"):
                assert abs(float(pairs[key]) - by_json[f"steps/{key}", at]) <= 5e-5, (name, key)
    for record in records:
        assert by_json.get(("steps/lr", record["iter"]), record["lr"]) == record["lr"], "one rate for one step"
    return records


def compare(name: str, found: dict, wanted: dict, tolerance: float, relative: bool = True) -> None:
    """Whether both have the same keys, those of single steps apart, and the same values."""
    assert {key for key in found if not key[0].startswith("steps/")} == set(wanted), name
    assert any(key[0].startswith("steps/") for key in found) or name in ("log file", "console")
    for key, value in wanted.items():
        assert abs(found[key] - value) <= tolerance * (abs(value) if relative else 1) + 1e-12, (name, key)
