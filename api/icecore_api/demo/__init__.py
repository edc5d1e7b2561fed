"""The demo: real models trained in parallel processes, one killed and resumed, one offline and synced."""
