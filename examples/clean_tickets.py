"""A dataset of files, a cleaned one made from it, and a model of another team: the lineage says what came of what."""

from pathlib import Path

import icecore as wandb

raw = Path("data/raw")
raw.mkdir(parents=True, exist_ok=True)
for number in range(20):
    (raw / f"ticket-{number}.txt").write_text(f"  Ticket {number}: it does NOT work  ")

with wandb.init(project="tickets", job_type="collect") as run:
    dataset = wandb.Artifact("support-tickets", type="dataset", metadata={"rows": 20})
    dataset.add_dir("data/raw/")
    run.log_artifact(dataset)

with wandb.init(project="tickets", job_type="preprocess", config={"lower": True}) as run:
    folder = run.use_artifact("support-tickets:latest").download()
    clean = wandb.Artifact("support-tickets-clean", type="dataset", metadata={"rows": 20})
    with clean.new_file("tickets.txt") as file:
        for path in sorted(Path(folder).iterdir()):
            file.write(path.read_text().strip().lower() + "\n")
    run.log_artifact(clean)

with wandb.init(project="team-a/pretraining", job_type="train") as run_a:
    Path("base.pt").write_text("weights of the base model")
    run_a.log_model("base.pt", name="bert-base")

with wandb.init(project="tickets", job_type="train") as run_b:
    base = run_b.use_artifact("team-a/pretraining/bert-base:latest").download()
    data = run_b.use_artifact("support-tickets-clean:latest").download()
    Path("tuned.pt").write_text(Path(base, "base.pt").read_text() + Path(data, "tickets.txt").read_text())
    run_b.log_model("tuned.pt", name="bert-tickets")
    run_b.finish()

graph = wandb.Api().lineage("tickets/bert-tickets:latest", direction="up")
print(graph.to_mermaid())
print("came from support-tickets:v0:", "support-tickets:v0" in graph)
print("way:", " -> ".join(node.id.split("/")[-1] for node in graph.path("support-tickets:v0", "bert-tickets:v0").nodes))
