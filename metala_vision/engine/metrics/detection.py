"""COCO's mean average precision of a detector."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.registry import METRICS

from metala_vision.data import BoxDataset, rle
from metala_vision.errors import InputError
from metala_vision.files import to_csv, to_json, write_atomic

from .base import GatheredMetric
from .dense_plots import draw_objects

# Names of the first six of COCOeval's twelve numbers.
NAMES = ("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large")


@METRICS.register_module()
class CocoMetric(GatheredMetric[BoxDataset]):
    """mAP (0.5 to 0.95), mAP50, mAP75, and mAP of small, medium and large objects, in [0, 1], by pycocotools.

    With masks also mask_mAP and so on. A number to which no object of the split contributes is left out.

    Args:
        pictures: number of test images that are drawn, with the objects found and the true ones.
        min_score: least score of an object that is drawn.
    """

    def __init__(self, pictures: int = 8, min_score: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        rle.check_installed()
        if pictures < 0:
            raise InputError(f"pictures: got {pictures!r}, expected at least 0")
        self.pictures, self.min_score = pictures, min_score

    def names(self, dataset: BoxDataset) -> tuple[str, ...]:
        return (*NAMES, *(f"mask_{name}" for name in NAMES if dataset.has_masks))

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """One result per image: the objects found, and the true ones."""
        for sample in data_samples:
            target = sample["target"]
            found = {key: value.detach().cpu() for key, value in sample["found"].items()}
            self.results.append(
                dict(
                    image_id=target["image_id"],
                    index=target["index"],
                    size=target["size"],
                    found=_encoded(found, found.get("masks")),
                    truth=_encoded({k: v.cpu() for k, v in target.items() if k in KEYS}, target.get("masks")),
                )
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Computed by COCOeval, for boxes and for masks."""
        self.seen = sorted(results, key=lambda result: result["index"])
        labels = sorted({label for r in results for part in ("found", "truth") for label in r[part]["labels"]})
        self.per_class: dict[str, dict[int, float]] = {}
        metrics: dict[str, float] = {}
        kinds = ["bbox"] + (["segm"] if any("masks" in r["found"] and "masks" in r["truth"] for r in results) else [])
        for kind in kinds:
            truth, found = _as_coco(self.seen, labels, kind)
            numbers, self.per_class[kind] = _coco_eval(truth, found, kind)
            prefix = "mask_" if kind == "segm" else ""
            metrics |= {f"{prefix}{name}": value for name, value in zip(NAMES, numbers) if value >= 0}
        return metrics or {"mAP": 0.0, "mAP50": 0.0}

    def report(self, dataset: BoxDataset, folder: Path) -> dict:
        """Writes `predictions.json` in COCO's result form, `per_class.csv` and pictures; returns their paths."""
        files = {"predictions": folder / "predictions.json", "per_class": folder / "per_class.csv"}
        if is_main_process():
            categories = getattr(dataset, "categories", None)  # ids in COCO's file, in the order of the labels
            write_atomic(files["predictions"], (to_json(_result_form(self.seen, categories)) + "\n").encode())
            rows = [
                {"class": name}
                | {
                    ("mask_" if kind == "segm" else "") + "mAP": _rounded(values.get(label))
                    for kind, values in self.per_class.items()
                }
                | {"objects": sum(r["truth"]["labels"].count(label) for r in self.seen)}
                for label, name in enumerate(dataset.classes, 1)
            ]
            write_atomic(files["per_class"], to_csv(rows))
            for result in self.seen[: self.pictures]:
                picture = draw_objects(dataset[result["index"]], _decoded(result), dataset.classes, self.min_score)
                write_atomic(folder / "pictures" / f"{result['index']:05d}.png", picture)
        pictures = {"pictures": str(folder / "pictures")} if self.pictures else {}
        troubles = {"annotations": dataset.troubles.counts()} if dataset.troubles.counts() else {}
        return {"images": len(self.seen), **{k: str(v) for k, v in files.items()}, **pictures, **troubles}


KEYS = ("boxes", "labels", "scores", "iscrowd", "area")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _encoded(values: dict, masks: torch.Tensor | None) -> dict:
    """Tensors as lists, and masks as run-length codes, which are small enough to keep and to send."""
    out = {key: values[key].tolist() for key in KEYS if key in values}
    if masks is not None:
        binary = masks.cpu().reshape(-1, *masks.shape[-2:])
        out["masks"] = rle.encode((binary if binary.dtype == torch.uint8 else binary >= 0.5).numpy())
    return out


def _decoded(result: dict) -> dict:
    """What was found in an image, with masks as arrays."""
    found = dict(result["found"])
    if found.get("masks"):
        found["masks"] = rle.decode(found["masks"])
    return found


def _as_coco(results: list[dict], labels: list[int], kind: str):
    """The true objects and those found, in pycocotools' form.

    Areas decide which objects are small, medium or large. The area of a true object is the one that the dataset states,
    as COCO does; else that of its mask; else that of its box. The area of an object found is that of its mask where
    masks are compared, and else that of its box.
    """
    from pycocotools.coco import COCO

    truth, found = COCO(), COCO()
    images = [dict(id=r["index"], height=r["size"][0], width=r["size"][1]) for r in results]
    for coco, part in ((truth, "truth"), (found, "found")):
        annotations: list[dict] = []
        for result in results:
            objects = result[part]
            for i, (left, top, right, bottom) in enumerate(objects["boxes"]):
                annotation = dict(
                    id=len(annotations) + 1,
                    image_id=result["index"],
                    category_id=objects["labels"][i],
                    bbox=[left, top, right - left, bottom - top],
                    area=(right - left) * (bottom - top),
                    iscrowd=int(objects["iscrowd"][i]) if "iscrowd" in objects else 0,
                )
                if "scores" in objects:
                    annotation["score"] = objects["scores"][i]
                if objects.get("masks"):
                    annotation["segmentation"] = objects["masks"][i]
                    if part == "truth" or kind == "segm":
                        annotation["area"] = rle.area(objects["masks"][i])
                if "area" in objects:
                    annotation["area"] = objects["area"][i]
                annotations.append(annotation)
        categories = [dict(id=label, name=str(label)) for label in labels]
        coco.dataset = dict(images=images, annotations=annotations, categories=categories)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            coco.createIndex()
    return truth, found


def _coco_eval(truth, found, kind: str) -> tuple[list[float], dict[int, float]]:
    """COCOeval's first six numbers, -1 where there is nothing to average, and the mAP of each label."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]  # [thresholds, recalls, labels, areas, most detections]
    per_class = {}
    for i, label in enumerate(evaluation.params.catIds):
        values = precision[:, :, i, 0, -1]
        if (values > -1).any():
            per_class[label] = float(values[values > -1].mean())
    return [float(value) for value in evaluation.stats[:6]], per_class


def _result_form(results: list[dict], categories: list[int] | None) -> list[dict]:
    """Detections as COCO's servers and tools take them."""
    entries = []
    for result in results:
        found = result["found"]
        for i, (left, top, right, bottom) in enumerate(found["boxes"]):
            label = found["labels"][i]
            entry = dict(
                image_id=result["image_id"],
                category_id=label if categories is None else categories[label - 1],
                bbox=[round(x, 2) for x in (left, top, right - left, bottom - top)],
                score=round(found["scores"][i], 5),
            )
            if found.get("masks"):
                code = found["masks"][i]
                entry["segmentation"] = dict(size=code["size"], counts=code["counts"].decode())
            entries.append(entry)
    return entries
