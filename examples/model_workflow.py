"""Preprocess, train with checkpoints, evaluate what is in staging, promote it, and ask what is in production."""

import json
import random
from pathlib import Path

import icecore as wandb

PROJECT = "churn"
EPOCHS = 20


def preprocess(rows: int) -> None:
    """A dataset of its own version."""
    with wandb.init(project=PROJECT, job_type="preprocess", config={"rows": rows}) as run:
        data = wandb.Artifact("customers", type="dataset", metadata={"rows": rows})
        with data.new_file("customers.csv") as file:
            file.write("months,churned\n")
            for number in range(rows):
                file.write(f"{number % 60},{number % 60 < 20}\n")
        run.log_artifact(data)


def train(lr: float) -> None:
    """A model, and a checkpoint of it every five epochs."""
    with wandb.init(project=PROJECT, job_type="train", config={"lr": lr, "epochs": EPOCHS}) as run:
        folder = run.use_artifact("customers:latest").download()
        rows = len(Path(folder, "customers.csv").read_text().splitlines()) - 1
        accuracy = 0.5
        for epoch in range(1, EPOCHS + 1):
            accuracy += (min(0.95, 0.7 + rows / 2000) - accuracy) * min(1.0, lr * 3)
            run.log({"val/accuracy": accuracy}, step=epoch)
            if epoch % 5 == 0:
                checkpoint = wandb.Artifact(
                    "model", type="model", metadata={"epoch": epoch, "accuracy": round(accuracy, 3)}
                )
                with checkpoint.new_file("weights.json") as file:
                    json.dump({"threshold": 20, "epoch": epoch, "lr": lr, "rows": rows}, file)
                last = epoch == EPOCHS
                run.log_artifact(checkpoint, aliases=["staging"] if last else [])


def evaluate() -> None:
    """The f1 of what is in staging, which it gets as metadata."""
    with wandb.init(project=PROJECT, job_type="eval") as run:
        model = run.use_artifact("model:staging", type="model")
        weights = json.loads(Path(model.download(), "weights.json").read_text())
        draw = random.Random(1)
        months = [draw.randrange(60) for _ in range(200)]
        right = sum((month < weights["threshold"]) == (month < 20) for month in months) / len(months)
        f1 = round(right * model.metadata["accuracy"], 3)
        run.log({"f1": f1})
        model.metadata["f1"] = f1
        model.save()


def promote() -> None:
    """Let `production` name what is in staging, if its f1 is good enough and a run of job_type eval looked at it."""
    api = wandb.Api()
    model = api.artifact(f"{PROJECT}/model:staging")
    collection = api.registry(f"{model.entity}/{PROJECT}/model")
    collection.set(checks={"production": ["metadata.f1 >= 0.8", "evaluated by eval"]})
    looked_at = collection.promote(model.version, to="production", dry_run=True)
    if looked_at["outcome"] == "refused":
        failed = [str(check["check"]) for check in looked_at["checks"] if not check["ok"]]
        print(f"{model.name} stays in staging:", *failed)
        return
    collection.promote(model.version, to="production", reason=f"f1 {model.metadata['f1']}")
    print(f"{model.name} is in production: f1 {model.metadata['f1']}")


for rows, lr in ((400, 0.1), (80, 0.02)):
    preprocess(rows)
    train(lr)
    evaluate()
    promote()

api = wandb.Api()
in_production = api.artifact(f"{PROJECT}/model:production")
print("in production:", in_production.name, in_production.metadata)
print("made by:", in_production.logged_by().config, "evaluated by:", *(r.job_type for r in in_production.used_by()))
print("checkpoints of that run:", *(one.name for one in in_production.logged_by().logged_artifacts()))
api.lineage(f"{PROJECT}/model:production").folded().to_svg("lineage.svg")
print(api.artifact_diff(f"{PROJECT}/model:production", ":staging", lineage=True))
