import icecore as wandb

run = wandb.init(project="text-classifier", group="ablation-study", tags=["bert", "lr-sweep", "bug-fix"], notes="Testing if dropout=0.3 fixes overfitting")
run_a = wandb.init(project="team-a/pretraining", job_type="train")
