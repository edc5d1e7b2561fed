"""Log a model with what is known of it, take it back by name, let an alias name it, and let old ones expire."""

import getpass
import socket
import subprocess
import time
from pathlib import Path

import icecore as wandb


def commit() -> str:
    """The commit of the folder that this runs in; empty outside of a repository."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


for f1 in (0.84, 0.88, 0.87, 0.91):
    Path("model.pt").write_text(f"weights of a model with f1 {f1}")
    with wandb.init(project="text-classifier", job_type="train", config={"epochs": 3}) as run:
        artifact = wandb.Artifact(
            "bert-classifier",
            type="model",
            description="BERT, fine-tuned on support tickets",
            metadata={
                "f1_score": f1,
                "user": getpass.getuser(),
                "hostname": socket.gethostname(),
                "timestamp": time.time(),
                "commit": commit(),
            },
        )
        artifact.add_file("model.pt")
        artifact.ttl = wandb.util.parse_time("7d")
        run.log_artifact(artifact)
        artifact.wait()
        if f1 > 0.9:
            artifact.aliases.append("production")
            artifact.save()

with wandb.init(project="text-classifier", job_type="inference") as run:
    for name in ("bert-classifier:latest", "bert-classifier:v3", "bert-classifier:production"):
        artifact = run.use_artifact(name, type="model")
        weights = Path(artifact.download(), "model.pt").read_text()
        print(name, artifact.version, artifact.metadata["f1_score"], weights)
    print("used:", *(used.name for used in wandb.Api().run(run.path).used_artifacts()))

good = wandb.Api().artifacts("model", "text-classifier/bert-classifier", filters={"metadata.f1_score": {"$gt": 0.86}})
print("good ones:", *(version.version for version in good))
