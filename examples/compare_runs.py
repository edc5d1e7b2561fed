import icecore as wandb
import pandas as pd
api = wandb.Api()
runs = api.runs("username/text-classifier")
data = []
for run in runs:
    if run.state == "finished":
        data.append({"name": run.name, "learning_rate": run.config.get("learning_rate"), "batch_size": run.config.get("batch_size"),
                     "val_f1": run.summary.get("val/f1"), "runtime_minutes": (run.summary.get("_runtime") or 0) / 60})
df = pd.DataFrame(data)
print(df.sort_values("val_f1", ascending=False).head(10))
history = run.history(keys=["train/loss", "val/loss"])
print(history.head())
